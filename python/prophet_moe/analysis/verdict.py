"""What the figures mean for someone who must choose slots and a policy, in plain sentences."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .popularity import LAWS

if TYPE_CHECKING:
    from .study import Analysis, Step

_POOR_FIT = 0.02  # of the uses
_PLAUSIBLE = 0.1  # p-value, as Clauset, Shalizi and Newman advise


def percent(value: float) -> str:
    return f"{100 * value:.1f} %" if abs(value) < 0.1 else f"{100 * value:.0f} %"


def verdict(seen: Analysis) -> list[str]:
    """One sentence or two for each question; what was not measured is not spoken of."""
    return [*_popularity(seen), *_cache(seen), *_forecast(seen), *_drift(seen)]


def _popularity(seen: Analysis) -> list[str]:
    layers = seen.popularity
    top = float(np.mean([layer.top_share for layer in layers]))
    equal = float(np.mean([layer.effective_experts for layer in layers]))
    far = {law: float(np.median([layer.fits[law].ks for layer in layers])) for law in LAWS}
    closest = min(LAWS, key=lambda law: far[law])
    plausible = sum(layer.fits["zipf"].p_value >= _PLAUSIBLE for layer in layers)
    law = (
        f"A Zipf law is off by {percent(far['zipf'])} of the uses at its worst rank (median layer) and "
        f"plausible in {plausible} of {len(layers)} layers; the closest is the {closest} law "
        f"({percent(far[closest])})."
    )
    if far[closest] > _POOR_FIT:
        law += " None is a close description."
    return [
        f"The most used fifth of a layer's experts takes {percent(top)} of its uses; they are spread like "
        f"those of {equal:.0f} equally used experts of {seen.experts_per_layer}.",
        law,
    ]


def _cache(seen: Analysis) -> list[str]:
    out = []
    for size in seen.sizes:
        saved = (size.lru - size.clairvoyant) / size.lru if size.lru > 0 else 0.0
        out.append(
            f"{size.slots} slots ({percent(size.fraction)}): LRU misses {percent(size.lru)}, the best fixed "
            f"set {percent(size.fixed)}, and no policy less than {percent(size.clairvoyant)}. Foresight in "
            f"eviction could save at most {percent(saved)} of LRU's misses."
        )
    if seen.sizes:
        out.append("What no policy avoids must be read; a prefetch can only hide it.")
        middle = seen.sizes[len(seen.sizes) // 2]
        out.append(
            "A fixed list of popular experts beats recency here: popularity is stable."
            if middle.fixed < middle.lru
            else "Recency does no worse than any fixed list here: what is popular changes with the text."
        )
    return out


def _forecast(seen: Analysis) -> list[str]:
    across_layers = _decay(seen.cross_layer, "layer", "in the same token")
    return across_layers + _decay(seen.cross_token, "token", "in the same layer")


def _decay(steps: list[Step], unit: str, where: str) -> list[str]:
    if not steps:
        return []
    first, last = steps[0], steps[-1]
    near, far = first.forms["dominant"], last.forms["dominant"]
    ahead = f"{first.distance} {unit}{'s' * (first.distance > 1)} ahead {where}"
    if near.corrected <= max(near.null_interval[1] - near.null, 0):
        return [f"The dominant expert says nothing that chance would not say of the one {ahead}."]
    told = percent(near.of_entropy)
    text = f"Knowing the dominant expert removes {told} of the uncertainty about the one {ahead}"
    if last.distance > first.distance:
        text += f", {percent(far.of_entropy)} at {last.distance} {unit}s"
    moment = min(max(near.beyond_popularity / near.corrected, 0.0), 1.0)
    out = [f"{text}; {percent(moment)} of this belongs to the moment and the rest to the text."]
    if first.whole_set is not None:
        out.append(
            f"The whole set tells at least {percent(first.whole_set.of_entropy)} of which experts come "
            f"{ahead}: a forecast from routing alone can reach that."
        )
    return out


def _drift(seen: Analysis) -> list[str]:
    out = []
    if (domains := seen.domains) is not None:
        moves = domains.mean > domains.shuffled_p95
        text = (
            f"Popularity {'moves' if moves else 'does not move measurably'} with the domain: "
            f"{domains.mean:.3f} bits between domains, {domains.shuffled:.3f} between shuffled ones."
        )
        if moves:
            text += " A predictor or a fixed list should have seen the domains that it will serve."
        out.append(text)
    if (context := seen.context) is not None:
        verb = "drifts" if context.from_first[-1] > 2 * context.by_chance[-1] else "hardly drifts"
        out.append(
            f"Along the context it {verb}: {context.from_first[-1]:.3f} bits from the first window to the "
            f"last, {context.by_chance[-1]:.3f} by chance."
        )
    return out
