"""What the live page shows, as one JSON object: counters of the run report, residency, requests."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Any

from prophet_moe import machine
from prophet_moe.runreport import COUNTERS
from prophet_moe.serve.service import Service

STATES = {"absent": 0, "queued": 1, "loading": 1, "resident": 2, "leased": 3}


def snapshot(service: Service) -> dict[str, Any]:
    """The state now. Times in seconds, sizes in bytes; no text of anybody's.

    `residency` has one string per MoE layer with a digit per expert: 0 absent, 1 on its way, 2 resident,
    3 in use. Rates are for the reader to make, from two snapshots and their `at_ns`.
    """
    engine, info, plan = service.offload.engine, service.offload.info, service.offload.plan
    found, now = engine.counters(), time.perf_counter()
    _, health = service.health()
    return {
        **health,
        "system": service.offload.system,
        "backend": service.offload.backend,
        "budget_bytes": plan.budget_bytes,
        "rss_bytes": machine.rss(),
        "expert_slots": engine.slots,
        "experts_total": info.experts_total,
        "expert_bytes": info.expert_bytes,
        "rows": service.limits.rows,
        "context": service.limits.context,
        "kv_blocks": service.loop.gate.blocks,
        "kv_blocks_free": service.loop.gate.free_blocks,
        "new_tokens": service.loop.new_tokens,
        "waited_first": asdict(service.metrics.first),
        "waited_later": asdict(service.metrics.later),
        "at_ns": time.perf_counter_ns(),
        "counters": {key: found[key] for key in COUNTERS if key in found},
        "residency": [
            "".join(str(STATES[engine.state(layer, expert)]) for expert in range(engine.experts_per_layer))
            for layer in range(engine.layers)
        ],
        "requests": [
            {
                "number": one.number,
                "state": one.state,
                "prompt_tokens": one.prompt_tokens,
                "new_tokens": one.new_tokens,
                "max_tokens": one.max_tokens,
                "seconds": now - one.came,
            }
            for one in service.loop.tracked.values()
        ],
    }
