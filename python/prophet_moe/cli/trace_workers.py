"""prophet trace --workers and --ray: what each worker gets, and who they are."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prophet_moe import machine
from prophet_moe.budget import AUTO_SHARE, parse_size
from prophet_moe.cli.console import print_warning
from prophet_moe.record.shards import Order, collect

if TYPE_CHECKING:
    from prophet_moe.formats.trace import TraceReader
    from prophet_moe.record import Prompt


@dataclass(frozen=True)
class Crew:
    """The workers that the flags name; processes of this machine unless `ray` names a cluster."""

    workers: int | None
    ray: str | None
    budget: str  # of all of them together on this machine
    threads: int | None

    @property
    def count(self) -> int:
        return self.workers or 2

    def order(self, model: str, name: str, settings: dict[str, Any], options: dict[str, Any]) -> Order:
        """What each is told. A cluster's hosts have files of their own: only a folder's path travels."""
        folder = Path(model).expanduser()
        threads = self.threads or max(1, machine.cpu_count() // self.count)
        shared = {"budget": self._budget(), "threads": threads}
        return Order(str(folder.resolve()) if folder.is_dir() else model, options | shared, name, settings)

    def _budget(self) -> int:
        """Bytes of one worker: an equal part of what is named, or of what is free now."""
        if self.budget == "auto":
            return int(machine.memory().free_to_use * AUTO_SHARE) // self.count
        return parse_size(self.budget) // self.count

    def collect(
        self,
        order: Order,
        prompts: Sequence[Prompt],
        ids: Sequence[Sequence[int]],
        output: Path,
        resume: bool,
        progress: Callable[[int, int, int], None] | None,
    ) -> TraceReader:
        """The trace of all; warnings go to stderr."""
        if self.ray is None:
            from prophet_moe.record.workers import processes

            run = processes(self.count)
        else:
            from prophet_moe.record.with_ray import on_ray

            run = on_ray(self.count, self.ray)
        os.environ.setdefault("OMP_NUM_THREADS", str(order.load["threads"]))
        return collect(
            order, prompts, ids, output, run=run, resume=resume, progress=progress, warn=print_warning
        )
