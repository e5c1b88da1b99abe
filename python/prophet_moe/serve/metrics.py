"""Prometheus metrics in the words of the run report (docs/formats.md).

What the engine counts is read when it is scraped; what requests do is counted here. Sizes are bytes;
Prometheus wants seconds, so `stall_ns` is `prophet_stall_seconds_total`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from prophet_moe.runreport import COUNTERS

STEPS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60)
OUTCOMES = ("stop", "length", "cancelled", "failed", "refused")
_GAUGES = {"bytes_prefetch_unused"}  # what waits in slots goes down as it is used


class _Engine(Collector):
    """Engine.counters() and a few sizes, as they are at the scrape."""

    def __init__(
        self, counters: Callable[[], Mapping[str, int]], gauges: Callable[[], Mapping[str, float]]
    ) -> None:
        self._counters, self._gauges = counters, gauges

    def collect(self) -> Iterable[Metric]:
        found = self._counters()
        for key in COUNTERS:
            if key not in found:
                continue
            name, value = key, float(found[key])
            if key.endswith("_ns"):
                name, value = key.removesuffix("_ns") + "_seconds", found[key] / 1e9
            kind = GaugeMetricFamily if key in _GAUGES else CounterMetricFamily
            yield kind(f"prophet_{name}", f"{key} of the run report", value=value)
        for name, value in self._gauges().items():
            yield GaugeMetricFamily(f"prophet_{name}", name.replace("_", " "), value=value)


@dataclass
class Waited:
    """What clients have waited for tokens of one kind, together."""

    tokens: int = 0
    seconds: float = 0.0


class Metrics:
    """One registry of its own, so that a process can hold several servers."""

    def __init__(
        self, counters: Callable[[], Mapping[str, int]], gauges: Callable[[], Mapping[str, float]]
    ) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "prophet_requests", "requests by what ended them", ["outcome"], registry=self.registry
        )
        for outcome in OUTCOMES:
            self._requests.labels(outcome)
        self._prompt = Counter("prophet_prompt_tokens", "tokens of prompts taken", registry=self.registry)
        self._new = Counter("prophet_new_tokens", "tokens generated", registry=self.registry)
        self._ttft = Histogram(
            "prophet_ttft_seconds",
            "from the coming of a request to its first token, waiting included",
            buckets=STEPS,
            registry=self.registry,
        )
        self._tpot = Histogram(
            "prophet_tpot_seconds",
            "between two tokens of a request",
            buckets=STEPS,
            registry=self.registry,
        )
        self.registry.register(_Engine(counters, gauges))
        self.first, self.later = Waited(), Waited()  # tokens of a request

    def prompt(self, tokens: int) -> None:
        self._prompt.inc(tokens)

    def token(self, seconds: float, *, first: bool) -> None:
        """A token that came `seconds` after the one before, or after its request."""
        self._new.inc()
        (self._ttft if first else self._tpot).observe(seconds)
        waited = self.first if first else self.later
        waited.tokens += 1
        waited.seconds += seconds

    def ended(self, outcome: str) -> None:
        """One of OUTCOMES."""
        self._requests.labels(outcome).inc()

    def page(self) -> bytes:
        """The text that a scraper reads."""
        return bytes(generate_latest(self.registry))
