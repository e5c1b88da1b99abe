"""Greedy tokens and their log-probabilities with experts in slots are those of stock vLLM, bit for bit."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from vllm_runs import PROMPTS, Run, engine, report_of, run, said, sampling

import prophet_moe
from prophet_moe.errors import UnsupportedModelError

Ask = Callable[..., None]


def test_stock_vllm_is_left_alone(stock: Run) -> None:
    assert stock.report is None
    assert len({answer.tokens for answer in stock.said}) == len(PROMPTS)  # else equality would say little


def test_half_of_the_experts_in_slots(prophet: Ask, tiny: Path, stock: Run, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    prophet(SLOTS="50%", RECORDS=str(kept))
    half = run(tiny)
    assert half.said == stock.said
    assert half.report is not None
    assert (half.report["expert_slots"], half.report["experts_total"]) == (32, 64)
    assert half.report["layer_steps"] == 4 * 24
    assert half.report["hits"]["miss"] > 32  # some came more than once
    (file,) = kept.iterdir()
    written = file.stat().st_mtime_ns
    assert run(tiny).said == stock.said  # from the records of the first start
    assert file.stat().st_mtime_ns == written
    os.utime(tiny / "model.safetensors")
    assert run(tiny, tokens=1).said[0].tokens == stock.said[0].tokens[:1]
    assert file.stat().st_mtime_ns > written  # another checkpoint may lie there now


def test_as_few_slots_as_one_token_needs(prophet: Ask, tiny: Path, stock: Run) -> None:
    prophet(SLOTS=str(4 * 4), SYSTEM="lru")
    least = run(tiny)
    assert least.said == stock.said
    assert least.report is not None
    assert least.report["system"] == "lru"


def test_early_reads_that_are_used_late_or_in_vain(prophet: Ask, tiny: Path, stock: Run) -> None:
    prophet(SLOTS="50%", SYSTEM="moe-infinity")
    early = run(tiny)
    assert early.said == stock.said
    assert early.report is not None
    assert sum(bytes for kind, bytes in early.report["bytes"].items() if kind != "demand") > 0


def test_the_reference_model_with_its_predictor(prophet: Ask) -> None:
    reference = Path(prophet_moe.__file__).parent / "assets" / "reference-moe"
    plain = run(reference, tokens=16)
    prophet(SLOTS="50%", PREDICTOR="reference-moe")
    foreseen = run(reference, tokens=16)
    assert foreseen.said == plain.said
    assert foreseen.report is not None
    assert foreseen.report["system"] == "prophet"
    assert foreseen.report["expert_slots"] == 12 * 32 // 2


def test_requests_that_come_and_go(prophet: Ask, tiny: Path, stock: Run) -> None:
    """Continuous batching: a request joins at every step, three run at a time, lengths differ."""
    prophet(SLOTS="50%")
    with engine(tiny, max_num_seqs=3) as llm:
        lengths = [24, 3, 17, 1, 24, 9, 20, 12]
        waiting, done = list(enumerate(PROMPTS)), {}
        while waiting or llm.llm_engine.has_unfinished_requests():
            if waiting:
                number, prompt = waiting.pop(0)
                llm.llm_engine.add_request(str(number), prompt, sampling(lengths[number]))
            done |= {int(out.request_id): said(out) for out in llm.llm_engine.step() if out.finished}
        report = report_of(llm)
        layers = llm.llm_engine.vllm_config.__dict__["_prophet_slots"]._layers
    assert [layer.name.split(".")[2] for layer in layers] == list("0123"), "moved: the order of construction"
    for number, length in enumerate(lengths):
        assert done[number].tokens == stock.said[number].tokens[:length]
    assert report is not None
    assert report["layer_steps"] > 4 * 24


def test_eager_mode_is_asked_for(prophet: Ask, tiny: Path) -> None:
    prophet(SLOTS="50%")
    with pytest.raises(UnsupportedModelError, match="--enforce-eager"), engine(tiny, enforce_eager=False):
        pass


def test_dummy_weights_are_refused(prophet: Ask, tiny: Path) -> None:
    prophet(SLOTS="50%")
    with pytest.raises(Exception, match=r"dummy weights|expert 0 of"), engine(tiny, load_format="dummy"):
        pass
