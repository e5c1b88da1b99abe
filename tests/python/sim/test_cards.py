"""Cards of machines and models: true numbers, sources, and sentences for what is wrong."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from prophet_moe.errors import InvalidArgument
from prophet_moe.sim import cards
from prophet_moe.sim.geometry import read_geometry
from prophet_moe.sim.machine_card import read_machine, write_machine

ROOT = Path(__file__).resolve().parents[3]
MACHINES = cards.names("machines")
GEOMETRIES = cards.names("geometries")
ARITHMETIC = re.compile(r"^# ([\d x+]+);.*\n(\w+) = (\d+)$", re.MULTILINE)


def test_the_shipped_machines() -> None:
    wanted = {"cpu-nvme", "rtx3090-pcie4", "rtx4090-pcie4", "rtx5090-pcie5", "h100-pcie5", "a100-pcie4"}
    assert wanted <= set(MACHINES)
    assert sorted(path.stem for path in (ROOT / "bench/machines").glob("*.toml")) == MACHINES


@pytest.mark.parametrize("name", MACHINES)
def test_every_number_of_a_machine_names_its_source(name: str) -> None:
    card = read_machine(name)
    assert card.name == name
    figures = card.figures()
    assert len(figures) >= 12
    assert all(figure.kind in cards.KINDS and len(figure.source) > 5 for figure in figures.values())
    peak = figures["compute.memory_bytes_per_second"].value
    assert peak > figures[f"{card.lane}.bytes_per_second"].value, "fast memory is faster than its lane"


@pytest.mark.parametrize("name", MACHINES)
def test_a_card_survives_being_written(name: str, tmp_path: Path) -> None:
    card = read_machine(name)
    odd = replace(card, about='quotes " and \\ and\ttabs', times={"a.b c": card_times(card.name)})
    write_machine(odd, tmp_path / "copy.toml")
    assert read_machine(str(tmp_path / "copy.toml")) == odd


def card_times(source: str) -> dict[str, cards.Figure]:
    keys = ("pass_ns", "layer_ns", "layer_token_ns", "expert_ns", "expert_token_ns")
    return {key: cards.Figure(100.0 + place, "measured", source) for place, key in enumerate(keys)}


# Megabytes of one expert in bf16, and what a token routes through all layers, in gigabytes.
SIZES = {
    "mixtral-8x7b": (352, 22.5),
    "gpt-oss-20b": (49.8, 4.78),
    "qwen3-30b-a3b": (9.44, 3.62),
    "deepseek-moe-16b": (17.3, 2.80),
    "deepseek-v2-lite": (17.3, 2.70),
    "qwen1.5-moe-a2.7b": (17.3, 1.66),
    "olmoe-1b-7b": (12.6, 1.61),
}


@pytest.mark.parametrize("name", SIZES)
def test_expert_sizes_are_the_true_ones(name: str) -> None:
    geometry = read_geometry(name, "bf16")
    megabytes, gigabytes = SIZES[name]
    assert geometry.expert_bytes / 1e6 == pytest.approx(megabytes, rel=0.004)
    assert geometry.routed_bytes_per_token / 1e9 == pytest.approx(gigabytes, rel=0.004)
    assert 3.5 < geometry.expert_bytes / read_geometry(name, "4bit").expert_bytes < 3.8


# Billions of parameters, all and active, as the models' authors state them.
STATED = {
    "mixtral-8x7b": (46.7, 12.9),
    "gpt-oss-20b": (20.9, 3.6),
    "qwen3-30b-a3b": (30.5, 3.3),
    "deepseek-moe-16b": (16.4, 2.8),
    "deepseek-v2-lite": (15.7, 2.4),
    "qwen1.5-moe-a2.7b": (14.3, 2.7),
    "olmoe-1b-7b": (6.9, 1.3),
}


@pytest.mark.parametrize("name", STATED)
def test_parameters_add_up_to_the_stated_ones(name: str) -> None:
    g = read_geometry(name)
    dense = g.layers * g.layer_parameters + g.once_parameters + g.idle_parameters
    assert (dense + g.experts_total * g.expert_parameters) / 1e9 == pytest.approx(STATED[name][0], rel=0.015)
    active = dense + g.layers * g.top_k * g.expert_parameters
    # Some authors count the input embedding as active and some do not.
    least = (active - g.idle_parameters) / 1e9
    assert least * 0.95 < STATED[name][1] < active / 1e9 * 1.05


@pytest.mark.parametrize("name", GEOMETRIES)
def test_numbers_are_the_arithmetic_beside_them(name: str) -> None:
    text = (cards.ASSETS / "geometries" / f"{name}.toml").read_text()
    found = ARITHMETIC.findall(text)
    assert len(found) == 5
    for sum_of_products, key, value in found:
        total = 0
        for product in sum_of_products.split("+"):
            term = 1
            for factor in product.split("x"):
                term *= int(factor)
            total += term
        assert total == int(value), key


def test_the_reference_card_is_the_reference_model() -> None:
    from prophet_moe.models.inspect import inspect

    info, card = inspect("reference-moe"), read_geometry("reference-moe")
    ours = (card.layers, card.experts_per_layer, card.top_k, card.expert_bytes)
    assert ours == (info.layers, info.experts_per_layer, info.top_k, info.expert_bytes)


def test_times_follow_from_the_card() -> None:
    card, model = read_machine("rtx4090-pcie4"), read_geometry("mixtral-8x7b")
    machine = card.machine(model)
    memory = 1008e9 * 0.82
    assert machine.expert_ns == pytest.approx(3000 + 352_321_536 / memory * 1e9, abs=1)
    assert machine.layer_ns == pytest.approx(20000 + 2 * model.layer_parameters / memory * 1e9, abs=1)
    assert machine.expert_token_ns == pytest.approx(2 * 176_160_768 / (165.2e12 * 0.5) * 1e9, rel=1e-4)
    assert card.machine(model, link_scale=2).bytes_per_second == 2 * machine.bytes_per_second
    assert card.machine(model, lane="disk").bytes_per_second == 7e9
    stated = replace(card, times={"mixtral-8x7b": card_times("here")}).machine(model)
    assert (stated.pass_ns, stated.layer_ns, stated.expert_token_ns) == (100, 101, 104)


def test_names_are_found_in_any_case_and_unknown_ones_list_the_known() -> None:
    assert read_geometry("Mixtral-8x7B").name == "mixtral-8x7b"
    with pytest.raises(InvalidArgument, match=r"'mixtral'.*mixtral-8x7b.*reference-moe"):
        read_geometry("mixtral")
    with pytest.raises(InvalidArgument, match=r"'rtx4080'.*cpu-nvme.*rtx5090-pcie5"):
        read_machine("rtx4080")
    with pytest.raises(InvalidArgument, match=r"'8bit'.*bf16, 4bit"):
        read_geometry("mixtral-8x7b", "8bit")
    with pytest.raises(InvalidArgument, match=r"no lane 'usb'.*link, disk"):
        read_machine("rtx4090-pcie4").machine(read_geometry("mixtral-8x7b"), lane="usb")
    with pytest.raises(InvalidArgument, match="above 0"):
        read_machine("rtx4090-pcie4").machine(read_geometry("mixtral-8x7b"), link_scale=0.0)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("value = 25.2e9", "value = -25.2e9", r"link.bytes_per_second.value must be at least 1, not -"),
        ("value = 25.2e9", "value = 0", r"link.bytes_per_second.value must be at least 1"),
        ("value = 25.2e9", 'value = "fast"', r"must be a number, not 'fast'"),
        ("value = 25.2e9", "value = nan", r"link.bytes_per_second.value must be at least"),
        ("value = 25.2e9", "value = true", r"must be a number"),
        ("latency_ns = {", "latency = {", r"link.latency_ns is missing"),
        ("[disk]", "[drive]", r"drive is unknown; known here: .*disk"),
        ('kind = "published"', 'kind = "guessed"', r"kind must be one of measured, published"),
        (', source = "NVIDIA: 24 GB"', "", r"fast_memory.bytes.source is missing"),
        ('source = "NVIDIA: 24 GB"', 'source = ""', r"fast_memory.bytes.source must be a text"),
        ("value = 0.82", "value = 1.82", r"memory_share.value must be between 1e-06 and 1"),
        ('lane = "link"', 'lane = "train"', r"names 'train', but the card describes link"),
        ('name = "rtx4090-pcie4"', "", r"name is missing"),
        ("[compute]", "[compute", r"is no TOML file"),
    ],
)
def test_a_machine_that_cannot_be_is_refused(tmp_path: Path, old: str, new: str, words: str) -> None:
    text = (cards.ASSETS / "machines" / "rtx4090-pcie4.toml").read_text()
    assert old in text
    path = tmp_path / "mine.toml"
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(InvalidArgument, match=words) as caught:
        read_machine(str(path))
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("layers = 32", "layers = 0", "layers must be at least 1"),
        ("top_k = 2", "top_k = 9", "top_k is 9, of 8 experts"),
        ("top_k = 2", "top_k = 1.5", "top_k must be a whole number"),
        ("expert_parameters", "expert_params", "expert_parameters is missing"),
        ("\nbf16 = 352321536", "\nbf16 = -1", "expert_bytes.bf16 must be at least 1"),
        ("kv_bytes_per_token = 4096", "kv_bytes_per_token = -1", "must be at least 0"),
    ],
)  # fmt: skip
def test_a_model_that_cannot_be_is_refused(tmp_path: Path, old: str, new: str, words: str) -> None:
    text = (cards.ASSETS / "geometries" / "mixtral-8x7b.toml").read_text()
    assert old in text
    path = tmp_path / "mine.toml"
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(InvalidArgument, match=words):
        read_geometry(str(path))
