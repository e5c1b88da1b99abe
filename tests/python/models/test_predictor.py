"""A predictor changes which experts stay, never a token; one that does not fit is refused by a sentence."""

import importlib
from pathlib import Path

import numpy as np
import pytest
import torch

import prophet_ext
from prophet_moe import InvalidArgument, close, load
from prophet_moe.models.offload import offload_of

LAYERS, EXPERTS, TOP_K, RANK = 12, 32, 4, 8  # of the reference model
LOAD = importlib.import_module("prophet_moe.models.load")  # the package has a function of this name
IDS = torch.arange(40, 64).view(1, 24)


def untrained(layers: int = LAYERS, fill: float = 0.0) -> prophet_ext.BankPredictor:
    """Random weights: forecasts that mean nothing. `fill` goes into every bias of the gap."""
    rng = np.random.default_rng(3)

    def half(*shape: int) -> np.ndarray:
        return rng.normal(0, 0.2, shape).astype(np.float16)

    def single(*shape: int) -> np.ndarray:
        return rng.normal(0, 0.2, shape).astype(np.float32)

    tensors = {
        "enter.bank": half(1, layers, EXPERTS, RANK),
        "enter.bias": single(RANK),
        "norm.gain": single(layers, RANK),
        "norm.bias": single(layers, RANK),
        "mid.weight": half(RANK, RANK),
        "mid.bias": single(RANK),
        "leave.weight": half(layers, 1, EXPERTS, RANK),
        "leave.bias": single(layers, 1, EXPERTS),
        "leave.mix": single(2, 1),
        "own.weight": single(layers, 2, 3),
        "own.bias": single(layers, 2, EXPERTS),
        "next.scale": single(layers, 2) + 1,
        "gap.weight": np.array([[1 + fill, 2.0, 3.0]], np.float32),
    }
    return prophet_ext.BankPredictor(
        layers=layers,
        experts=EXPERTS,
        top_k=TOP_K,
        rank=RANK,
        decays=[0.9],
        bank=[0],
        recent=[],
        heads=2,
        latents=1,
        limits=1,
        limit=0,
        ahead=0,
        pairs=0,
        hidden=0,
        tensors=tensors,
    )


def tokens_with(
    predictor: prophet_ext.BankPredictor | None, monkeypatch: pytest.MonkeyPatch, exact: bool
) -> list[int]:
    monkeypatch.setattr(LOAD, "_predictor", lambda *_: predictor)
    system = "expected-next-use" if predictor is None else "prophet"
    model = load("reference-moe", slots=60, system=system, exact=exact)
    try:
        out = model.generate(IDS, max_new_tokens=12, do_sample=False)
        offload_of(model).engine.step(0)  # waits for the predictor
        counters = offload_of(model).engine.counters()
        # Prefill goes by leases, decode by the kernels unless exact: the predictor hears of both.
        assert counters["foresight_steps"] == (0 if predictor is None else counters["layer_steps"] - 1)
        assert offload_of(model).engine.foresight_failure == ""
    finally:
        close(model)
    return [int(token) for token in out[0]]


@pytest.mark.parametrize("exact", [False, True])
def test_foresight_changes_no_token(monkeypatch: pytest.MonkeyPatch, exact: bool) -> None:
    plain = tokens_with(None, monkeypatch, exact)
    assert tokens_with(untrained(), monkeypatch, exact) == plain


def test_a_predictor_of_another_geometry_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LOAD, "_predictor", lambda *_: untrained(layers=11))
    with pytest.raises(InvalidArgument, match=r"11 layers.*this model has 12 layers"):
        load("reference-moe", slots=60, system="prophet")


def test_names_and_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no predictor 'nobody'"):
        load("reference-moe", slots=60, predictor="nobody")
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"\x10\x00\x00\x00\x00\x00\x00\x00not a header....")
    with pytest.raises(ValueError, match="broken"):
        load("reference-moe", slots=60, predictor=broken)
    with pytest.raises(InvalidArgument, match="system lru makes no use of a predictor"):
        load("reference-moe", slots=60, system="lru", predictor=broken)
