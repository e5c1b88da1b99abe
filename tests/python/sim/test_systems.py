"""The table of systems: whom it names, what each lacks, the bounds, and policies written in Python."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

import prophet_ext
from prophet_moe.errors import InvalidArgument
from prophet_moe.formats.trace import Split, TraceReader, TraceWriter
from prophet_moe.predict import rivals, text_network
from prophet_moe.predict.shipped import find
from prophet_moe.sim.cell import INSTANT, run_cell
from prophet_moe.sim.geometry import Geometry, read_geometry
from prophet_moe.sim.machine import Machine
from prophet_moe.sim.machine_card import read_machine
from prophet_moe.sim.replay import replay
from prophet_moe.sim.results import to_json
from prophet_moe.sim.sweep import Sweep, cells_of
from prophet_moe.sim.systems import bounds, left_out, parse_systems, systems_known
from prophet_moe.systems import SYSTEMS, make_predictor, register, require_runnable, runnable, system_named

MakeTrace = Callable[..., TraceReader]
MODEL = Geometry("generated", "a test", 5, 24, 3, "bf16", 600_000, 300_000, 50_000, 90_000, 10_000, 512)
CARD = read_machine("rtx4090-pcie4")
EXACT = Machine(name="test", bytes_per_second=1e9, chunk_bytes=100_000, layer_ns=400_000, expert_ns=50_000)
REPLAYED = tuple(name for name in systems_known() if left_out(name) is None)


class Lru:
    """What the runtime's lru does, for the least surprising comparison."""

    def __init__(self, layers: int, experts_per_layer: int, top_k: int) -> None:
        self.clock, self.last = 0, dict[tuple[int, int], int]()

    def used(self, layer: int, expert: int) -> None:
        self.clock += 1
        self.last[layer, expert] = self.clock

    arrived = used

    def victim(self, candidates: Sequence[tuple[int, int]], incoming: tuple[int, int]) -> tuple[int, int]:
        return min(candidates, key=lambda key: self.last[key])


@pytest.fixture
def own() -> Iterator[str]:
    """A system of this test's, registered while it runs."""
    register("own", Lru, "keeps what was used last")
    yield "own"
    del SYSTEMS["own"]


def test_an_unknown_name_lists_the_known_ones() -> None:
    for ask in (system_named, require_runnable, lambda name: parse_systems(f"lru,{name}")):
        with pytest.raises(InvalidArgument) as caught:
            ask("magic")
        assert "'magic'" in str(caught.value)
        assert all(name in str(caught.value) for name in systems_known())


def test_a_run_is_no_system_that_knows_the_future() -> None:
    for name in ("belady", "oracle", "clairvoyant", "od-moe", "resident"):
        assert name not in runnable()
        with pytest.raises(InvalidArgument, match="prophet simulate"):
            require_runnable(name)
    assert bounds(systems_known()) == ["belady", "oracle", "clairvoyant", "resident"]


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("promoe", "hidden states"),
        ("prescope", "hidden states"),
        ("floe", "hidden states"),
        ("fate", "hidden states"),
        ("expertflow-2025", "hidden states"),
        ("expertflow", "token ids"),
        ("pre-attention", "states before attention"),
        ("duoserve", "--predictor"),
        ("prophet", "--predictor"),
    ],
)
def test_what_a_trace_lacks_leaves_a_system_out_by_name(name: str, why: str) -> None:
    said = left_out(name)
    assert said is not None
    assert said.startswith(f"{name} needs")
    assert why in said
    assert left_out("duoserve", ["duoserve"]) is None
    assert left_out("promoe", ["promoe"], hidden=True) is None
    assert left_out("pre-attention", ["pre-attention"], entering=True) is None
    assert left_out("expertflow", ["expertflow"], tokens=True) is None
    assert "--routers" in (left_out("fate", hidden=True) or "")
    assert left_out("fate", hidden=True, routers=True) is None


def test_what_the_routers_read_is_shown_to_those_who_read_it(write_trace: MakeTrace, tmp_path: Path) -> None:
    # A model whose routers read, at layer l, exactly what the router of layer l + 1 will choose.
    plain = write_trace([40, 30])
    L, E = plain.layers, plain.experts_per_layer
    chosen = np.asarray(plain.map("experts"))
    ones = np.zeros((plain.tokens, L, E), np.float32)
    np.put_along_axis(ones[:, :-1], chosen[:, 1:].astype(np.int64), 8.0, 2)
    path = tmp_path / "with-hidden.safetensors"
    with TraceWriter(path, model="m", layers=L, experts_per_layer=E, top_k=plain.top_k, hidden=E) as writer:
        for s in range(plain.sequences):
            rows, part = plain.rows(s), plain.sequence(s)
            writer.append(part.experts, gate_probs=part.gate_probs, token_id=part.token_id,
                          phase=part.phase, gate_input=ones[rows.start : rows.stop])  # fmt: skip
            writer.end_sequence()
    model = tmp_path / "model"
    model.mkdir()
    gates = {f"layers.{i}.gate.weight": np.eye(E, dtype=np.float32) for i in range(L)}
    save_file(gates, model / "model.safetensors")
    systems = ("lru", "fate", "promoe")
    cells, missing = cells_of(
        Sweep(path, MODEL, CARD, ("50%",), systems, routers=model, link_scales=(1000.0,))
    )
    assert [why.split()[0] for why in missing] == ["promoe"]
    lines = {cell.system: run_cell(cell) for cell in cells}
    first, *others = lines["fate"]["layer_misses"]
    assert sum(others) == 0 < first  # the first layer has none before it
    assert min(lines["lru"]["layer_misses"]) > 0


def test_what_is_known_before_a_layer_is_shown_to_those_who_read_it(tmp_path: Path) -> None:
    """Tokens that name the experts of all layers, and states that name those of their own layer."""
    random, path = np.random.default_rng(5), tmp_path / "routes.safetensors"
    L, E, K = MODEL.layers, MODEL.experts_per_layer, MODEL.top_k
    chosen_by = random.permuted(np.tile(np.arange(E), (40, L, 1)), axis=2)[:, :, :K]
    with TraceWriter(
        path, model="m", layers=L, experts_per_layer=E, top_k=K, entering=E, gate_probs=False, phase=False
    ) as writer:
        for length in (400, 400, 100, 60):
            ids = random.integers(0, 40, length)
            states = np.zeros((length, L, E), np.float16)
            np.put_along_axis(states, chosen_by[ids], 1, 2)
            writer.append(chosen_by[ids], token_id=ids, entering=states)
            writer.end_sequence()
    trace, split = TraceReader(path), Split((0, 1), (2,), (3,), ())
    files = {name: tmp_path / name for name in ("expertflow", "pre-attention")}
    for name, file in files.items():
        rivals.save(rivals.train(trace, split, name, steps=300, seed=0), file)
    sweep = Sweep(
        path, MODEL, CARD, ("50%",), ("lru", *files), rivals=tuple(files.items()), link_scales=(1000.0,)
    )
    cells, missing = cells_of(sweep)
    assert not missing
    misses = {cell.system: run_cell(replace(cell, sequences=(3,)))["layer_misses"] for cell in cells}
    for layer in range(L):  # the first one, too
        for name in files:
            assert misses[name][layer] < 0.2 * misses["lru"][layer], (name, layer)
    bare = tmp_path / "bare.safetensors"
    with TraceWriter(
        bare, model="m", layers=L, experts_per_layer=E, top_k=K, gate_probs=False, token_id=False, phase=False
    ) as writer:
        writer.append(trace.map("experts"))
        writer.end_sequence()
    _, missing = cells_of(replace(sweep, trace=bare))
    assert [why.split()[0] for why in missing] == list(files)


def test_ids_of_another_numbering_leave_a_reader_of_text_out(write_trace: MakeTrace, tmp_path: Path) -> None:
    trace, file = write_trace([40, 30, 30]), tmp_path / "expertflow"
    made = text_network.train(trace, Split((0,), (1,), (2,), ()), steps=1, embedding=4, width=4)
    rivals.save(made, file)
    sweep = Sweep(trace.path, MODEL, CARD, ("50%",), ("expertflow",), rivals=(("expertflow", file),))
    assert len(cells_of(sweep)[0]) == 1
    rivals.save(replace(made, numbering="another"), file)
    assert cells_of(sweep) == (
        [], ["expertflow needs a predictor trained on the numbering of tokens that this trace has"]
    )  # fmt: skip


def test_predictors_are_made_or_refused_by_name() -> None:
    shape = {"layers": 5, "experts_per_layer": 24, "top_k": 3, "share": 0.25}
    for name, system in SYSTEMS.items():
        if system.trained or system.router:
            with pytest.raises(InvalidArgument, match=name):
                make_predictor(system, **shape)  # type: ignore[arg-type]
        else:
            made = make_predictor(system, **shape)  # type: ignore[arg-type]
            assert (made is None) == (not system.predictor or system.emulated)


def test_prophet_asks_the_next_routers_too_where_it_can() -> None:
    prophet, file = SYSTEMS["prophet"], find("reference-moe")
    shape = {"layers": 12, "experts_per_layer": 32, "top_k": 4, "share": 0.25, "file": file}
    weights = np.random.default_rng(0).normal(size=(12, 32, 192)).astype(np.float32)
    alone = make_predictor(prophet, **shape)  # type: ignore[arg-type]
    both = make_predictor(prophet, **shape, routers={"router": weights})  # type: ignore[arg-type]
    of_another = np.ascontiguousarray(weights[:, :, :100])
    other = make_predictor(prophet, **shape, routers={"router": of_another})  # type: ignore[arg-type]
    assert [one.name for one in (alone, both, other) if one] == ["bank", "bank+next-gate", "bank"]


def lines_of(trace: TraceReader, slots: str, **changes: Any) -> dict[str, dict[str, Any]]:
    cells, _ = cells_of(Sweep(trace.path, MODEL, CARD, (slots,), REPLAYED, **changes))
    return {cell.system: run_cell(cell) for cell in cells}


@pytest.mark.parametrize("prompts", [0, 6])
@pytest.mark.parametrize("scale", [0.1, 1.0, 10.0])
def test_no_system_is_faster_than_the_clairvoyant(write_trace: MakeTrace, scale: float, prompts: int) -> None:
    trace = write_trace([50, 40, 30], prompts=prompts, seed=3)
    for slots in ("18", "50%"):
        lines = lines_of(trace, slots, link_scales=(scale,))
        least = lines["clairvoyant"]["tpot_ms"]["mean"]
        for name, line in lines.items():
            if name != "resident":
                assert least <= line["tpot_ms"]["mean"] * (1 + 1e-12), (name, slots)
        assert lines["resident"]["tpot_ms"]["mean"] <= least * (1 + 1e-4)
        moved = {
            name: sum(v for k, v in line["bytes"].items() if k != "per_token") for name, line in lines.items()
        }
        assert all(moved["belady"] <= moved[name] for name in lines if name != "resident")


def test_the_supplied_trace_keeps_the_bounds(supplied: TraceReader) -> None:
    sequences = tuple(range(4))
    model = read_geometry("gpt-oss-20b")
    names = ("lru", "expected-next-use", "finemoe", "moe-infinity", "od-moe", "oracle", "clairvoyant")
    cells, _ = cells_of(Sweep(supplied.path, model, CARD, ("25%", "50%"), names))
    for slots in (192, 384):
        mine = [replace(cell, sequences=sequences) for cell in cells if cell.slots == slots]
        times = {cell.system: run_cell(cell)["tpot_ms"]["mean"] for cell in mine}
        assert min(times, key=lambda name: times[name]) == "clairvoyant"


def test_the_same_cell_gives_the_same_line_to_the_byte(write_trace: MakeTrace) -> None:
    cells, _ = cells_of(Sweep(write_trace([30, 20]).path, MODEL, CARD, ("25%",), REPLAYED))
    for cell in cells:
        assert to_json(run_cell(cell) | {"wall_s": 0}) == to_json(run_cell(cell) | {"wall_s": 0})


def test_with_an_instant_link_nothing_stalls(write_trace: MakeTrace) -> None:
    trace, machine = write_trace([60]), replace(EXACT, bytes_per_second=INSTANT)
    for policy in prophet_ext.eviction_policies():
        report = replay(trace, machine, slots=30, expert_bytes=600_000, policy=policy)
        assert report.stalled_ms * 1e6 <= 6 * report.hits.miss, "a chunk takes a nanosecond at least"


def test_a_lossy_part_is_off_unless_asked_and_saves_bytes(
    write_trace: MakeTrace, monkeypatch: pytest.MonkeyPatch
) -> None:
    halved = replace(SYSTEMS["moe-infinity"], name="halved", lossy="half of each expert", lossy_bytes=0.5)
    monkeypatch.setitem(SYSTEMS, "halved", halved)
    swept = (("lossy", (0, 1)),)
    names = ("lru", "moe-infinity", "halved")
    cells, _ = cells_of(Sweep(write_trace([40]).path, MODEL, CARD, ("25%",), names, options=swept))
    assert [(cell.system, dict(cell.options)) for cell in cells] == [
        ("lru", {}), ("moe-infinity", {}), ("halved", {"lossy": 0}), ("halved", {"lossy": 1}),
    ]  # fmt: skip
    _, plain, off, on = map(run_cell, cells)
    assert off["bytes"] == plain["bytes"]
    assert on["bytes"]["demand"] < 0.6 * off["bytes"]["demand"]


def test_a_policy_in_python_does_what_it_says(write_trace: MakeTrace, own: str) -> None:
    # Prompts of one token: longer ones stream, which a policy in Python has no say in.
    trace = write_trace([40, 30], prompts=1)
    cells, _ = cells_of(Sweep(trace.path, MODEL, CARD, ("25%", "60"), ("lru", own)))
    lines = {(line["system"], line["slots"]): line for line in map(run_cell, cells)}
    for slots in ("25%", "60"):
        for key in ("hits", "bytes", "tpot_ms", "layer_misses"):
            assert lines[own, slots][key] == lines["lru", slots][key]
    with pytest.raises(InvalidArgument, match="already"):
        register(own, Lru, "again")
    with pytest.raises(InvalidArgument, match="prophet simulate"):
        require_runnable(own)


def test_a_policy_in_python_is_held_to_its_word(write_trace: MakeTrace) -> None:
    class Stubborn(Lru):
        def victim(self, candidates: Sequence[tuple[int, int]], incoming: tuple[int, int]) -> tuple[int, int]:
            return (99, 0)

    class Broken(Lru):
        def victim(self, candidates: Sequence[tuple[int, int]], incoming: tuple[int, int]) -> tuple[int, int]:
            raise RuntimeError("no idea")

    trace = write_trace([20])
    with pytest.raises(InvalidArgument, match="none of its candidates"):
        replay(trace, EXACT, slots=15, expert_bytes=600_000, policy=Stubborn)
    with pytest.raises(RuntimeError, match="no idea"):
        replay(trace, EXACT, slots=15, expert_bytes=600_000, policy=Broken)
    with pytest.raises(InvalidArgument, match="victim"):
        replay(trace, EXACT, slots=15, expert_bytes=600_000, policy=lambda *_: object())


def test_the_document_lists_every_system_and_what_is_modelled() -> None:
    page = (Path(__file__).resolve().parents[3] / "docs" / "systems.md").read_text()
    for name, system in SYSTEMS.items():
        assert f"| `{name}` | {system.what} | {system.source} |" in page
        if "arXiv" in system.source:
            assert f"| `{name}` | {system.modelled} | {system.not_modelled or '—'} |" in page


def test_a_narrowed_predictor_names_the_likeliest() -> None:
    wide = prophet_ext.make_predictor("popularity", layers=3, experts_per_layer=8, top_k=2)
    narrow = wide.narrowed(2)
    random = np.random.default_rng(0)
    for _ in range(20):
        for layer in range(3):
            chosen = random.choice(8, (1, 2), replace=False, p=np.arange(1, 9) / 36).astype(np.int32)
            for one in (wide, narrow):
                one.observe(layer, chosen)
            if layer == 2:
                continue
            all_of_them, few = wide.forecast(layer), narrow.forecast(layer)
            assert ((few > 0).sum(1) == 2).all()
            for row, named in zip(all_of_them, few, strict=True):
                assert sorted(named[named > 0]) == sorted(row)[-2:]
