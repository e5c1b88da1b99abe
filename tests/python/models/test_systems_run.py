"""Every system that a real run can be: the tokens are those of all experts in memory."""

from pathlib import Path
from typing import Any

import pytest
import torch

import prophet_moe
from prophet_moe.errors import InvalidArgument
from prophet_moe.models.offload import offload_of
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
