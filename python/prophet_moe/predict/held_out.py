"""Which sequences a predictor may learn from, and which only judge it; what it has seen is on record."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from prophet_moe.formats.trace import Split, TraceError, TraceReader, split_domains, split_sequences
from prophet_moe.record.divide import share

DIGEST = 12  # hexadecimal digits that tell one sequence from another


@dataclass(frozen=True)
class HeldOut:
    """A rule for splitting a trace by sequence; the same rule and trace give the same split.

    test, val      sequences for testing, and for choices and calibration: "12" or "20%"; one at least
    seed           of the shuffle
    test_domains   these domains are tested instead, and none of their sequences is learned from
    only           no other domain is used at all
    """

    test: str = "20%"
    val: str = "10%"
    seed: int = 0
    test_domains: tuple[str, ...] = ()
    only: tuple[str, ...] = ()

    def split(self, trace: TraceReader) -> Split:
        """Raises TraceError: domains the trace does not have, or too few sequences for all three parts."""
        require_domains(trace, (*self.test_domains, *self.only))
        usable = len(of_domains(trace, self.only)) if self.only else trace.sequences
        test, val = (max(1, share(text, usable, flag)) for text, flag in self._shares())
        if self.test_domains:
            split = split_domains(trace, self.test_domains, val, self.seed)
        elif self.only:
            mine = np.random.default_rng(self.seed).permutation(of_domains(trace, self.only)).tolist()
            rest = mine[test:]
            split = Split(tuple(rest[val:]), tuple(rest[:val]), tuple(mine[:test]), ())
        else:
            split = split_sequences(trace, test, val, self.seed)
        if not (split.train and split.val and split.test):
            raise TraceError(
                f"{trace.path} has too few sequences to train, choose and test ({len(split.train)}, "
                f"{len(split.val)}, {len(split.test)}): record more of them."
            )
        return split

    def _shares(self) -> tuple[tuple[str, str], tuple[str, str]]:
        return (self.test, "--test"), (self.val, "--val")

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_dict(stored: Mapping[str, Any]) -> HeldOut:
        """What `as_dict` gave, also after a round through JSON; unknown fields are left out."""
        return HeldOut().changed(stored)

    def changed(self, given: Mapping[str, Any]) -> HeldOut:
        """The rule with what is given and not None; numbers and lists as JSON has them will do."""
        known: dict[str, Any] = {k: v for k, v in given.items() if k in asdict(self) and v is not None}
        known |= {k: str(known[k]) for k in ("test", "val") if k in known}
        known |= {k: tuple(v) for k, v in known.items() if isinstance(v, list)}
        return replace(self, **known)


def require_domains(trace: TraceReader, wanted: Iterable[str]) -> None:
    """Raises TraceError unless every name is the label of some sequence."""
    known = sorted(set(trace.labels) - {""})
    if unknown := sorted(set(wanted) - set(known)):
        raise TraceError(
            f"{trace.path} has no domain {', '.join(unknown)}; it has {', '.join(known) or 'no labels'}."
        )


def of_domains(trace: TraceReader, domains: Iterable[str]) -> list[int]:
    """Numbers of the sequences with these labels."""
    wanted = set(domains)
    return [s for s, label in enumerate(trace.labels) if label in wanted]


def relabel(trace: TraceReader, key: str) -> None:
    """Takes another note of the sequences for their domain. Raises TraceError where none has it."""
    labels = tuple(str(note.get(key, "")) for note in trace.notes)
    if not any(labels):
        known = sorted({name for note in trace.notes for name in note})
        raise TraceError(
            f"{trace.path}: no sequence has a note {key!r}; their notes are {', '.join(known) or 'none'}."
        )
    trace.labels = labels


def digests(trace: TraceReader, sequences: Iterable[int]) -> list[str]:
    """A short fingerprint of the routes of each sequence, whatever the type of its ids."""
    ids = trace.map("experts")
    return [
        hashlib.sha256(np.ascontiguousarray(ids[trace.rows(s)], np.int32).tobytes()).hexdigest()[:DIGEST]
        for s in sequences
    ]


def seen(trace: TraceReader, sequences: Iterable[int], training: Mapping[str, Any]) -> list[int]:
    """Those of `sequences` that a predictor with this training record learned from or was chosen on."""
    numbers = list(sequences)
    known = set(training.get("seen", ()))
    return [s for s, digest in zip(numbers, digests(trace, numbers), strict=True) if digest in known]
