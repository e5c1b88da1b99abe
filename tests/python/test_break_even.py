"""From which concurrency on caching stops paying."""

import pytest

from prophet_moe.break_even import Point, stops_at, verdicts


@pytest.mark.parametrize(
    ("ratio", "stop"),
    [
        ({1: 0.5, 4: 0.8, 16: 0.89}, None),
        ({1: 0.5, 4: 0.8, 16: 0.91}, 16),
        ({1: 0.5, 4: 0.95, 16: 0.97}, 4),
        ({1: 0.5, 4: 0.95, 16: 0.85}, None),  # noise in between is not the end
        ({1: 1.2, 4: 1.1}, 1),
        ({1: 0.9}, None),
    ],
)
def test_it_stops_where_it_never_pays_again(ratio: dict[int, float], stop: int | None) -> None:
    assert stops_at(ratio) == stop


def test_sentences_name_the_criterion_and_every_ratio() -> None:
    points = [
        Point("on-demand", 1, 10.0), Point("on-demand", 8, 20.0),
        Point("lru", 1, 5.0), Point("lru", 8, 19.0), Point("prophet", 1, 4.0), Point("prophet", 8, 10.0),
    ]  # fmt: skip
    lru, prophet = verdicts(points)[:2]
    assert lru.startswith("from concurrency 8 on, expert caching by lru stops paying on this machine")
    assert "0.50 at 1, 0.95 at 8" in lru
    assert "0.90 counts" in lru
    assert prophet.startswith("expert caching by prophet pays on this machine up to concurrency 8")
    assert verdicts(points[2:]) == []


def test_foresight_is_held_against_the_best_rule_without_it() -> None:
    points = [
        Point("expected-next-use", 1, 10.0), Point("expected-next-use", 4, 20.0),
        Point("prophet", 1, 8.0), Point("prophet", 4, 20.4),
    ]  # fmt: skip
    (said,) = verdicts(points)
    assert said.startswith("from concurrency 4 on, foresight (prophet) stops paying")
    assert "0.80 at 1, 1.02 at 4" in said
