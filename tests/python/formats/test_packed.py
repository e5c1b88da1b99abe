"""A packed checkpoint is valid safetensors, holds the same bytes, and gives the same logits."""

import json
import shutil
import tracemalloc
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from tiny_models import build

import prophet_moe
from prophet_moe.formats import packed
from prophet_moe.models.inspect import make_blueprint
from prophet_moe.models.locate import locate
from prophet_moe.models.offload import offload_of

PAGE = 4096

# (family, changes): separate gate and up; one fused, transposed tensor with biases; experts without a gate;
# experts that fill no whole number of pages.
MODELS: dict[str, tuple[str, dict[str, Any], torch.dtype]] = {
    "separate": ("qwen3_moe", {}, torch.float32),
    "renamed": ("mixtral", {}, torch.bfloat16),
    "fused": ("gpt_oss", {}, torch.bfloat16),
    "ungated": ("nemotron_h", {}, torch.float32),
    "odd": ("qwen3_moe", {"hidden_size": 40, "moe_intermediate_size": 24, "head_dim": 8}, torch.float16),
}


@pytest.fixture(scope="module", params=list(MODELS))
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """(stock model, its folder, the packed folder)"""
    family, changes, dtype = MODELS[request.param]
    stock = build(family, dtype=dtype, **changes)
    stock.set_experts_implementation("eager")
    folder = tmp_path_factory.mktemp(request.param)
    stock.save_pretrained(folder / "original")
    out = prophet_moe.pack(folder / "original", folder / "packed")
    return stock, folder / "original", out


def header(path: Path) -> tuple[int, dict[str, Any]]:
    """(where the data begins, the parsed header), read without the library."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        return 8 + length, json.loads(file.read(length))


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    found = {}
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            found |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    return found


def test_logits_are_the_same_bits(pair: Any) -> None:
    stock, _, out = pair
    ids = torch.randint(3, 200, (2, 9), generator=torch.Generator().manual_seed(1))
    model = prophet_moe.load(out, slots="50%", exact=True)
    with torch.no_grad():
        assert torch.equal(model(ids).logits, stock(ids).logits)
        settings = {"max_new_tokens": 4, "do_sample": False, "attention_mask": torch.ones_like(ids)}
        assert torch.equal(model.generate(ids, **settings), stock.generate(ids, **settings))
    prophet_moe.close(model)


def test_each_expert_is_one_aligned_run(pair: Any) -> None:
    _, original, out = pair
    data, entries = header(out / "experts.safetensors")
    notes = entries.pop("__metadata__")
    assert data % PAGE == 0
    assert notes["format"] == "prophet-packed"
    assert (out / "experts.safetensors").stat().st_size % PAGE == 0
    runs: dict[str, list[tuple[int, int]]] = {}
    for name, entry in entries.items():
        runs.setdefault(name.rpartition(".")[0], []).append(tuple(entry["data_offsets"]))
    info = prophet_moe.inspect(out)
    assert info.packed
    assert len(runs) == info.experts_total
    for run in runs.values():
        assert run[0][0] % PAGE == 0
        assert run[-1][1] % PAGE == 0
        assert all(end == begin for (_, end), (begin, _) in pairwise(run))
    assert info.slot_bytes == -(-info.expert_bytes // PAGE) * PAGE
    assert info.expert_bytes == prophet_moe.inspect(original).expert_bytes


def test_no_byte_is_lost_or_changed(pair: Any) -> None:
    """Read by the library: resident tensors under their names, experts piece by piece, fillers zero."""
    _, original, out = pair
    before, after = tensors(original), tensors(out)
    fillers = {name for name in after if "filler" in name.split(".")}
    assert all(not after.pop(name).any() for name in fillers)
    with safe_open(out / "experts.safetensors", "pt") as file:
        experts = set(file.keys()) - fillers
    dense = set(after) - experts
    assert dense <= set(before)
    assert all(torch.equal(after[name], before[name]) for name in dense)
    # What is not resident is experts: the same bytes in another order.
    moved = [before[name] for name in before if name not in dense]
    assert byte_counts(moved) == byte_counts([after[name] for name in experts])


def byte_counts(pieces: list[torch.Tensor]) -> list[int]:
    """How often each byte value occurs in all tensors together."""
    return sum(
        (torch.bincount(t.contiguous().view(-1).view(torch.uint8), minlength=256) for t in pieces),
        torch.zeros(256, dtype=torch.int64),
    ).tolist()


def test_companions_travel(pair: Any) -> None:
    _, original, out = pair
    kept = {path.name for path in original.iterdir() if path.suffix == ".json"}
    assert {path.name for path in out.iterdir()} == kept | {"dense.safetensors", "experts.safetensors"}
    assert all((out / name).read_bytes() == (original / name).read_bytes() for name in kept)


def test_packed_again_is_the_same(pair: Any, tmp_path: Path) -> None:
    _, _, out = pair
    again = prophet_moe.pack(out, tmp_path / "again")
    for path in out.iterdir():
        assert (again / path.name).read_bytes() == path.read_bytes(), path.name


@pytest.mark.parametrize("shift", [8, 24, 40])
def test_matrices_begin_where_they_did(pair: Any, tmp_path: Path, shift: int) -> None:
    """Modulo a cache line, on which the rounding of a matrix product may depend: exact means equal bits."""
    _, original, _ = pair
    shifted = Path(shutil.copytree(original, tmp_path / "shifted"))
    path = shifted / "model.safetensors"
    data, entries = header(path)
    text = json.dumps(entries).encode()
    text += b" " * ((shift - 8 - len(text)) % 64)
    path.write_bytes(len(text).to_bytes(8, "little") + text + path.read_bytes()[data:])
    before = make_blueprint(shifted)
    after = make_blueprint(prophet_moe.pack(shifted, tmp_path / "packed"))
    assert after.index.begins == before.index.begins
    assert len(before.index.resident) > 0
    for name in before.index.resident:
        assert after.checkpoint.tensors[name].offset % 64 == before.checkpoint.tensors[name].offset % 64
    if before.index.begins is not None:  # fused
        assert set(before.index.begins[0]) != {0}
        model = prophet_moe.load(tmp_path / "packed", slots=4, exact=True)
        layer = model.get_submodule(after.index.modules[0]).__dict__["_prophet_layer"]
        with layer.engine.lease(0, [3]) as lease:
            matrices = layer.matrices(3, lease.wait(3))
        (key,) = (name for name in before.checkpoint.tensors if name.endswith("0.mlp.experts.gate_up_proj"))
        place = before.checkpoint.tensors[key]
        assert matrices["gate_up"].data_ptr() % 64 == (place.offset + 3 * place.bytes // 8) % 64
        prophet_moe.close(model)


def test_a_stock_loader_finds_no_half_model(pair: Any) -> None:
    """transformers must not load the resident weights and draw the experts at random."""
    stock, _, out = pair
    with pytest.raises(OSError, match=r"no file named model\.safetensors"):
        type(stock).from_pretrained(out)


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prophet_moe.pack("reference-moe", tmp_path_factory.mktemp("reference") / "packed")


def test_reads_are_the_routed_experts_and_nothing_else(reference: Path) -> None:
    model = prophet_moe.load(reference, slots="25%", system="on-demand")
    engine = offload_of(model).engine
    info = prophet_moe.inspect(reference)
    cache = model(torch.tensor([[7, 8, 9]])).past_key_values
    begun = engine.counters()["bytes_moved"]
    for token in range(10, 15):
        cache = model(torch.tensor([[token]]), past_key_values=cache).past_key_values
    moved = engine.counters()["bytes_moved"] - begun
    assert moved == 5 * info.layers * info.top_k * info.expert_bytes
    prophet_moe.close(model)


def test_progress_and_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One chunk is held at a time, whatever the size of tensors; all bytes are told."""
    monkeypatch.setattr(packed, "CHUNK", 1 << 16)
    told: list[tuple[int, int]] = []
    peak = 0

    def progress(done: int, total: int) -> None:
        nonlocal peak
        if not told:
            tracemalloc.start()
        told.append((done, total))
        peak = tracemalloc.get_traced_memory()[1]

    try:
        out = prophet_moe.pack("reference-moe", tmp_path / "out", progress=progress)
    finally:
        tracemalloc.stop()
    done, totals = [d for d, _ in told], {t for _, t in told}
    assert done == sorted(done)
    assert totals == {done[-1]}
    assert done[-1] == sum(path.stat().st_size - header(path)[0] for path in out.glob("*.safetensors"))
    experts_header = header(out / "experts.safetensors")[0]
    assert peak < 8 * experts_header + (1 << 20) < done[-1] / 4


def test_companions_of_every_kind(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for path in locate("reference-moe").iterdir():
        (source / path.name).symlink_to(path)  # as the Hub's cache has them
    (source / "LICENSE").write_text("free")
    (source / "additional_chat_templates").mkdir()
    (source / "additional_chat_templates" / "tool.jinja").write_text("{{ messages }}")
    (source / "modeling_own.py").write_text("code")
    (source / "pytorch_model.bin").write_bytes(b"other weights")
    out = prophet_moe.pack(source, tmp_path / "out")
    assert (out / "LICENSE").read_text() == "free"
    assert (out / "additional_chat_templates" / "tool.jinja").is_file()
    assert not any(path.is_symlink() for path in out.rglob("*"))
    assert not (out / "modeling_own.py").exists()
    assert not (out / "pytorch_model.bin").exists()
