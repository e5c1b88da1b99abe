"""The replay of a real run's own routing: what another system would have moved for the same tokens.

What the router asked for is taken from the run's timeline. A forward pass over several tokens asks for each
expert once, so its rows here are not tokens but what they asked for together: all that a bound, or a rule
that only knows when an expert was used, goes by. Rules that also weigh how many tokens used it are replayed
to the count only where every pass has one token.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from prophet_moe.errors import InvalidArgument
from prophet_moe.formats.trace import DECODE, PREFILL, TraceReader, TraceWriter
from prophet_moe.sim.machine import Machine
from prophet_moe.sim.replay import ReplayReport, replay
from prophet_moe.systems import System

ASKED = ("hit", "in_flight", "miss")


@dataclass(frozen=True)
class OwnRoutes:
    """Experts asked for: [rows, layers, top_k] by the first pass, [steps, layers, top_k] by decode steps."""

    first: NDArray[np.int64]
    decoded: NDArray[np.int64]


def routes_of(
    timeline: Mapping[str, NDArray[np.int64]], kinds: Sequence[str], layers: int, top_k: int, steps: int
) -> OwnRoutes:
    """Of one prompt in one pass and `steps` decode steps of single tokens, by Engine.timeline().

    Raises InvalidArgument: events that are not such a run; the timeline may be full.
    """
    asked = np.isin(timeline["kind"], [kinds.index(name) for name in ASKED])
    experts, layer = timeline["expert"][asked], timeline["layer"][asked]
    prompt = len(experts) - steps * layers * top_k
    decoded = experts[max(prompt, 0) :]
    expected = np.tile(np.repeat(np.arange(layers), top_k), steps)
    in_prompt = layer[: max(prompt, 0)]
    by_layer = [experts[: max(prompt, 0)][in_prompt == one] for one in range(layers)]
    whole = all(len(np.unique(ids)) == len(ids) >= top_k for ids in by_layer)
    if prompt < 0 or not whole or (np.diff(in_prompt) < 0).any() or (layer[prompt:] != expected).any():
        raise InvalidArgument(
            f"{len(experts)} requests are not those of a prompt and {steps} single tokens through {layers} "
            f"layers, top-{top_k}: the timeline may be full, so take fewer steps."
        )
    rows = max(-(-len(ids) // top_k) for ids in by_layer)
    # np.resize repeats from the start; a row stays distinct because no layer asked for less than top_k.
    first = np.stack([np.resize(ids, (rows, top_k)) for ids in by_layer], axis=1)
    return OwnRoutes(first, decoded.reshape(steps, layers, top_k))


def replay_own(
    routes: OwnRoutes,
    system: System,
    machine: Machine,
    *,
    experts_per_layer: int,
    slots: int,
    expert_bytes: int,
) -> ReplayReport:
    """These routes from an empty cache, by a system without a predictor, or by a bound.

    Counts are exact, as the module says; times are of the machine.
    """
    if system.predictor:
        raise InvalidArgument(f"{system.name} has a predictor: the replay of a run's own routes has none.")
    _, layers, top_k = routes.first.shape
    with tempfile.TemporaryDirectory() as made:
        path = Path(made) / "routes.safetensors"
        with TraceWriter(
            path, model="own run", layers=layers, experts_per_layer=experts_per_layer, top_k=top_k,
            gate_probs=False, token_id=False,
        ) as writer:  # fmt: skip
            for rows, phase in ((routes.first, PREFILL), (routes.decoded, DECODE)):
                if len(rows):
                    writer.append(rows, phase=np.full(len(rows), phase, np.uint8))
            writer.end_sequence()
        return replay(
            TraceReader(path), machine, slots=slots, expert_bytes=expert_bytes,
            policy=system.policy, keep=system.keep, clairvoyant=system.bound == "time",
        )  # fmt: skip
