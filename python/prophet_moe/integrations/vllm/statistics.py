"""What happened, in the names of the run report (docs/formats.md): sizes in bytes, times in milliseconds."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from typing import Any

from prophet_ext import Engine
from prophet_moe.errors import ProphetError
from prophet_moe.integrations.vllm.records import LayerShape
from prophet_moe.runreport import counted

SECONDS = 1.0  # between two looks


class Statistics:
    """Keeps a file at the report of one process: a thread looks once a second for news.

    file: None for nowhere; processes other than the first add their rank to its name.
    """

    def __init__(
        self, engine: Engine, shape: LayerShape, *, model: str, system: str, file: Path | None, rank: int
    ) -> None:
        self._engine, self._shape, self._model, self._system = engine, shape, model, system
        self._file = file.with_name(f"{file.name}.rank{rank}") if file is not None and rank else file
        self._told: dict[str, Any] = {}  # what the file says
        self._ended = threading.Event()
        if self._file is not None:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            self._write(self._file)
            threading.Thread(
                target=self._keep, args=(self._file,), name="prophet-statistics", daemon=True
            ).start()

    def report(self) -> dict[str, Any]:
        """The keys of prophet_moe.report; `exact` is null: Prophet knows bits of transformers' sums only."""
        engine = self._engine
        return {
            "model": self._model,
            "backend": "vllm-cpu",
            "system": self._system,
            "exact": None,
            "budget_bytes": None,
            "expert_slots": engine.slots,
            "experts_total": engine.layers * engine.experts_per_layer,
            "expert_bytes": sum(self._shape.piece_bytes),
        } | counted(engine)

    def end(self) -> None:
        """Writes the file a last time; the engine may then close. Idempotent."""
        if self._file is not None and not self._ended.is_set():
            self._ended.set()
            self._write(self._file)

    def _keep(self, file: Path) -> None:
        while not self._ended.wait(SECONDS):
            try:
                self._write(file)
            except ProphetError:  # closed in between
                return

    def _write(self, file: Path) -> None:
        report = self.report()
        if report == self._told:
            return
        self._told = report
        unfinished = file.with_name(f".{file.name}.{os.getpid()}.{threading.get_ident()}")
        unfinished.write_text(json.dumps(report) + "\n")
        os.replace(unfinished, file)
