"""Records of compare.py as a Markdown table with medians and ranges, and the ratios that are asked for."""

import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from units import MIB

SUBJECT = "prophet"
FASTER = 3.0  # what the measure asks for: times faster per token than the best peer

Row = dict[str, Any]  # one line of compare.py's record file


def good(record: Row) -> bool:
    """Whether the run ended by itself, in order, with its line."""
    return record["exit_status"] == 0 and not record["oom_kills"] and "tpot_ms" in (record["result"] or {})


def tpot(record: Row) -> float:
    """Mean time of a decode step in milliseconds."""
    return float(record["result"]["tpot_ms"]["mean"])


def bytes_per_token(record: Row) -> float:
    """Read from block devices during the decode steps, per step."""
    return float(record["result"]["bytes"]["per_token"])


def outcome(records: Sequence[Row]) -> str:
    """`3 of 3 ran`, or what kept the others from it."""
    reasons = Counter(_failure(record) for record in records if not good(record))
    ran = len(records) - reasons.total()
    return ", ".join([f"{ran} of {len(records)} ran", *(f"{n} {why}" for why, n in reasons.items())])


def _failure(record: Row) -> str:
    if record["oom_kills"]:
        return "OOM-killed"
    if record["timed_out"]:
        return "out of time"
    if "unavailable" in (record["result"] or {}):
        return "not installed"
    return f"failed with exit status {record['exit_status']}"


def spread(values: Iterable[float], digits: int) -> str:
    """Median and range: `0.21 (0.20–0.24)`; a dash for nothing."""
    ordered = sorted(values)
    if not ordered:
        return "–"
    middle = f"{statistics.median(ordered):.{digits}f}"
    ends = f"{ordered[0]:.{digits}f}–{ordered[-1]:.{digits}f}"
    return middle if len(ordered) == 1 else f"{middle} ({ends})"


def agreement(records: Sequence[Row], of: Sequence[Row]) -> str:
    """How many of the tokens that the first of `records` would have picked, the first of `of` picks too.

    Near 100 % when both run the same weights; rounding turns a few near ties of a random model.
    """
    if not records or not of:
        return "–"
    pairs = list(zip(records[0]["result"]["picked"], of[0]["result"]["picked"], strict=False))
    return f"{sum(one == other for one, other in pairs)}/{len(pairs)}"


def table(rows: Sequence[Row], ideal: int | None) -> str:
    """One line a peer, in order of first appearance. `ideal`: bytes that a token needs without any cache."""
    columns: dict[str, Callable[[list[Row], list[Row]], str]] = {
        "version": lambda ran, _: ran[0]["result"]["version"] if ran else "–",
        "runs": lambda _, every: outcome(every),
        "decode steps": lambda ran, _: str(ran[0]["result"]["decode_steps"]) if ran else "–",
        "s per token": lambda ran, _: spread((tpot(r) / 1e3 for r in ran), 3),
        "CPU ms per token": lambda ran, _: spread((r["result"]["cpu_ms_per_token"] for r in ran), 0),
        "TTFT, s": lambda ran, _: spread((r["result"]["ttft_ms"] / 1e3 for r in ran), 2),
        "load, s": lambda ran, _: spread((r["result"]["load_s"] for r in ran), 1),
        "MiB read per token": lambda ran, _: spread((bytes_per_token(r) / MIB for r in ran), 0),
        "× ideal": lambda ran, _: spread((bytes_per_token(r) / ideal for r in ran), 2) if ideal else "–",
        "peak RSS, MiB": lambda ran, _: spread((r["result"]["peak_rss_bytes"] / MIB for r in ran), 0),
        "charged at most, MiB": lambda ran, _: spread(
            (r["peak_memory_bytes"] / MIB for r in ran if r["peak_memory_bytes"]), 0
        ),
        "same picks": lambda ran, _: agreement(ran, of(rows, SUBJECT)),
        "load average": lambda _, every: spread((r["load_average"][0] for r in every), 1),
    }
    lines = ["| peer | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for name in dict.fromkeys(row["peer"] for row in rows):
        every = [row for row in rows if row["peer"] == name]
        ran = of(rows, name)
        lines.append(f"| {name} | " + " | ".join(cell(ran, every) for cell in columns.values()) + " |")
    return "\n".join(lines)


def of(rows: Sequence[Row], peer: str) -> list[Row]:
    """Good runs of one peer."""
    return [row for row in rows if row["peer"] == peer and good(row)]


def ratios(rows: Sequence[Row]) -> list[str]:
    """The measure's three sentences, each with its figure and whether it is reached."""
    own = [row for row in rows if row["peer"] == SUBJECT]
    others = [row for row in rows if row["peer"] != SUBJECT and good(row)]
    if not own:
        return [f"No run of {SUBJECT} among the records: no ratio."]
    whole = all(map(good, own))
    sentences = [_verdict(whole, f"{SUBJECT} runs and is never OOM-killed: {outcome(own)}")]
    if not any(map(good, own)) or not others:
        return [*sentences, "No peer ran beside it: no ratio."]
    per_round, winners = [], []
    for row in filter(good, own):
        # Neighbours in time only: a machine drifts by more than some differences.
        beside = [other for other in others if other["round"] == row["round"]]
        if beside:
            best = min(beside, key=tpot)
            winners.append(best["peer"])
            per_round.append(tpot(best) / tpot(row))
    if per_round:
        rival = statistics.mode(winners)
        sentences.append(
            _verdict(
                statistics.median(per_round) >= FASTER,
                f"{spread(per_round, 2)}× faster per token than the best peer of its round ({rival}); "
                f"asked: at least {FASTER:g}×",
            )
        )
    least = min({row["peer"] for row in others}, key=lambda peer: _median_bytes(others, peer))
    ratio = _median_bytes(own, SUBJECT) / max(1.0, _median_bytes(others, least))
    sentences.append(
        _verdict(
            ratio <= 1,
            f"{ratio:.3f}× the bytes per token of the peer that reads least ({least}); asked: at most 1×",
        )
    )
    return sentences


def _median_bytes(rows: Sequence[Row], peer: str) -> float:
    return statistics.median(map(bytes_per_token, of(rows, peer)))


def _verdict(reached: bool, sentence: str) -> str:
    return f"{'[reached]' if reached else '[NOT reached]'} {sentence}."
