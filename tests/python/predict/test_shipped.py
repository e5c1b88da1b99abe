"""The predictors inside the package: they load, say what they are, and run in the native runtime."""

import numpy as np
import pytest

from prophet_moe.predict.bank import Bank
from prophet_moe.predict.export import PredictorError, load, native
from prophet_moe.predict.held_out import HeldOut
from prophet_moe.predict.shipped import find, matching, names


@pytest.mark.parametrize("name", names())
def test_a_shipped_predictor_says_what_it_is(name):
    path = find(name)
    made = load(path)
    assert isinstance(made.net, Bank)
    assert made.model
    assert made.training["tokens"] > 10_000
    assert len(made.training["sha256"]) == 64
    assert len(made.training["seen"]) >= made.training["sequences"]
    assert HeldOut.from_dict(made.training["split"]).test
    assert made.scores["eviction"]["slots"] == [0.25, 0.375, 0.5, 0.75]
    card = path.with_suffix(".md").read_text()
    for word in ("licence", "trained on", "not for"):
        assert word in card.lower()
    assert path.stat().st_size < 16e6


@pytest.mark.parametrize("name", names())
def test_a_shipped_predictor_runs(name):
    runtime, c = native(find(name), 0.25), load(find(name)).net.config
    rng = np.random.default_rng(0)
    for layer in range(c.layers):
        ids = rng.choice(c.experts, (1, c.top_k), replace=False).astype(np.int32)
        runtime.observe(layer, ids)
        gaps = runtime.next_use(layer)
        assert np.isfinite(gaps).all()
        assert (gaps >= 1).all()
        assert gaps.std() > 0
    assert matching(c.layers, c.experts, c.top_k) == find(name)


def test_both_models_have_one():
    assert names() == ["gpt-oss-20b", "reference-moe"]
    assert matching(12, 32, 4) == find("reference-moe")
    assert find("reference-moe").stat().st_size <= 3e6
    assert matching(24, 32, 4) == find("gpt-oss-20b")
    assert matching(3, 7, 2) is None


def test_an_unknown_name_lists_the_known_ones(tmp_path):
    with pytest.raises(PredictorError, match=r"no predictor 'oracle'.*gpt-oss-20b"):
        find("oracle")
    here = tmp_path / "mine"
    here.write_bytes(b"")
    assert find(str(here)) == here
