"""What analyses, scores, loads and timelines answer, in one sentence each; LackingError where they cannot."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from prophet_moe.results_page.answers import LackingError, number
from prophet_moe.results_page.load import Load
from prophet_moe.results_page.sources import Facts
from prophet_moe.results_page.steps import Steps

OWN, RECALL = "prophet", "recall_k"
FORMS = {"dominant": "dominant expert", "member": "one expert of the set"}


def information(found: Facts) -> str:
    """Bits between layers, with both of the usual denominators."""
    if not found["cross_layer"]:
        raise LackingError("the trace has one layer")
    ends = [found["cross_layer"][0], found["cross_layer"][-1]][: len(found["cross_layer"])]
    parts = []
    for one in ends if ends[0] is not ends[-1] else ends[:1]:
        bits = one["forms"]["dominant"]
        low, high = bits["interval"] or (bits["corrected"], bits["corrected"])
        parts.append(
            f"{one['distance']} ahead {bits['corrected']:.3f} bits ({low:.3f} to {high:.3f}), "
            f"{bits['of_entropy']:.1%} of the "
            f"later layer's entropy of {bits['target_entropy']:.2f} bits and {bits['of_maximum']:.1%} of "
            "log2 of the experts"
        )
    first = ends[0]["forms"]["dominant"]
    return (
        f"Dominant expert ({found['dominant_by']}), {'; '.join(parts)}. Plug-in {first['plug_in']:.3f}, "
        "Miller-Madow "
        f"{first['miller_madow']:.3f}, a shuffled null of {first['null']:.3f} subtracted; intervals by "
        "resampling whole "
        f"sequences. The whole set tells {ends[0]['whole_set']['of_entropy']:.1%} one layer ahead, a lower "
        "bound. What hidden "
        "states add is what a predictor that reads them adds in prophet score."
    )


def routing_drift(found: Facts) -> str:
    domains = found.get("domains")
    if not domains or len(domains["domains"]) < 2:
        raise LackingError("the trace has fewer than two domains")
    context = found.get("context")
    along = ""
    if context and context["from_first"]:
        along = (
            f" Along the context {context['from_first'][-1]:.3f} from the first window to the last "
            f"({context['by_chance'][-1]:.3f} by chance)."
        )
    return (
        f"Popularity of two of {len(domains['domains'])} domains differs by {domains['mean']:.3f} bits "
        "(Jensen-Shannon, mean over "
        f"layers and pairs), {domains['shuffled']:.3f} where labels are shuffled.{along}"
    )


def forecasts(found: Facts) -> str:
    """Each metric by its name, as they are easily confused."""
    horizons = found["ahead"][OWN]
    if not horizons:
        raise LackingError("this predictor forecasts no layers ahead")
    parts = []
    for ahead, part in horizons.items():
        one = part["all"]
        covered = list(one["coverage"].items())[-1:]
        parts.append(
            f"{ahead} ahead: best forecast in the set {one['top1']:.1%}, the dominant expert "
            f"{one['dominant']:.1%}, "
            f"recall@k {one[RECALL]:.1%}, exact set {one['exact']:.1%}, ECE {one['ece']:.4f}"
            + "".join(
                f", {share:.1%} of the absent experts among its {count} likeliest absent ones"
                for count, share in covered
            )
        )
    told = found["trained for"] or "an unnamed model"
    return (
        f"{Path(found['predictor']).stem}, trained for {told} (another geometry is refused), on "
        f"{found['sequences']} "
        f"held-out sequences. {'; '.join(parts)}."
    )


def by_domain(found: Facts) -> str:
    domains = _first(found)["domains"]
    rows = sorted((scores[RECALL], name) for name, scores in domains.items())
    if len(rows) < 2:
        raise LackingError("the score has fewer than two domains")
    return (
        f"Recall@k one layer ahead from {rows[0][0]:.1%} ({rows[0][1]}) to {rows[-1][0]:.1%} "
        f"({rows[-1][1]}), on sequences it "
        "never saw, of domains it did. Across models nothing transfers: what it learns belongs to single "
        "experts, and another "
        "model's file is refused."
    )


def by_horizon(found: Facts) -> str:
    horizons = found["ahead"][OWN]
    if not horizons:
        raise LackingError("this predictor forecasts no layers ahead")
    recalls = ", ".join(f"{part['all'][RECALL]:.1%} at {ahead}" for ahead, part in horizons.items())
    layers = {int(layer): scores[RECALL] for layer, scores in _first(found)["layers"].items()}
    worst, best = min(layers, key=lambda n: layers[n]), max(layers, key=lambda n: layers[n])
    closed = ", ".join(
        f"{gap:.1%} with {slots:.3g} % of experts"
        for slots, gap in zip(
            (100 * share for share in found["eviction"]["slots"]),
            found["eviction"]["gap closed"],
            strict=True,
        )
    )
    return (
        f"Recall@k by horizon: {recalls}. One ahead by layer: {layers[worst]:.1%} (layer {worst}) to "
        f"{layers[best]:.1%} "
        f"(layer {best}). In eviction it closes, of the gap to the clairvoyant, {closed}."
    )


def _first(found: Facts) -> Facts:
    part: Facts | None = next(iter(found["ahead"][OWN].values()), None)
    if part is None:
        raise LackingError("this predictor forecasts no layers ahead")
    return part


def served(load: Load) -> str:
    """Best system at each count of requests, fewest slots."""
    slots = load.slots[0]
    parts = []
    for count in load.at_once:
        one = load.best(slots, count)
        if one is None:
            continue
        wasted = f", {one.wasted:.1%} of bytes wasted" if one.wasted is not None else ""
        parts.append(
            f"{count} at once: {one.system}, {number(one.tpot['mean'])} ms between tokens (p99 "
            f"{number(one.tpot['p99'])}, "
            f"p99.9 {number(one.tpot.get('p999'))}), first token {number(one.ttft['mean'], '.1f')} ms (p99 "
            f"{number(one.ttft['p99'], '.1f')}), {number(one.hit_rate, '.1%')} hits, union "
            f"{one.union:.1f}{wasted}"
        )
    if not parts:
        raise LackingError("no real system was served")
    return f"Fastest with {load.share(slots)} of experts. {'; '.join(parts)}."


def shared(load: Load) -> str:
    """What several tenants do to each other."""
    if len(load.at_once) < 2:
        raise LackingError("one count of requests does not say what more of them do")
    slots, (few, *_, many) = load.slots[0], load.at_once
    one, other = load.best(slots, few), load.best(slots, many)
    if one is None or other is None or not one.tpot["mean"] or other.tpot["mean"] is None:
        raise LackingError("no real system was served at the fewest and the most requests")
    rates = (one.tokens_per_second, other.tokens_per_second)
    return (
        f"From {few} to {many} requests of mixed domains at once, with {load.share(slots)} of experts: a "
        "layer is asked for "
        f"{one.union:.1f}, then {other.union:.1f} distinct experts "
        f"({other.union / (one.union * many / few):.0%} of what they would be "
        f"without sharing), a request waits {other.tpot['mean'] / one.tpot['mean']:.2f}x as long for a "
        "token, all together get "
        f"{number(rates[0], '.1f')}, then {number(rates[1], '.1f')} tokens per second, and hits go from "
        f"{number(one.hit_rate, '.1%')} to {number(other.hit_rate, '.1%')} ({one.system}, {other.system})."
    )


def measured_overlap(steps: Steps) -> str:
    shares, reading = steps.shares(), steps.reading_ns()
    total = int(steps.ns[steps.decoded].sum())
    if not reading:
        return "Measured: nothing was read while decoding."
    moved = sum(int(steps.by_step(of)[steps.decoded].sum()) for of in steps.window_bytes.values())
    windows = steps.by_layer(steps.window_ns)
    middle = float(np.median(list(windows.values()))) / 1e6
    inside = (
        sum(shares[name] for name in ("compute", "other")) * total / len(steps.decoded) / len(windows) / 1e6
    )
    return (
        f"Measured: a layer's window is {middle:.3f} ms (median of layers), {inside:.3f} ms of it in "
        "experts; the lane is busy "
        f"{reading / total:.0%} of the time at {moved / reading:.2f} GB/s; "
        f"{max(0.0, 1 - shares['stall'] * total / reading):.0%} "
        f"of that is overlapped; layers wait {shares['stall']:.0%} of the time."
    )


def measured_stays(steps: Steps) -> str:
    stays = steps.stays()
    if not len(stays.turns):
        raise LackingError("no expert that came in this timeline left again")
    return (
        f"Measured: {len(stays.turns):,} experts left, after {np.median(stays.turns):.0f} turns of their "
        "layer and "
        f"{np.median(stays.ns) / 1e6:,.0f} ms (medians)."
    )


def measured_tails(steps: Steps) -> str:
    ns = steps.ns[steps.decoded] / 1e6
    slow = steps.slowest(1)[0]
    return (
        f"Measured: {len(ns)} decode steps of {np.median(ns):.2f} ms (median); the slowest, step {slow}, "
        "took "
        f"{steps.ns[slow] / 1e6:.2f} ms, {steps.by_step(steps.window_parts['stall'])[slow] / 1e6:.2f} of "
        "them waiting."
    )


def measured_series(steps: Steps) -> str:
    """The first and the last quarter of the steps."""
    if len(steps.decoded) < 8:
        raise LackingError("fewer than eight decode steps show no course of time")
    quarter = len(steps.decoded) // 4
    early, late = steps.decoded[:quarter], steps.decoded[-quarter:]
    misses, waits = steps.by_step(steps.window_misses), steps.by_step(steps.window_parts["stall"]) / 1e6
    return (
        f"Measured, in the first and in the last quarter of {len(steps.decoded)} decode steps: "
        f"{misses[early].mean():.1f} and "
        f"{misses[late].mean():.1f} misses, {waits[early].mean():.2f} and {waits[late].mean():.2f} ms "
        "waiting per step; "
        "the figure of the steps shows all of them."
    )
