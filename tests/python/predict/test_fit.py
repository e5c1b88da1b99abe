"""From a trace on disk to a predictor file and its figures, and what is refused on the way."""

import json

import numpy as np
import pytest
from predict_routes import EXPERTS, LAYERS, TOP_K, record, stream

from prophet_moe.errors import InvalidArgument
from prophet_moe.formats.trace import Split, TraceError
from prophet_moe.predict.evaluate import evaluate
from prophet_moe.predict.export import PredictorError, load, save
from prophet_moe.predict.features import fingerprint, stream_of
from prophet_moe.predict.fit import fit, network
from prophet_moe.predict.train import Recipe

OPTIONS = {"rank": 16, "decays": (0.5, 0.8, 0.95), "bank": (1, 2), "heads": (1, 3, 8), "ahead": 2}
RECIPE = Recipe(steps=60, windows=8, tokens=6, span=3, warm=5, head_weights=(3, 2, 2), every=30, rate=5e-3)
SPLIT = Split((0, 1, 2, 3), (4, 5), (6, 7), ())


@pytest.fixture(scope="module")
def trace(tmp_path_factory):
    return record(tmp_path_factory.mktemp("trace") / "toy.safetensors")


@pytest.fixture(scope="module")
def with_hidden(tmp_path_factory):
    return record(tmp_path_factory.mktemp("trace") / "hidden.safetensors", 5)


def test_a_stream_is_the_named_sequences_in_their_order(trace):
    got = stream_of(trace, (5, 2))
    assert (got.experts == np.concatenate([stream(155, 5).experts, stream(152, 2).experts])).all()
    assert list(got.starts) == [0, 155, 307]
    assert list(got.labels) == ["prose", "code"]
    np.testing.assert_allclose(got.gate[:155], stream(155, 5).gate, atol=1e-3)


def test_a_predictor_knows_what_it_was_made_of_and_scores_sequences_it_never_saw(trace, tmp_path):
    made = fit(trace, SPLIT, RECIPE, options=OPTIONS)
    assert made.model == "toy"
    assert made.training["tokens"] == 150 + 151 + 152 + 153
    assert made.training["sha256"] == fingerprint(stream_of(trace, SPLIT.train))
    assert made.training["domains"] == ["code", "prose"]
    assert [f for f, _ in made.limit_of_slots] == [0.25, 0.375, 0.5, 0.75]
    save(made, tmp_path / "p")
    report = evaluate(load(tmp_path / "p"), trace, SPLIT, exact=True)
    eviction, ahead = report["eviction"], report["ahead"]
    assert report["tokens"] == 156 + 157
    for mine, bound in zip(eviction["prophet"], eviction["clairvoyant"], strict=True):
        assert bound <= mine <= 1
    assert set(eviction["policies"]) >= {"lru", "average .95", "averages .8 .9 .98 + popularity"}
    mine, hot = (ahead[name]["1"]["all"] for name in ("prophet", "static-hot"))
    assert mine["recall_k"] > hot["recall_k"]
    assert mine["brier"] < hot["brier"]
    assert ahead["zero staleness"]["1"]["all"]["exact"] == 1.0
    assert set(ahead["prophet"]["2"]["domains"]) == {"code", "prose"}
    json.dumps(report)


@pytest.mark.parametrize(("kind", "inputs"), [("bank", "both"), ("bank", "hidden"), ("transformer", "both")])
def test_hidden_states_enter_when_they_were_recorded(with_hidden, kind, inputs, tmp_path):
    options = (
        OPTIONS if kind == "bank" else {"width": 8, "depth": 1, "attention_heads": 2, "heads": (1, 3, 8)}
    )
    made = fit(with_hidden, SPLIT, RECIPE, kind, inputs, options)
    assert made.net.config.hidden == 5
    assert made.net.config.history == (inputs == "both")
    save(made, tmp_path / "p")
    assert evaluate(load(tmp_path / "p"), with_hidden, SPLIT)["tokens"] == 156 + 157


def test_what_a_trace_does_not_have_is_refused_with_the_way_out(trace):
    with pytest.raises(TraceError, match="has no gate_input: record a trace that includes it"):
        fit(trace, SPLIT, RECIPE, inputs="both", options=OPTIONS)
    with pytest.raises(InvalidArgument, match="record the trace with hidden states"):
        network(stream(20), "bank", "both", {}, 0)
    with pytest.raises(InvalidArgument, match="hold some out"):
        fit(trace, Split((0,), (), (1,), ()), RECIPE)
    with pytest.raises(InvalidArgument, match="at least one sequence"):
        stream_of(trace, ())
    with pytest.raises(InvalidArgument, match="no such option"):
        network(stream(20), "bank", "history", {"depth": 3}, 0)
    with pytest.raises(InvalidArgument, match="not 'oracle'"):
        network(stream(20), "oracle", "history", {}, 0)
    with pytest.raises(InvalidArgument, match="not 'tokens'"):
        network(stream(20), "bank", "tokens", {}, 0)


def test_a_predictor_of_another_model_is_not_scored(trace, tmp_path):
    other = network(stream(20), "bank", "history", OPTIONS, 0)
    made = fit(trace, SPLIT, RECIPE, options=OPTIONS)
    made.net = type(other)(type(other.config)(LAYERS + 1, EXPERTS, TOP_K, **OPTIONS))
    with pytest.raises(PredictorError, match="Train one with"):
        evaluate(made, trace, SPLIT)


def test_more_layers_ahead_than_a_model_has_are_refused(trace):
    with pytest.raises(InvalidArgument, match=f"a model with {LAYERS} MoE layers has at most {LAYERS - 1}"):
        network(stream(20), "bank", "history", {"ahead": LAYERS}, 0)


def test_a_refit_learns_from_the_sequences_for_choices_and_keeps_what_was_chosen(trace):
    first = fit(trace, SPLIT, RECIPE, options=OPTIONS)
    second = fit(trace, SPLIT, RECIPE, options=OPTIONS, refit=True)
    assert second.training["sequences"] == len(SPLIT.train) + len(SPLIT.val)
    assert second.training["tokens"] == first.training["tokens"] + 154 + 155
    np.testing.assert_array_equal(second.calibration.gap_weight, first.calibration.gap_weight)
    assert not np.array_equal(second.net.mix.detach(), first.net.mix.detach())


def test_training_can_begin_with_the_weights_of_another(trace, tmp_path):
    made = fit(trace, SPLIT, RECIPE, options=OPTIONS)
    save(made, tmp_path / "p")
    still = Recipe(steps=1, rate=0.0, windows=2, tokens=4, head_weights=(1, 1, 1))
    again = fit(trace, SPLIT, still, "transformer", start=load(tmp_path / "p"))
    assert again.kind == "bank"
    assert again.training["started from"] == made.training["sha256"]
    for name, value in load(tmp_path / "p").net.state_dict().items():
        np.testing.assert_allclose(again.net.state_dict()[name], value, atol=1e-6)
    other = network(stream(20), "bank", "history", OPTIONS, 0)
    made.net = type(other)(type(other.config)(LAYERS + 1, EXPERTS, TOP_K, **OPTIONS))
    with pytest.raises(PredictorError, match="Train one with"):
        fit(trace, SPLIT, still, start=made)


def test_a_network_that_learned_to_do_without_hidden_states_can_be_kept_from_them(
    trace, with_hidden, tmp_path
):
    made = fit(with_hidden, SPLIT, RECIPE, inputs="both", options={**OPTIONS, "drop_read": 0.5})
    save(made, tmp_path / "p")
    made = load(tmp_path / "p")
    assert made.net.config.drop_read == 0.5
    seeing, blind = (evaluate(made, with_hidden, SPLIT, blind=b) for b in (False, True))
    assert seeing["ahead"]["prophet"]["1"] != blind["ahead"]["prophet"]["1"]
    one, two = (report["ahead"]["Markov"]["1"]["all"]["brier"] for report in (seeing, blind))
    assert one == two
    with pytest.raises(InvalidArgument, match="record a trace with them, or score it blind"):
        evaluate(made, trace, SPLIT)
    assert evaluate(made, trace, SPLIT, blind=True)["blind"]
    alone = fit(with_hidden, SPLIT, RECIPE, inputs="hidden", options=OPTIONS)
    with pytest.raises(InvalidArgument, match="sees hidden states alone"):
        evaluate(alone, with_hidden, SPLIT, blind=True)
