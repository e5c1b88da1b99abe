"""How much one set of experts says about another: across layers of a token, across tokens of a layer.

Three forms, each of a source set and a target set of K experts:

    dominant     I(D; D') of the experts with the largest gates; at most log2 E
    member       I(M; M') of a member of each set drawn at random; at most log2 E
    best_single  sum over target experts j of the largest I(x_i; y_j) over source experts i, where x_i and y_j
    say
                 whether an expert is in its set; at most E h(K / E)

`corrected` is Miller-Madow's estimate (plug-in for the set forms, whose counts are not independent) less the
mean of the null of other sequences; pairing.py says what the nulls are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .information import binary_entropy, binary_information, entropy, miller_madow, mutual_information
from .pairing import Index, Pairing, Resampling, Shuffle
from .sample import Sample

Floats = NDArray[np.float64]
Places = NDArray[np.intp]
_AT_ONCE = 1 << 22  # pairs counted at once
FORMS = ("dominant", "member", "best_single")


@dataclass(frozen=True)
class Measured:
    """One form over one or more pairs of layers: the mean over pairs, bits but for the shares.

    interval: 95 %, from a bootstrap over sequences, centred on the corrected value; None where the trace has
    one.
    """

    plug_in: float
    miller_madow: float | None
    null: float  # mean over shuffles, of the estimate that `corrected` starts from
    null_interval: tuple[float, float]  # 95 %: mean and 1.96 standard deviations of the shuffles
    corrected: float
    interval: tuple[float, float] | None
    target_entropy: float
    conditional_entropy: float  # what is left of it when the source is known
    of_entropy: float  # corrected / entropy of the target
    of_entropy_interval: tuple[float, float] | None
    of_maximum: float  # corrected / the largest entropy the target could have
    beyond_popularity: float  # estimate less the null of the same text at another time
    beyond_popularity_of_entropy: float


@dataclass(frozen=True)
class Raw:
    """One pair of layers before averaging. Arrays: [shuffles], [B]."""

    plug_in: float
    miller_madow: float | None
    entropy: float
    maximum: float
    other: Floats
    moved: Floats
    drawn: tuple[Floats, Floats] | None  # plug-in and entropy of the bootstrap

    @property
    def start(self) -> float:
        return self.plug_in if self.miller_madow is None else self.miller_madow


# Tables of joint counts ---------------------------------------------------------------------------


def _count(a: Places, b: Places, experts: int, cells: int) -> Floats:
    """a [p, m], b [q, m] -> [cells]: how often each cell a * E + b, over all p * q pairs of each column."""
    out = np.zeros(cells, np.int64)
    step = max(1, _AT_ONCE // (len(a) * len(b)))
    for first in range(0, a.shape[1], step):
        part = slice(first, first + step)
        codes = (a[:, part] * experts)[:, None] + b[None, :, part]
        out += np.bincount(codes.ravel(), minlength=cells)
    return out.astype(np.float64)


def _table(a: Places, b: Places, experts: int) -> Floats:
    return _count(a, b, experts, experts**2).reshape(experts, experts)


def _group_tables(a: Places, b: Places, experts: int, group: Index, groups: int) -> Floats:
    """[groups, E, E]"""
    cells = _count(a + group * experts, b, experts, groups * experts**2)
    return cells.reshape(groups, experts, experts)


# The forms: joint counts -> (plug-in, Miller-Madow or None, entropy of the target, its maximum) ---

Form = Callable[[Floats, int], tuple[Floats, Floats | None, Floats, float]]


def dominant_form(joint: Floats, top_k: int) -> tuple[Floats, Floats | None, Floats, float]:
    plug_in, corrected = mutual_information(joint)
    return plug_in, corrected, miller_madow(joint.sum(-2)), float(np.log2(joint.shape[-1]))


def member_form(joint: Floats, top_k: int) -> tuple[Floats, Floats | None, Floats, float]:
    return (
        mutual_information(joint)[0],
        None,
        entropy(joint.sum(-2)),
        float(np.log2(joint.shape[-1])),
    )


def best_single_form(joint: Floats, top_k: int) -> tuple[Floats, Floats | None, Floats, float]:
    experts = joint.shape[-1]
    x, y = joint.sum(-1) / top_k, joint.sum(-2) / top_k
    n = np.maximum(joint.sum((-1, -2)) / top_k**2, 1.0)
    bits = binary_information(joint, x, y, n).max(-2).sum(-1)
    uncertain = binary_entropy(y / np.asarray(n)[..., None]).sum(-1)
    return bits, None, uncertain, float(experts * binary_entropy(top_k / experts))


_OF_SETS: dict[str, Form] = {"member": member_form, "best_single": best_single_form}


def measure_pair(
    sample: Sample, pairing: Pairing, source_layer: int, target_layer: int, resampling: Resampling | None
) -> tuple[dict[str, Raw], float]:
    """The forms of one pair of layers, and the mean share of the source set found in the target set."""
    layers = (source_layer, target_layer)
    single = [sample.dominant[:, layer][None].astype(np.intp) for layer in layers]
    whole = [np.ascontiguousarray(sample.experts[:, layer].T).astype(np.intp) for layer in layers]
    out = _measure(sample, pairing, single, {"dominant": dominant_form}, 1, resampling)
    sets = _measure(sample, pairing, whole, _OF_SETS, sample.top_k, resampling)
    joint = _table(whole[0][:, pairing.source], whole[1][:, pairing.target], sample.experts_per_layer)
    overlap = float(np.trace(joint)) / (len(pairing.source) * sample.top_k)
    return out | sets, overlap


def _measure(
    sample: Sample,
    pairing: Pairing,
    sides: list[Places],
    forms: dict[str, Form],
    top_k: int,
    resampling: Resampling | None,
) -> dict[str, Raw]:
    experts = sample.experts_per_layer
    a, b = sides[0][:, pairing.source], sides[1][:, pairing.target]

    def shuffled(shuffles: tuple[Shuffle, ...]) -> Floats:
        tables = [_table(sides[0][:, s.source], sides[1][:, s.target], experts) for s in shuffles]
        return np.stack(tables)

    if resampling is None:
        joint, drawn = _table(a, b, experts), None
    else:
        tables = _group_tables(a, b, experts, resampling.group[pairing.sequence], resampling.groups)
        joint = tables.sum(0)
        flat = resampling.weights @ tables.reshape(resampling.groups, -1)
        drawn = flat.reshape(-1, experts, experts)
    other, moved = shuffled(pairing.other), shuffled(pairing.moved)
    kept = np.array([s.share for s in pairing.other])  # fewer pairs err more, as 1 / pairs
    out = {}
    for name, form in forms.items():

        def estimate(tables: Floats, form: Form = form) -> Floats:
            plug_in, corrected, _, _ = form(tables, top_k)
            return plug_in if corrected is None else corrected

        plug_in, corrected, uncertain, maximum = form(joint, top_k)
        replicates = None if drawn is None else form(drawn, top_k)
        out[name] = Raw(
            plug_in=float(plug_in),
            miller_madow=None if corrected is None else float(corrected),
            entropy=float(uncertain),
            maximum=maximum,
            other=estimate(other) * kept,
            moved=estimate(moved),
            drawn=None if replicates is None else (replicates[0], replicates[2]),
        )
    return out


def average(pairs: list[Raw]) -> Measured:
    """The mean over pairs of layers; intervals are those of the mean, since all share their shuffles and
    draws.
    """

    def mean(of: Callable[[Raw], float]) -> float:
        return float(np.mean([of(raw) for raw in pairs]))

    def safe(bits: float) -> float:  # nothing uncertain: a share of 0
        return bits if bits > 1e-9 else 1.0

    null = np.mean([raw.other for raw in pairs], axis=0)
    spread = 1.96 * float(null.std(ddof=1))
    corrected = mean(lambda raw: raw.start - float(raw.other.mean()))
    share = mean(lambda raw: (raw.start - float(raw.other.mean())) / safe(raw.entropy))
    madow = None if pairs[0].miller_madow is None else mean(lambda raw: raw.miller_madow or 0.0)
    bits, shares = None, None
    drawn = [raw.drawn for raw in pairs if raw.drawn is not None]
    if drawn:
        bits = _around(corrected, np.mean([d[0] for d in drawn], axis=0))
        shares = _around(share, np.mean([d[0] / np.maximum(d[1], 1e-12) for d in drawn], axis=0))
    return Measured(
        plug_in=mean(lambda raw: raw.plug_in),
        miller_madow=madow,
        null=float(null.mean()),
        null_interval=(float(null.mean()) - spread, float(null.mean()) + spread),
        corrected=corrected,
        interval=bits,
        target_entropy=mean(lambda raw: raw.entropy),
        conditional_entropy=mean(lambda raw: raw.entropy) - corrected,
        of_entropy=share,
        of_entropy_interval=shares,
        of_maximum=mean(lambda raw: (raw.start - float(raw.other.mean())) / safe(raw.maximum)),
        beyond_popularity=mean(lambda raw: raw.start - float(raw.moved.mean())),
        beyond_popularity_of_entropy=mean(
            lambda raw: (raw.start - float(raw.moved.mean())) / safe(raw.entropy)
        ),
    )


def _around(centre: float, replicates: Floats) -> tuple[float, float]:
    """The spread of the replicates put about `centre`: resampling adds a bias of its own."""
    low, high = np.quantile(replicates - replicates.mean(), (0.025, 0.975))
    return centre - float(high), centre - float(low)
