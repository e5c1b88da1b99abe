"""One verb over several processes: torchrun starts them, rank 0 speaks, and every rank is reported."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from prophet_moe.budget import format_size
from prophet_moe.cli.console import number
from prophet_moe.errors import InvalidArgument

if TYPE_CHECKING:
    from prophet_moe.runreport import RunReport

MANY = ("run",)  # verbs that divide a model's experts over the processes


def place() -> tuple[int, int]:
    """(rank, processes) as torchrun has given them; (0, 1) for a process of its own."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return 0, 1
    return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])


def require_alone(arguments: Sequence[str]) -> None:
    """Raises InvalidArgument for a verb that several processes would each do in full."""
    verb = next((word for word in arguments if not word.startswith("-")), "")
    _, size = place()
    if size > 1 and verb and verb not in MANY:
        raise InvalidArgument(
            f"torchrun started {size} processes, and each would do all of prophet {verb}: of the verbs only "
            f"{' and '.join(MANY)} divides a model over processes."
        )


def common_seed() -> int:
    """A seed that no one chose, the same on all ranks, which must draw the same tokens."""
    from prophet_moe.models.parallel import gathered

    return int(gathered(secrets.randbelow(2**31))[0])


def own_file(path: Path, rank: int, size: int) -> Path:
    """Where this rank writes what the user calls `path`: out.json, out.rank1.json, ..."""
    return path if size == 1 or rank == 0 else path.with_suffix(f".rank{rank}{path.suffix}")


def reports_of_all(report: RunReport) -> list[RunReport]:
    """The reports of all ranks, by rank; every rank must call."""
    from prophet_moe.models.parallel import gathered

    return gathered(report)


def as_json(reports: Sequence[RunReport]) -> list[str]:
    """A line for each; of several ranks with the keys "rank" and "ranks" before the others."""
    if len(reports) == 1:
        return [reports[0].to_json()]
    return [
        json.dumps(
            {"rank": rank, "ranks": len(reports)} | report.to_dict(), ensure_ascii=False, allow_nan=False
        )
        for rank, report in enumerate(reports)
    ]


def lines(reports: Sequence[RunReport]) -> list[str]:
    """What differs between ranks, for people; nothing for one process."""
    if len(reports) == 1:
        return []
    return [
        f"rank {rank:<4}{report.expert_slots} slots for {report.experts_total} experts, hit rate "
        f"{number(report.hit_rate, '.1%')}, {format_size(report.bytes.moved)} read, peak RSS "
        f"{format_size(report.peak_rss_bytes or 0)}"
        for rank, report in enumerate(reports)
    ]
