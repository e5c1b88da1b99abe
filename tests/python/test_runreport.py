"""The run report: its keys, and its figures from marks made by hand."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prophet_moe.runreport import COUNTERS, Foresight, Held, Mark, build_report, percentile

KEYS = {
    "model": None,
    "backend": None,
    "system": None,
    "exact": None,
    "budget_bytes": None,
    "expert_slots": None,
    "experts_total": None,
    "expert_bytes": None,
    "prompt_tokens": None,
    "new_tokens": None,
    "token_ids": None,
    "text": None,
    "ttft_ms": None,
    "tpot_ms": ["mean", "p50", "p90", "p99", "p999"],
    "bytes": [
        "demand",
        "prefetch_used",
        "prefetch_late",
        "prefetch_wasted",
        "cancelled",
        "unused",
        "per_token",
    ],
    "host_pool": None,
    "hits": ["resident", "in_flight", "miss"],
    "stall_ms": ["total", "p50", "p99"],
    "overlap_fraction": None,
    "link_busy_fraction": None,
    "evictions": None,
    "evicted_before_use": None,
    "foresight": ["predictor", "steps", "ms_per_token", "share_of_tpot", "held", "failure"],
    "peak_rss_bytes": None,
}
FACTS: dict[str, Any] = {
    "model": "m",
    "backend": "cpu",
    "system": "lru",
    "exact": False,
    "budget_bytes": 1,
    "expert_slots": 2,
    "experts_total": 4,
    "expert_bytes": 10,
    "prompt_tokens": 3,
    "text": "é",
    "peak_rss_bytes": 5,
}


def mark(at_ms: float, **counters: int) -> Mark:
    return Mark(int(at_ms * 1e6), dict.fromkeys(COUNTERS, 0) | counters)


def test_keys_are_the_schema_in_order() -> None:
    one = build_report(mark(0), [mark(1)], token_ids=[1], predictor="bank", **FACTS)
    found = json.loads(one.to_json())
    assert list(found) == list(KEYS)
    for key, inner in KEYS.items():
        if inner is not None:
            assert list(found[key]) == inner
    assert list(found["foresight"]["held"]) == ["eviction", "prefetch"]
    without = build_report(mark(0), [mark(1)], token_ids=[1], **FACTS)
    assert without.foresight is None
    assert list(without.to_dict()) == list(KEYS)


def test_figures() -> None:
    begun = mark(0, bytes_moved=1000, bytes_demand=1000, stall_ns=5_000_000, misses=7)
    first = {"bytes_moved": 1600, "bytes_demand": 1600, "busy_ns": 50_000_000, "stall_ns": 45_000_000}
    second = {"bytes_moved": 1740, "bytes_demand": 1700, "bytes_prefetch_used": 40, "busy_ns": 60_000_000}
    third = second | {
        "bytes_moved": 1840,
        "bytes_prefetch_late": 20,
        "bytes_prefetch_wasted": 40,
        "bytes_cancelled": 10,
        "bytes_prefetch_unused": 30,
        "busy_ns": 70_000_000,
    }
    marks = [
        mark(100, misses=10, hits_resident=5, **first),
        mark(110, misses=11, stall_ns=47_000_000, **second),
        mark(
            140,
            stall_ns=53_000_000,
            misses=12,
            hits_resident=15,
            hits_in_flight=3,
            evictions=9,
            evicted_before_use=2,
            **third,
        ),
    ]
    found = build_report(begun, marks, token_ids=[4, 5, 6], **FACTS)
    assert found.ttft_ms == 100
    assert found.tpot_ms.mean == 20
    assert found.tpot_ms.p50 == 20
    assert found.tpot_ms.p99 == pytest.approx(29.8)
    assert (found.bytes.demand, found.bytes.prefetch_used, found.bytes.prefetch_late) == (700, 40, 20)
    assert (found.bytes.prefetch_wasted, found.bytes.cancelled, found.bytes.unused) == (40, 10, 30)
    assert found.bytes.per_token == (140 + 100) / 2, "of decode steps, the prefill's are not in it"
    assert found.bytes.moved == 840, "the six parts sum to what moved"
    assert (found.hits.resident, found.hits.in_flight, found.hits.miss) == (15, 3, 5)
    assert found.hit_rate == 15 / 23
    assert found.stall_ms.total == 48
    assert found.stall_ms.p50 == 4
    assert found.overlap_fraction == pytest.approx(1 - 48 / 70)
    assert found.link_busy_fraction == 0.5
    assert (found.evictions, found.evicted_before_use, found.new_tokens) == (9, 2, 3)


def test_foresight_is_counted_over_the_run_and_timed_over_decode_steps() -> None:
    seen = {"foresight_steps": 8, "foresight_held_steps": 1, "prefetch_held_steps": 0}
    marks = [
        mark(100, foresight_ns=9_000_000, **seen),
        mark(110, foresight_ns=9_100_000, **{**seen, "foresight_steps": 20}),
        mark(140, foresight_ns=9_400_000, foresight_steps=32, foresight_held_steps=4, prefetch_held_steps=16),
    ]
    begun = mark(0, foresight_ns=4_000_000)
    facts = FACTS | {"predictor": "bank", "foresight_failure": ""}
    found = build_report(begun, marks, token_ids=[4, 5, 6], **facts).foresight
    assert found is not None
    assert found == Foresight("bank", 32, pytest.approx(0.2), pytest.approx(0.01), Held(4, 16), None)
    told = found.told()
    assert told is not None
    assert "eviction in 12% of 32 layer steps, prefetching in 50% of 32 layer steps" in told
    failed = build_report(begun, marks[:1], token_ids=[4], **facts | {"foresight_failure": "it broke"})
    assert failed.foresight is not None
    assert (failed.foresight.failure, failed.foresight.ms_per_token) == ("it broke", None)


def test_foresight_that_was_never_held_back_has_nothing_to_tell() -> None:
    assert Foresight("bank", 32, 0.1, 0.01, Held(0, 0), None).told() is None
    assert Foresight("bank", 0, None, None, Held(0, 0), "it broke at once").told() is None


def test_nothing_moved_and_nothing_decoded_is_null_not_zero() -> None:
    one = build_report(mark(0), [mark(5)], token_ids=[1], **FACTS)
    assert one.overlap_fraction is None
    assert one.hit_rate is None
    assert one.bytes.per_token is None
    assert one.tpot_ms.mean is None
    none = build_report(mark(3), [], token_ids=[], **FACTS)
    assert none.ttft_ms is None
    assert none.link_busy_fraction is None
    json.loads(none.to_json())


def test_fractions_are_clamped() -> None:
    """Several lanes can be busy, and waited for, longer than the clock ran."""
    found = build_report(mark(0), [mark(1, busy_ns=9_000_000, stall_ns=20_000_000)], token_ids=[1], **FACTS)
    assert (found.overlap_fraction, found.link_busy_fraction) == (0, 1)


@given(st.lists(st.floats(0, 1e6), min_size=1), st.floats(0, 1))
def test_percentile_lies_within_and_counts_right(values: list[float], share: float) -> None:
    found = percentile(values, share)
    assert found is not None
    assert min(values) <= found <= max(values)
    assert sum(value <= found + 1e-6 for value in values) >= int(share * (len(values) - 1))


def test_percentile_of_nothing() -> None:
    assert percentile([], 0.5) is None


@pytest.mark.parametrize(("backend", "there"), [("cpu", False), ("cuda", True), ("cuda (emulated)", True)])
def test_the_pool_below_a_device_is_counted_where_there_is_one(backend: str, there: bool) -> None:
    begun, end = mark(0, bytes_staged=5, bytes_found_staged=2), mark(1, bytes_staged=45, bytes_found_staged=9)
    found = build_report(begun, [end], token_ids=[1], **{**FACTS, "backend": backend})
    told = {"bytes_staged": 40, "bytes_found_staged": 7}
    assert found.to_dict()["host_pool"] == (told if there else None)
