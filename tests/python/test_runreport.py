"""The run report: its keys, and its figures from marks made by hand."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prophet_moe.runreport import COUNTERS, Mark, build_report, percentile

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
    "bytes": ["demand", "prefetch_used", "prefetch_late", "prefetch_wasted", "per_token"],
    "hits": ["resident", "in_flight", "miss"],
    "stall_ms": ["total", "p50", "p99"],
    "overlap_fraction": None,
    "link_busy_fraction": None,
    "evictions": None,
    "evicted_before_use": None,
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
    found = json.loads(build_report(mark(0), [mark(1)], token_ids=[1], **FACTS).to_json())
    assert list(found) == list(KEYS)
    for key, inner in KEYS.items():
        if inner is not None:
            assert list(found[key]) == inner


def test_figures() -> None:
    begun = mark(0, bytes_demand=1000, stall_ns=5_000_000, misses=7)
    marks = [
        mark(100, bytes_demand=1600, stall_ns=45_000_000, busy_ns=50_000_000, misses=10, hits_resident=5),
        mark(
            110, bytes_demand=1700, bytes_prefetch_used=40, stall_ns=47_000_000, busy_ns=60_000_000, misses=11
        ),
        mark(
            140,
            bytes_demand=1700,
            bytes_prefetch_used=40,
            bytes_prefetch_late=20,
            bytes_prefetch_wasted=40,
            stall_ns=53_000_000,
            busy_ns=70_000_000,
            misses=12,
            hits_resident=15,
            hits_in_flight=3,
            evictions=9,
            evicted_before_use=2,
        ),
    ]
    found = build_report(begun, marks, token_ids=[4, 5, 6], **FACTS)
    assert found.ttft_ms == 100
    assert found.tpot_ms.mean == 20
    assert found.tpot_ms.p50 == 20
    assert found.tpot_ms.p99 == pytest.approx(29.8)
    assert (found.bytes.demand, found.bytes.prefetch_used, found.bytes.prefetch_late) == (700, 40, 20)
    assert found.bytes.per_token == (100 + 40 + 20 + 40) / 2
    assert found.bytes_moved == 800
    assert (found.hits.resident, found.hits.in_flight, found.hits.miss) == (15, 3, 5)
    assert found.hit_rate == 15 / 23
    assert found.stall_ms.total == 48
    assert found.stall_ms.p50 == 4
    assert found.overlap_fraction == pytest.approx(1 - 48 / 70)
    assert found.link_busy_fraction == 0.5
    assert (found.evictions, found.evicted_before_use, found.new_tokens) == (9, 2, 3)


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
