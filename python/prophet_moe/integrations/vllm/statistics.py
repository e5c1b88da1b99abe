"""What happened, in the names of the run report (docs/formats.md): sizes in bytes, times in milliseconds."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from prophet_ext import Engine
from prophet_moe.integrations.vllm.records import LayerShape

SECONDS = 1.0  # between two writes


class Statistics:
    """Writes the report of one process to a file about once a second while layers run, and at the end.

    file: None for nowhere; processes other than the first add their rank to its name.
    """

    def __init__(
        self, engine: Engine, shape: LayerShape, *, model: str, system: str, file: Path | None, rank: int
    ) -> None:
        self._engine, self._shape, self._model, self._system = engine, shape, model, system
        self._file = file.with_name(f"{file.name}.rank{rank}") if file is not None and rank else file
        self._next = 0.0
        if self._file is not None:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            self.write()

    def report(self) -> dict[str, Any]:
        """The keys of prophet_moe.report; `exact` is null, as which kernel is bit-equal is vLLM's to say."""
        engine, counters = self._engine, self._engine.counters()
        return {
            "model": self._model,
            "backend": "vllm-cpu",
            "system": self._system,
            "exact": None,
            "budget_bytes": None,
            "expert_slots": engine.slots,
            "experts_total": engine.layers * engine.experts_per_layer,
            "expert_bytes": sum(self._shape.piece_bytes),
            "arena_bytes": engine.arena_bytes,
            "bytes": {
                kind: counters[f"bytes_{kind}"]
                for kind in ("demand", "prefetch_used", "prefetch_late", "prefetch_wasted")
            },
            "hits": {
                "resident": counters["hits_resident"],
                "in_flight": counters["hits_in_flight"],
                "miss": counters["misses"],
            },
            "stall_ms": counters["stall_ns"] / 1e6,
            "evictions": counters["evictions"],
            "evicted_before_use": counters["evicted_before_use"],
            "layer_steps": counters["layer_steps"],
        }

    def tell(self) -> None:
        """A layer has been served."""
        if self._file is not None and time.monotonic() >= self._next:
            self.write()

    def write(self) -> None:
        """Replaces the file by the report as it is now."""
        if self._file is None:
            return
        self._next = time.monotonic() + SECONDS
        unfinished = self._file.with_name(f".{self._file.name}.{os.getpid()}")
        unfinished.write_text(json.dumps(self.report()) + "\n")
        os.replace(unfinished, self._file)
