"""Every system that a real run can be: the tokens are those of all experts in memory."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import prophet_moe
from prophet_moe.errors import InvalidArgument
from prophet_moe.formats.trace import MODELS_OWN
from prophet_moe.models.offload import offload_of
from prophet_moe.predict import layer_mlp, text_network
from prophet_moe.systems import SYSTEMS, runnable

IDS = torch.tensor([[5, 17, 3, 99, 41]])
GIVEN = [name for name in runnable() if not SYSTEMS[name].trained]


@pytest.fixture(scope="module")
def expected() -> Any:
    model = prophet_moe.load("reference-moe", slots="100%", context=64)
    tokens = model.generate(IDS, max_new_tokens=12, do_sample=False)
    prophet_moe.close(model)
    return tokens


@pytest.mark.parametrize("system", [*GIVEN, "prophet"])
def test_a_system_changes_no_token(expected: Any, system: str) -> None:
    model = prophet_moe.load("reference-moe", slots="25%", context=64, system=system)
    try:
        assert torch.equal(model.generate(IDS, max_new_tokens=12, do_sample=False), expected)
        engine = offload_of(model).engine
        counters = engine.counters()
        assert engine.foresight_failure == ""
        assert bool(engine.predictor) == (SYSTEMS[system].predictor != "")
        if SYSTEMS[system].predictor:
            assert counters["foresight_steps"] > 0
    finally:
        prophet_moe.close(model)


def test_a_trained_rival_asks_for_its_file(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="duoserve needs a predictor"):
        prophet_moe.load("reference-moe", slots="25%", context=64, system="duoserve")


@pytest.fixture(params=["expertflow", "pre-attention"])
def untrained(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Path]:
    """A system that hears of a layer before it runs, and a random network for it."""
    system, path = str(request.param), tmp_path / "random.safetensors"
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"system": system, "layers": 12, "experts": 32, "top_k": 4, "training": {}}
    if system == "expertflow":
        net = text_network.Network(200, 8, 16, 12 * 32)
        text_network.save(
            text_network.TextNetwork(
                **sizes, vocabulary=200, embedding=8, width=16, numbering=MODELS_OWN,
                tensors=text_network._tensors(net),
            ),
            path,
        )  # fmt: skip
        return system, path
    random = np.random.default_rng(0)
    shapes = {"enter.weight": (12, 192, 16), "enter.bias": (12, 16), "leave.weight": (12, 16, 32)}
    tensors = {
        name: random.standard_normal(shape).astype(np.float32)
        for name, shape in (shapes | {"leave.bias": (12, 32)}).items()
    }
    made = layer_mlp.LayerMlp(**sizes, stride=0, context=0, hidden=192, tensors=tensors)
    layer_mlp.save(made, path)
    return system, path


def test_what_hears_of_layers_before_they_run_brings_early_and_changes_no_token(
    expected: Any, untrained: tuple[str, Path]
) -> None:
    system, path = untrained
    model = prophet_moe.load("reference-moe", slots="25%", context=64, system=system, predictor=str(path))
    try:
        assert torch.equal(model.generate(IDS, max_new_tokens=12, do_sample=False), expected)
        engine = offload_of(model).engine
        assert engine.foresight_failure == ""
        counters = engine.counters()
        early = ("used", "late", "wasted", "unused")
        assert sum(counters[f"bytes_prefetch_{outcome}"] for outcome in early) > 0
    finally:
        prophet_moe.close(model)
