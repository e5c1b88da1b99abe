"""What law do uses follow over the experts of a layer, most used first?

Laws of rank r = 1 .. E, each fitted by maximum likelihood to counts per rank:

    zipf         p ~ r^-s                           the discrete power law on a bounded support
    exponential  p ~ exp(-r / scale)
    lognormal    p ~ exp(-a ln r - b (ln r)^2), b >= 0; b = 0 is zipf

Fit and test follow Clauset, Shalizi and Newman (SIAM Review 51, 2009): the Kolmogorov-Smirnov distance, its
p-value from parametric samples that are ranked and fitted again, and likelihood ratios between laws (Vuong's
for zipf against exponential, chi-square for zipf inside lognormal). With a hundred thousand tokens every law
is rejected; the distance says by how much it is wrong. Tokens of a text are not independent: tests are made
at the effective number of uses, the number over the design effect (variance of shares between sequences over
that of independent draws).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .information import entropy, miller_madow
from .sample import Sample

Floats = NDArray[np.float64]
LAWS = ("zipf", "exponential", "lognormal")
TOP = 0.2
_AT_ONCE = 16_384


@dataclass(frozen=True)
class Fit:
    """One law on one layer. parameters: zipf (s), exponential (scale in ranks), lognormal (a, b)."""

    parameters: tuple[float, ...]
    ks: float  # largest distance of the two distribution functions
    p_value: float  # share of samples of the law that lie as far from their own fit
    log_likelihood: float  # nats per use


@dataclass(frozen=True)
class Comparison:
    """Zipf against another law: ratio > 0 favours zipf, nats per use; p small: the sign can be believed."""

    ratio: float
    p_value: float


@dataclass(frozen=True)
class LayerPopularity:
    shares: list[float]  # [E] of all uses, by expert id
    top_share: float  # uses that the most used TOP of the experts take; the last expert counts in part
    top_share_in_sequence: float  # the same within one sequence, mean by tokens
    entropy: float  # bits, Miller-Madow
    of_maximum: float  # entropy / log2 E
    dominant_entropy: float  # of the dominant expert
    effective_experts: float  # 2^entropy
    design_effect: float
    effective_uses: float
    fits: dict[str, Fit]
    against: dict[str, Comparison]  # zipf against "exponential" and "lognormal"


def uses_by_sequence(sample: Sample, layer: int) -> Floats:
    """[S, E] how often each expert of a layer was chosen."""
    experts, sequences = sample.experts_per_layer, sample.sequences
    out = np.zeros(sequences * experts)
    for first in range(0, sample.tokens, _AT_ONCE):
        ids = np.asarray(sample.experts[first : first + _AT_ONCE, layer]).astype(np.intp)
        ids += sample.sequence[first : first + _AT_ONCE, None] * experts
        out += np.bincount(ids.ravel(), minlength=sequences * experts)
    return out.reshape(sequences, experts)


def popularity(sample: Sample, layer: int, samples: int, random: np.random.Generator) -> LayerPopularity:
    """samples: of each law, for its p-value."""
    by_sequence = uses_by_sequence(sample, layer)
    uses = by_sequence.sum(0)
    total = float(uses.sum())
    dominant = np.bincount(sample.dominant[:, layer], minlength=sample.experts_per_layer)
    effect = design_effect(by_sequence)
    ranked = -np.sort(-uses)
    fits = {law: fit(law, ranked, total / effect, samples, random) for law in LAWS}
    bits = float(miller_madow(uses))
    weight = by_sequence.sum(1) / total
    return LayerPopularity(
        shares=(uses / total).tolist(),
        top_share=float(top_share(uses)),
        top_share_in_sequence=float((top_share(by_sequence) * weight).sum()),
        entropy=bits,
        of_maximum=bits / max(math.log2(sample.experts_per_layer), 1e-12),
        dominant_entropy=float(miller_madow(dominant)),
        effective_experts=2.0 ** float(entropy(uses)),
        design_effect=effect,
        effective_uses=total / effect,
        fits=fits,
        against=compare(ranked, fits, total / effect),
    )


def top_share(uses: NDArray[Any], top: float = TOP) -> Floats:
    """Share of uses taken by the most used `top` of the experts, over the last axis."""
    ranked = -np.sort(-np.asarray(uses, np.float64), axis=-1)
    wanted = top * ranked.shape[-1]
    weight = np.clip(wanted - np.arange(ranked.shape[-1]), 0, 1)
    return (ranked * weight).sum(-1) / np.maximum(ranked.sum(-1), 1.0)


def design_effect(by_sequence: Floats) -> float:
    """How many times larger the variance of shares between sequences [S, E] is than that of single draws.

    Ratio estimator over clusters, mean over experts weighted by their variance; at least 1, and 1 for one
    sequence.
    """
    sequences = len(by_sequence)
    sizes = by_sequence.sum(1)
    total = sizes.sum()
    if sequences < 2:
        return 1.0
    shares = by_sequence.sum(0) / total
    residual = by_sequence - sizes[:, None] * shares
    between = (residual**2).sum(0) * sequences / (sequences - 1) / total**2
    single = shares * (1 - shares) / total
    return max(1.0, float(between.sum() / max(single.sum(), 1e-300)))


# Laws ---------------------------------------------------------------------------------------------


def _statistics(law: str, experts: int) -> Floats:
    """[q, E]: the law is p ~ exp(-parameters . statistics), an exponential family."""
    rank = np.arange(1, experts + 1, dtype=np.float64)
    log = np.log(rank)
    return {"zipf": log[None], "exponential": rank[None] / experts, "lognormal": np.stack([log, log**2])}[law]


def log_shares(law: str, parameters: Floats, experts: int) -> Floats:
    """log p [..., E] of parameters [..., q]."""
    score = -np.asarray(parameters, np.float64) @ _statistics(law, experts)
    score -= score.max(-1, keepdims=True)
    return score - np.log(np.exp(score).sum(-1, keepdims=True))


def likeliest(law: str, ranked: Floats) -> Floats:
    """[..., q] parameters by Newton's method with halved steps; ranked [..., E] counts, most used first."""
    ranked = np.asarray(ranked, np.float64)
    experts = ranked.shape[-1]
    shares = ranked / np.maximum(ranked.sum(-1, keepdims=True), 1.0)
    out = _newton(law, shares)
    if law == "lognormal":  # b < 0 would rise again with rank: its border is zipf
        border = np.concatenate([_newton("zipf", shares), np.zeros((*shares.shape[:-1], 1))], -1)
        out = np.where(out[..., 1:] < 0, border, out)
    assert out.shape[-1] == len(_statistics(law, experts))
    return out


def _newton(law: str, shares: Floats) -> Floats:
    statistics = _statistics(law, shares.shape[-1])
    seen = shares @ statistics.T
    at = np.zeros_like(seen)

    def loss(parameters: Floats) -> Floats:  # - log likelihood per use
        return -(shares * log_shares(law, parameters, shares.shape[-1])).sum(-1)

    now = loss(at)
    for _ in range(60):
        p = np.exp(log_shares(law, at, shares.shape[-1]))
        mean = p @ statistics.T
        spread = (p[..., None, :] * statistics) @ statistics.T - mean[..., :, None] * mean[..., None, :]
        spread += 1e-12 * np.eye(len(statistics))
        step = np.linalg.solve(spread, (mean - seen)[..., None])[..., 0]
        scale = np.ones_like(now)
        for _ in range(30):
            there = loss(at + scale[..., None] * step)
            worse = ~(there <= now + 1e-15)
            if not worse.any():
                break
            scale = np.where(worse, scale / 2, scale)
        moved = scale[..., None] * np.where(worse[..., None], 0.0, step)
        at, now = at + moved, np.where(worse, now, there)
        if np.abs(moved).max() < 1e-10 * (1 + np.abs(at).max()):
            break
    return at


def distance(law: str, ranked: Floats, parameters: Floats) -> Floats:
    """Kolmogorov-Smirnov distance of counts [..., E] from the law."""
    shares = ranked / np.maximum(ranked.sum(-1, keepdims=True), 1.0)
    model = np.exp(log_shares(law, parameters, ranked.shape[-1]))
    return np.abs(np.cumsum(shares - model, -1)).max(-1)


def fit(law: str, ranked: Floats, effective: float, samples: int, random: np.random.Generator) -> Fit:
    """The likeliest parameters and, at `effective` independent uses, how often chance lies as far off."""
    parameters = likeliest(law, ranked)
    far = float(distance(law, ranked, parameters))
    p = np.exp(log_shares(law, parameters, len(ranked)))
    drawn = random.multinomial(max(1, round(effective)), p / p.sum(), size=samples).astype(np.float64)
    drawn = -np.sort(-drawn, axis=-1)
    chance = distance(law, drawn, likeliest(law, drawn))
    shares = ranked / ranked.sum()
    shown = parameters / len(ranked) if law == "exponential" else parameters
    if law == "exponential":
        shown = 1 / np.maximum(shown, 1e-12)
    return Fit(
        parameters=tuple(float(value) for value in shown),
        ks=far,
        p_value=float((chance >= far).mean()),
        log_likelihood=float((shares * log_shares(law, parameters, len(ranked))).sum()),
    )


def compare(ranked: Floats, fits: dict[str, Fit], effective: float) -> dict[str, Comparison]:
    shares = ranked / ranked.sum()
    logs = {law: log_shares(law, likeliest(law, ranked), len(ranked)) for law in LAWS}
    gap = logs["zipf"] - logs["exponential"]
    mean = float((shares * gap).sum())
    deviation = math.sqrt(max(float((shares * (gap - mean) ** 2).sum()), 1e-300))
    vuong = math.erfc(abs(mean) * math.sqrt(effective / 2) / deviation)
    nested = fits["zipf"].log_likelihood - fits["lognormal"].log_likelihood
    chi = max(0.0, -2 * nested * effective)
    return {
        "exponential": Comparison(mean, vuong),
        "lognormal": Comparison(nested, math.erfc(math.sqrt(chi / 2))),
    }
