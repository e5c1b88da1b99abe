"""Scores against plain loops, the control that is told the answer, and calibration of known distortions."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from predict_routes import EXPERTS, LAYERS, TOP_K, stream

from prophet_moe.errors import InvalidArgument
from prophet_moe.predict.calibrate import LIMITS, Calibration, calibrate, temperature
from prophet_moe.predict.features import Rows, gaps
from prophet_moe.predict.outputs import Outputs, sigmoid
from prophet_moe.predict.score import baselines, calibration_error, domains, reliability, score, score_ahead


def plain(p, chosen, dominant, k, resident):
    out = dict.fromkeys(("top1", "dominant", "recall_k", "recall_2k", "exact", "brier"), 0.0)
    covered = wanted = both = firm = true = 0
    for row in range(len(p)):
        order = sorted(range(EXPERTS), key=lambda e: (-p[row, e], e))
        truth = set(np.flatnonzero(chosen[row]))
        out["top1"] += order[0] in truth
        out["dominant"] += order[0] == dominant[row]
        out["recall_k"] += len(truth & set(order[:k])) / len(truth)
        out["recall_2k"] += len(truth & set(order[: 2 * k])) / len(truth)
        out["exact"] += truth == set(order[:k])
        out["brier"] += float(((p[row] - chosen[row]) ** 2).mean())
        absent = [e for e in order if not resident[row, e]]
        covered += len(truth & set(absent[:2]))
        wanted += len(truth & set(absent))
        said = {e for e in range(EXPERTS) if p[row, e] >= 0.5}
        both, firm, true = both + len(said & truth), firm + len(said), true + len(truth)
    out = {name: value / len(p) for name, value in out.items()}
    return out | {"f1": 2 * both / (firm + true), "coverage": covered / max(wanted, 1)}


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000))
def test_scores_are_what_their_names_say(seed):
    rng = np.random.default_rng(seed)
    chosen = np.zeros((20, EXPERTS), bool)
    for row in chosen:
        row[rng.choice(EXPERTS, TOP_K, replace=False)] = True
    dominant = chosen.argmax(1)
    p = rng.integers(0, 5, chosen.shape) / 4  # many ties
    resident = rng.random(chosen.shape) < 0.4
    got = score(p.astype(np.float32), chosen, dominant, TOP_K, resident)
    want = plain(p, chosen, dominant, TOP_K, resident)
    for name, value in want.items():
        mine = got.coverage[2] if name == "coverage" else getattr(got, name)
        assert mine == pytest.approx(value, abs=1e-6), name


def test_forecasting_the_present_reads_one_hundred_percent():
    s = stream(120)
    resident = np.random.default_rng(0).random((120, LAYERS, EXPERTS)) < 0.3
    out = score_ahead(s, baselines(s, s, 2)["zero staleness"], resident)
    for horizon in out.values():
        for part in (horizon["all"], *horizon["layers"].values(), *horizon["domains"].values()):
            for name in ("top1", "recall_k", "recall_2k", "exact", "f1"):
                assert part[name] == 1.0
            assert part["brier"] == part["ece"] == 0.0
            assert part["coverage"]["2"] == 1.0


def test_baselines_order_as_their_knowledge_does():
    train, s = stream(1500, 1), stream(600, 2)
    out = {name: score_ahead(s, p)["1"]["all"]["recall_k"] for name, p in baselines(train, s, 2).items()}
    assert out["static-hot"] < out["Markov"] < out["zero staleness"]
    assert out["previous token"] < out["zero staleness"]


def test_every_layer_horizon_and_domain_is_told_apart():
    s = stream(90)
    out = score_ahead(s, baselines(s, s, 2)["static-hot"])
    assert list(out) == ["1", "2"]
    assert list(out["2"]["layers"]) == ["2", "3"]
    assert set(out["1"]["domains"]) == {"prose", "code"}
    assert (domains(s) == np.repeat(["prose", "code"], [30, 60])).all()
    rows = sum(part["rows"] for part in out["1"]["domains"].values())
    assert rows == out["1"]["all"]["rows"] == 89 * (LAYERS - 1)


def test_a_reliability_table_and_its_error():
    p = np.array([[0.1, 0.1, 0.9, 0.9]])
    chosen = np.array([[False, False, True, False]])
    table = reliability(p, chosen)
    assert [(round(r["forecast"], 3), r["observed"], r["count"]) for r in table] == [
        (0.1, 0.0, 2),
        (0.9, 0.5, 2),
    ]
    assert calibration_error(table) == pytest.approx((0.1 + 0.4) / 2)


def test_refuses_what_cannot_be_scored():
    chosen = np.zeros((3, EXPERTS), bool)
    with pytest.raises(InvalidArgument, match="not finite"):
        score(np.full((3, EXPERTS), np.nan), chosen, np.zeros(3, int), TOP_K)
    with pytest.raises(InvalidArgument, match="differ in shape"):
        score(np.zeros((2, EXPERTS)), chosen, np.zeros(3, int), TOP_K)


@settings(max_examples=10, deadline=None)
@given(st.floats(0.3, 3.0), st.floats(-1.5, 1.5))
def test_temperature_finds_a_known_distortion(scale, shift):
    rng = np.random.default_rng(3)
    logit = rng.normal(0, 1.5, 60_000)
    label = rng.random(60_000) < sigmoid(logit * scale + shift)
    found = temperature(logit, label)
    assert found[0] == pytest.approx(scale, rel=0.06, abs=0.02)
    assert found[1] == pytest.approx(shift, abs=0.06)


def test_temperature_of_one_sided_labels_changes_nothing_and_broken_logits_are_refused():
    assert temperature(np.ones(5), np.ones(5, bool)) == (1.0, 0.0)
    with pytest.raises(InvalidArgument, match="cannot be calibrated"):
        temperature(np.array([np.nan, 1.0]), np.array([True, False]))


def test_calibration_repairs_overconfidence_and_estimates_the_truncated_gap():
    s = stream(1500, 5)
    rows, heads = Rows(s, (0.9,)), (1, 3, 8)
    share = np.stack([(gaps(s) <= h).mean(0) for h in heads], 1)  # [L, N, E], true frequencies
    honest = np.log(share / (1 - share))
    use = np.broadcast_to(honest * 3 + 0.5, (len(s), *honest.shape)).astype(np.float16)
    ahead = np.full((1, len(s), LAYERS, EXPERTS), -np.inf, np.float16)
    rate = s.selected().mean(0)
    ahead[0, 1:, 1:] = 2 * np.log(rate / (1 - rate))[1:]
    fit = calibrate(rows, Outputs(use, ahead), heads, stride=1)
    np.testing.assert_allclose(fit.next_use(use[:1])[0], share, atol=0.06)
    assert calibration_error(reliability(fit.look_ahead(ahead)[0, 1:, 1:], s.selected()[1:, 1:])) < 0.02
    for limit in (6.0, 8.0):
        true = np.minimum(gaps(s), limit)
        estimate = fit.gap(use, limit)
        assert estimate.mean() == pytest.approx(true.mean(), rel=0.01)
        assert ((estimate - true) ** 2).mean() < true.var()
    assert isinstance(fit, Calibration)
    assert fit.gap_weight.shape == (len(LIMITS), 4)
