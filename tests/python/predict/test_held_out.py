"""Splits by rule, what a predictor remembers of its data, and presets."""

import json

import pytest
from predict_routes import EXPERTS, LAYERS, TOP_K, record, stream

from prophet_moe.errors import InvalidArgument
from prophet_moe.formats.trace import TraceError, split_sequences
from prophet_moe.predict.bank import BankConfig
from prophet_moe.predict.held_out import HeldOut, digests, of_domains, relabel, seen
from prophet_moe.predict.paper import PaperConfig
from prophet_moe.predict.presets import SIZES, Design


@pytest.fixture(scope="module")
def trace(tmp_path_factory):
    return record(tmp_path_factory.mktemp("trace") / "toy.safetensors", sequences=10)


def test_a_rule_gives_the_same_parts_after_a_round_through_json(trace):
    for rule in (HeldOut("3", "20%", 7), HeldOut(test_domains=("prose",)), HeldOut(only=("code",))):
        again = HeldOut.from_dict(json.loads(json.dumps(rule.as_dict())))
        assert again == rule
        assert again.split(trace) == rule.split(trace)


def test_no_sequence_is_in_two_parts_and_shares_are_what_they_say(trace):
    split = HeldOut("30%", "2").split(trace)
    assert (len(split.test), len(split.val)) == (3, 2)
    parts = (*split.train, *split.val, *split.test, *split.dropped)
    assert sorted(parts) == list(range(10))
    assert split == split_sequences(trace, 3, 2, 0)


def test_domains_are_held_out_or_used_alone(trace):
    held = HeldOut(test_domains=("code",)).split(trace)
    assert sorted(held.test) == of_domains(trace, ("code",))
    alone = HeldOut(only=("code",)).split(trace)
    assert sorted((*alone.train, *alone.val, *alone.test)) == of_domains(trace, ("code",))


def test_rules_from_older_files_and_with_numbers_are_understood():
    assert HeldOut.from_dict({"test": 60, "val": 30, "seed": 0}) == HeldOut("60", "30", 0)
    assert HeldOut.from_dict({"unknown": 1}) == HeldOut()
    assert HeldOut("5").changed({"val": None, "seed": 3}) == HeldOut("5", seed=3)


def test_what_was_learned_from_is_recognised_in_another_file(trace, tmp_path):
    training = {"seen": digests(trace, (2, 5))}
    assert seen(trace, range(10), training) == [2, 5]
    other = record(tmp_path / "other.safetensors", hidden=3, sequences=6)
    assert seen(other, range(6), training) == [2, 5]
    assert seen(trace, range(10), {}) == []


def test_another_note_can_name_the_domain(tmp_path):
    trace = record(tmp_path / "t.safetensors", sequences=6)
    relabel(trace, "source")
    assert of_domains(trace, ("book 2",)) == [2, 5]
    with pytest.raises(TraceError, match="no sequence has a note 'mood'; their notes are label, source"):
        relabel(trace, "mood")


@pytest.mark.parametrize("kind", ["bank", "transformer"])
@pytest.mark.parametrize("size", ["small", "medium", "large", "24"])
def test_every_preset_is_a_network(kind, size):
    options = Design(kind, size, horizons=2).network_options()
    config = (BankConfig if kind == "bank" else PaperConfig)(LAYERS, EXPERTS, TOP_K, **options)
    assert config.ahead == 2
    width = config.rank if kind == "bank" else config.width
    named = SIZES[kind].get(size, {"rank": 24, "width": 24})
    assert width == named["rank" if kind == "bank" else "width"]


def test_a_recipe_fits_the_heads_and_refuses_unknown_settings():
    assert Design().recipe(steps=5, seconds=None).steps == 5
    assert len(Design(options={"heads": (1, 2)}).recipe().head_weights) == 2
    with pytest.raises(InvalidArgument, match="no such setting"):
        Design().recipe(speed=3)
    for wrong in (Design(context=-1), Design(horizons=-1), Design(size="0")):
        with pytest.raises(InvalidArgument):
            wrong.network_options()


def test_fingerprints_differ_between_sequences(trace):
    found = digests(trace, range(10))
    assert len(set(found)) == 10
    assert len(stream(20).experts) == 20
