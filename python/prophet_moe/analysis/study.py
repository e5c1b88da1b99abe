"""All of it in one call: a trace in, figures, intervals and a verdict out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from prophet_moe.errors import InvalidArgument
from prophet_moe.formats.trace import TraceReader

from .bound import Bound, saved_bits
from .dependence import FORMS, Measured, average, measure_pair
from .drift import ContextDrift, DomainDrift, context_drift, domain_drift
from .pairing import Pairing, Resampling, pair, resample
from .popularity import LayerPopularity, popularity
from .reuse import FRACTIONS, AtSize, Curves, at_sizes, reuse
from .sample import Sample, take_sample
from .verdict import verdict

HORIZONS = (1, 2, 3, 6, 12)  # layers
LAGS = (1, 2, 4, 8, 16, 64)  # tokens
_BOUND_PAIRS = 4
_LAW_SAMPLES = 200


@dataclass(frozen=True)
class Options:
    """shuffles: draws of each null; bootstrap: of sequences; slots: sizes to name, None the usual shares."""

    phase: str = "auto"
    horizons: tuple[int, ...] = HORIZONS
    lags: tuple[int, ...] = LAGS
    slots: tuple[int, ...] | None = None
    shuffles: int = 8
    bootstrap: int = 100
    seed: int = 0
    by_domain: bool = False  # refuse a trace whose domains cannot be compared


@dataclass(frozen=True)
class Step:
    """One distance: layers ahead in the same token, or tokens ahead in the same layer."""

    distance: int
    pairs: int  # of tokens, in each layer
    source_layers: list[int]
    forms: dict[str, Measured]  # of dependence.FORMS; means over the layers
    by_layer: dict[str, list[float]]  # corrected / entropy of the target, for each source layer
    whole_set: Bound | None  # None where fewer than two sequences
    overlap: float  # share of the source set that is in the target set; cross-token only says much
    overlap_by_chance: float  # the same of independent draws by popularity


@dataclass(frozen=True)
class Analysis:
    """What `prophet analyze` found. Bits, shares and miss rates; docs/analysis.md says what each means."""

    trace: str
    model: str
    phase: str
    tokens: int
    sequences: int
    layers: int
    experts_per_layer: int
    top_k: int
    dominant_by: str
    options: Options
    notes: list[str]
    popularity: list[LayerPopularity]
    cross_layer: list[Step]
    cross_token: list[Step]
    reuse: Curves
    sizes: list[AtSize]
    domains: DomainDrift | None
    context: ContextDrift | None
    verdict: list[str]

    def to_dict(self) -> dict[str, Any]:
        """Plain types; json.dumps takes it."""
        return asdict(self)


Progress = Callable[[str, int, int], None]  # what, done, of


def analyze(
    trace: TraceReader | str | Path, options: Options | None = None, progress: Progress | None = None
) -> Analysis:
    """Raises InvalidArgument: options or a trace that will not do; TraceError: no trace."""
    reader = trace if isinstance(trace, TraceReader) else TraceReader(trace)
    chosen = options or Options()
    _check(chosen)
    sample = take_sample(reader, chosen.phase)
    slots = _slots(sample, chosen)
    random = np.random.default_rng(chosen.seed)
    tell = progress or (lambda what, done, of: None)
    notes = _notes(reader, sample)
    domains = None
    if chosen.by_domain or len(sample.domains) > 1:
        try:
            domains = domain_drift(sample, max(20, chosen.shuffles), random)
        except InvalidArgument:
            if chosen.by_domain:
                raise
            notes.append("Only one domain has enough tokens: no drift between domains.")
    resampling = resample(sample, chosen.bootstrap, random)
    laws = []
    for layer in range(sample.layers):
        laws.append(popularity(sample, layer, _LAW_SAMPLES, random))
        tell("popularity", layer + 1, sample.layers)
    done = 0

    def count(tokens: int) -> None:
        nonlocal done
        done += tokens
        tell("reuse", done, 2 * sample.tokens)

    curves = reuse(sample, count)
    across_layers, across_tokens = _dependence(sample, chosen, resampling, random, tell, notes)
    found = Analysis(
        trace=str(reader.path),
        model=reader.model,
        phase=sample.phase,
        tokens=sample.tokens,
        sequences=sample.sequences,
        layers=sample.layers,
        experts_per_layer=sample.experts_per_layer,
        top_k=sample.top_k,
        dominant_by=sample.dominant_by,
        options=chosen,
        notes=notes,
        popularity=laws,
        cross_layer=across_layers,
        cross_token=across_tokens,
        reuse=curves,
        sizes=at_sizes(curves, slots),
        domains=domains,
        context=context_drift(sample, max(8, chosen.shuffles), random),
        verdict=[],
    )
    return replace(found, verdict=verdict(found))


def _check(chosen: Options) -> None:
    for name, values in (("horizons", chosen.horizons), ("lags", chosen.lags)):
        if any(value < 1 for value in values):
            raise InvalidArgument(f"{name} are distances of 1 or more, not {list(values)}.")
    if chosen.shuffles < 2:
        raise InvalidArgument(f"a null needs 2 shuffles at least, not {chosen.shuffles}.")
    if chosen.bootstrap < 0:
        raise InvalidArgument(f"a bootstrap draws 0 times (none) or more, not {chosen.bootstrap}.")


def _slots(sample: Sample, chosen: Options) -> list[int]:
    total = sample.layers * sample.experts_per_layer
    if chosen.slots is None:
        return sorted({max(sample.top_k, int(total * share)) for share in FRACTIONS})
    if bad := [n for n in chosen.slots if not sample.top_k <= n <= total]:
        raise InvalidArgument(
            f"{bad[0]} slots cannot be: one layer of one token needs {sample.top_k}, and there are "
            f"{total} experts."
        )
    return sorted(set(chosen.slots))


def _notes(reader: TraceReader, sample: Sample) -> list[str]:
    notes = []
    if sample.dominant_by != "largest gate":
        notes.append(
            "The trace has no gate probabilities: the first listed expert stands for the dominant one. "
            "Record a trace "
            "with gates to be sure."
        )
    if sample.tokens < reader.tokens:
        notes.append(f"{sample.tokens} of {reader.tokens} tokens: those of phase '{sample.phase}'.")
    if sample.phase != "decode":
        notes.append("Prompt tokens are read one by one, as if they had been decoded.")
    if sample.sequences < 2:
        notes.append("One sequence: no confidence intervals, and nulls are turned in time.")
    if len(sample.domains) < 2:
        notes.append("No two labelled domains: no drift between domains.")
    return notes


def _dependence(
    sample: Sample,
    chosen: Options,
    resampling: Resampling | None,
    random: np.random.Generator,
    tell: Progress,
    notes: list[str],
) -> tuple[list[Step], list[Step]]:
    plans: list[tuple[str, int, list[tuple[int, int]]]] = []
    for h in sorted(set(chosen.horizons)):
        plans.append(("layer", h, [(layer, layer + h) for layer in range(sample.layers - h)]))
    for d in sorted(set(chosen.lags)):
        plans.append(("token", d, [(layer, layer) for layer in range(sample.layers)]))
    total, done = sum(len(pairs) for _, _, pairs in plans), 0
    same = pair(sample, 0, chosen.shuffles, random)
    out: dict[str, list[Step]] = {"layer": [], "token": []}
    left_out: dict[str, list[int]] = {"layer": [], "token": []}
    for unit, distance, layers in plans:
        pairing = same if unit == "layer" else pair(sample, distance, chosen.shuffles, random)
        if not layers or len(pairing.source) < 64:
            left_out[unit].append(distance)
            done += len(layers)
            continue
        measured, overlaps = [], []
        for source, target in layers:
            forms, overlap = measure_pair(sample, pairing, source, target, resampling)
            measured.append(forms)
            overlaps.append(overlap)
            done += 1
            tell("mutual information", done, total)
        out[unit].append(
            Step(
                distance=distance,
                pairs=len(pairing.source),
                source_layers=[source for source, _ in layers],
                forms={form: average([raw[form] for raw in measured]) for form in FORMS},
                by_layer={form: [average([raw[form]]).of_entropy for raw in measured] for form in FORMS},
                whole_set=_whole_set(sample, pairing, layers, random),
                overlap=float(np.mean(overlaps)),
                overlap_by_chance=_chance(sample, layers),
            )
        )
    for unit, distances in left_out.items():
        if distances:
            notes.append(f"Too short for {', '.join(map(str, distances))} {unit}s ahead: left out.")
    return out["layer"], out["token"]


def _chance(sample: Sample, layers: Sequence[tuple[int, int]]) -> float:
    experts, found = sample.experts_per_layer, []
    for source, target in layers:
        shares = [
            np.bincount(np.asarray(sample.experts[:, layer]).ravel(), minlength=experts) / sample.tokens
            for layer in (source, target)
        ]
        found.append(float(shares[0] @ shares[1]) / sample.top_k)
    return float(np.mean(found))


def _whole_set(
    sample: Sample, pairing: Pairing, layers: list[tuple[int, int]], random: np.random.Generator
) -> Bound | None:
    """Over a few pairs of layers spread evenly: fitting all of them would take most of the time."""
    if sample.sequences < 2:
        return None
    fitted = random.permutation(np.arange(sample.sequences) % 2 == 0)
    seen = fitted[pairing.sequence]
    if not seen.any() or seen.all():
        return None
    spread = np.unique(np.linspace(0, len(layers) - 1, _BOUND_PAIRS).round().astype(int))
    parts = [saved_bits(sample, pairing, layers[i], fitted, random) for i in spread]
    owner = np.concatenate([sample.sequence[pairing.source[held]] for held, _ in parts])
    bits = np.concatenate([bits for _, bits in parts])
    sums = np.stack([np.bincount(owner, column, sample.sequences) for column in bits.T], 1)
    sums = sums[np.bincount(owner, minlength=sample.sequences) > 0]
    interval = None
    if len(sums) > 1:
        weights = random.multinomial(len(sums), np.full(len(sums), 1 / len(sums)), size=400)
        drawn = weights @ sums
        low, high = np.quantile(1 - drawn[:, 1] / drawn[:, 0], (0.025, 0.975))
        interval = (float(low), float(high))
    known, told = bits.mean(0)
    return Bound(float(known - told), float(1 - told / known), interval)
