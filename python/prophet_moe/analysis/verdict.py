"""What the figures mean for someone who must choose slots and a policy, in plain sentences."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .popularity import LAWS

if TYPE_CHECKING:
    from .study import Analysis

_POOR_FIT = 0.02  # KS distance: shares off by more than this anywhere are no close description


def percent(value: float) -> str:
    return f"{100 * value:.1f} %" if abs(value) < 0.1 else f"{100 * value:.0f} %"


def verdict(seen: Analysis) -> list[str]:
    """One sentence or two for each question; what was not measured is not spoken of."""
    return [*_popularity(seen), *_cache(seen), *_forecast(seen), *_drift(seen)]


def _popularity(seen: Analysis) -> list[str]:
    layers = seen.popularity
    top = float(np.mean([layer.top_share for layer in layers]))
    text = (
        f"The most used fifth of a layer's experts takes {percent(top)} of its uses; a layer's choices "
        "are as "
        f"uneven as those of {np.mean([layer.effective_experts for layer in layers]):.0f} equally used "
        "experts "
        f"of {seen.experts_per_layer}."
    )
    best = [min(LAWS, key=lambda law, fits=layer.fits: fits[law].ks) for layer in layers]  # type: ignore[misc]
    name = max(LAWS, key=best.count)
    far = {law: float(np.median([layer.fits[law].ks for layer in layers])) for law in LAWS}
    passed = sum(layer.fits["zipf"].p_value >= 0.1 for layer in layers)
    law = (
        f"A Zipf law is off by {percent(far['zipf'])} of the uses at its worst rank (median layer) and is "
        "plausible "
        f"(p >= .1) in {passed} of {len(layers)} layers; closest in most layers is the {name} law "
        f"({percent(far[name])})."
    )
    if far[name] > _POOR_FIT:
        law += " None is a close description."
    return [text, law]


def _cache(seen: Analysis) -> list[str]:
    out = []
    for size in seen.sizes:
        room = size.lru - size.clairvoyant
        share = percent(room / size.lru) if size.lru > 0 else "none"
        out.append(
            f"{size.slots} slots ({percent(size.fraction)}): LRU misses {percent(size.lru)}, the best "
            "fixed set "
            f"{percent(size.fixed)}, and no policy less than {percent(size.clairvoyant)}. Foresight in "
            "eviction could "
            f"save at most {share} of LRU's misses."
        )
    middle = seen.sizes[len(seen.sizes) // 2] if seen.sizes else None
    if middle is not None and middle.lru > 0:
        if middle.fixed < middle.lru:
            out.append("A fixed list of popular experts beats recency here: popularity is stable.")
        else:
            out.append(
                "Recency beats any fixed list of popular experts here: what is popular changes with the text."
            )
    return out


def _forecast(seen: Analysis) -> list[str]:
    out = []
    for steps, unit, where in ((seen.cross_layer, "layer", "in the same token"), (seen.cross_token, "token",
    "in the same layer")):  # fmt: skip
        if not steps:
            continue
        first, last = steps[0], steps[-1]
        near, far = first.forms["dominant"], last.forms["dominant"]
        if near.corrected <= max(near.null_interval[1] - near.null, 0):
            out.append(
                f"One {unit} ahead ({where}) the dominant expert says nothing that chance would not say."
            )
            continue
        sentence = (
            f"Knowing the dominant expert removes {percent(near.of_entropy)} of the uncertainty about the "
            "one "
            f"{first.distance} {unit}{'s' * (first.distance > 1)} ahead {where}"
        )
        if last.distance > first.distance:
            kept = far.of_entropy / near.of_entropy
            sentence += (
                f", {percent(far.of_entropy)} at {last.distance} {unit}s ({percent(kept)} of it is left)"
            )
        share = near.beyond_popularity / near.corrected
        out.append(
            f"{sentence}; {percent(min(max(share, 0.0), 1.0))} of this belongs to the moment and the rest "
            "to the text."
        )
        if first.whole_set is not None:
            out.append(
                f"The whole set tells at least {percent(first.whole_set.of_entropy)} of which experts come "
                f"{first.distance} {unit}{'s' * (first.distance > 1)} ahead {where}: a forecast can do no "
                "worse."
            )
    return out


def _drift(seen: Analysis) -> list[str]:
    out = []
    if seen.domains is not None:
        d = seen.domains
        verb = "moves" if d.mean > d.shuffled_p95 else "does not move measurably"
        out.append(
            f"Popularity {verb} with the domain: {d.mean:.3f} bits between domains, {d.shuffled:.3f} "
            "between shuffled "
            "ones. "
            + ("A predictor or fixed list should see the domains it will serve." if verb == "moves" else "")
        )
    if seen.context is not None:
        c = seen.context
        verb = "drifts" if c.from_first[-1] > 2 * c.by_chance[-1] else "hardly drifts"
        out.append(
            f"Along the context it {verb}: {c.from_first[-1]:.3f} bits from the first window to the last, "
            f"{c.by_chance[-1]:.3f} by chance."
        )
    return [line.strip() for line in out]
