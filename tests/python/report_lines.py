"""Result lines, reports of serving and a timeline, made up to have every outcome."""

from typing import Any

import numpy as np

from prophet_moe.sim.results import VERSION, Line
from prophet_moe.timeline import COLUMNS, chrome_trace

SLOTS = {"25%": 24, "50%": 48, "75%": 72}
SYSTEMS = ("on-demand", "lru", "expected-next-use", "prophet", "belady", "resident")


def make_line(system: str, slots: str, scale: float = 1.0, prefetch: bool = False, **changes: Any) -> Line:
    """A consistent line of 1000 tokens, 4 layers of 24 experts, top-2; `changes` replace keys."""
    place = SYSTEMS.index(system) if system in SYSTEMS else 1
    share = SLOTS.get(slots, 96) / 96
    asked = 1000 * 4 * 2
    rate = {"on-demand": 1.0, "resident": 0.0}.get(system, (1 - share) / (1 + place))
    misses = round(asked * rate)
    late = misses // 10 if prefetch else 0
    used = misses // 5 if prefetch else 0
    tpot = 2.0 + 10.0 * rate / scale
    line: Line = {
        "model": "toy", "backend": "sim", "system": system, "exact": None, "budget_bytes": 10**9,
        "expert_slots": SLOTS.get(slots, 96), "experts_total": 96, "expert_bytes": 10**6, "prompt_tokens": 0,
        "new_tokens": 1000, "token_ids": [], "text": None, "ttft_ms": None,
        "tpot_ms": {"mean": tpot, "p50": tpot, "p90": tpot * 1.2, "p99": tpot * 1.5, "p999": tpot * 2},
        "bytes": {"demand": misses * 10**6, "prefetch_used": used * 10**6, "prefetch_late": late * 10**6,
                  "prefetch_wasted": used * 10**5, "cancelled": 0, "unused": 0,
                  "per_token": misses * 10**3 + used * 1100.0},
        "hits": {"resident": asked - misses - late, "in_flight": late, "miss": misses},
        "stall_ms": {"total": 1000 * (tpot - 2.0), "p50": tpot - 2.0, "p99": tpot},
        "overlap_fraction": 0.25, "link_busy_fraction": 0.5,
        "evictions": misses, "evicted_before_use": used // 9, "host_pool": None, "foresight": None,
        "peak_rss_bytes": None, "results_version": VERSION, "cell": f"{system}-{slots}-{scale}-{prefetch}",
        "trace": "toy.safetensors", "machine": "rtx4090-pcie4", "slots": slots, "weights": "bf16",
        "lane": "link",
        "link_scale": scale, "pool": "global", "cold": False, "sequences": 3, "held_out": None,
        "predictor": "toy.safetensors" if system == "prophet" else None, "predictor_seen": None,
        "serving": None, "options": {},
        "times": {"name": "rtx4090-pcie4", "bytes_per_second": 25e9 * scale, "latency_ns": 0,
                  "overhead_ns": 0,
                  "chunk_bytes": 1 << 20, "pass_ns": 0, "layer_ns": 250_000, "layer_token_ns": 0,
                  "expert_ns": 125_000, "expert_token_ns": 0},
        "resident_ms": 2.0, "fits": slots != "75%", "accesses": asked,
        "layer_misses": [misses // 4] * 4, "flops_per_token": 1e9,
        "residence": {
            "left": misses, "turns": {"mean": 5.0, "p50": 3, "p90": 12, "p99": 40},
            "ms": {"mean": 50.0, "p50": 30.0, "p90": 120.0, "p99": 400.0},
            "by_power": [misses - misses // 2, misses // 2], "back_within": {"1": 0.1, "4": 0.25, "16": 0.5},
        } if misses and system != "on-demand" else None,
        "domains": {
            name: {"tokens": 500, "decode_ns": 500 * int(tpot * 1e6), "bytes_moved": misses * 10**6 // 2,
                   "hits_resident": (asked - misses) // 2 + shift, "hits_in_flight": 0,
                   "misses": misses // 2 - shift}
            for name, shift in (("code", 0), ("</script><b>law", min(40, misses // 4)))
        },
        "wall_s": 0.1,
    }  # fmt: skip
    return line | {"cell": line["cell"] + repr(sorted(changes.items()))} | changes


def make_served(system: str, slots: str, at_once: int, **changes: Any) -> Line:
    """The same with so many requests at once; what one waits grows with them, what they share, too."""
    line = make_line(system, slots, prefetch=system == "prophet")
    factor = at_once**0.5
    tpot = {name: value * factor for name, value in line["tpot_ms"].items()}
    serving = {
        "concurrency": at_once, "seed": 0, "prompt_tokens": 8, "passes": 1000, "rows": float(at_once),
        "union": 2 * at_once**0.7, "streamed": 0.0, "tokens_per_second": 100.0 * factor,
        "ttft_ms": {"mean": 50.0 * factor, "p50": 40.0 * factor, "p99": 90.0 * factor},
    }  # fmt: skip
    cell = f"{line['cell']}-{at_once}"
    return line | {"tpot_ms": tpot, "serving": serving, "cell": cell, "domains": {}} | changes


def make_report(system: str, at_once: int, scale: float = 1.0, **changes: Any) -> dict[str, Any]:
    """A line of prophet bench --serve --json."""
    tpot = {"on-demand": 9.0, "expected-next-use": 7.0, "prophet": 6.0}[system] * at_once**0.5 * scale
    return {
        "model": "/folder/reference-moe", "backend": "cpu", "system": system, "concurrency": at_once,
        "requests": 8, "expert_slots": 96, "experts_total": 384, "expert_bytes": 73728, "prompt_tokens": 64,
        "new_tokens": 128, "seconds": 2.0, "tokens_per_second": 64.0,
        "ttft_ms": {"mean": 20.0, "p50": 19.0, "p99": 30.0},
        "tpot_ms": {"mean": tpot, "p50": tpot, "p90": tpot * 1.1, "p99": tpot * 1.3, "p999": tpot * 1.5},
        "stalled": 0.3, "bytes_per_token": 3.9e6, "hits": {"resident": 50, "in_flight": 0, "miss": 50},
        "hit_rate": 0.5, "union": 4.0 * at_once**0.8, "streamed": 0.0, "peak_rss_bytes": 10**8,
    } | changes  # fmt: skip


KINDS = ("layer_step", "stall", "compute", "read_demand", "read_prefetch", "miss", "evicted")
MS = 1_000_000


def make_timeline(steps: int = 6, layers: int = 2) -> dict[str, Any]:
    """A Chrome trace of steps of 10 ms: in each layer 1 ms waits for a read of 2 ms, 1 ms computes, and 3 ms
    are outside of the experts. Step 3 waits 4 ms longer in layer 1. Expert `step % 3` of a layer is read, and
    leaves two steps later.
    """
    rows: list[tuple[int, int, int, int, int, int]] = []
    at = 0
    for step in range(steps):
        for layer in range(layers):
            extra = 4 * MS if (step, layer) == (3, 1) else 0
            expert, gone = step % 3, (step - 2) % 3
            rows.append((at, at + 2 * MS + extra, 0, layer, -1, 0))
            rows.append((at, at, 5, layer, expert, 100))
            if step >= 2:
                rows.append((at, at, 6, layer, gone, 0))
            rows.append((at, at + 2 * MS + extra, 3, layer, expert, 1_000_000))
            rows.append((at, at + MS + extra, 1, layer, -1, 0))
            rows.append((at + MS + extra, at + 2 * MS + extra, 2, layer, -1, 0))
            at += 5 * MS + extra
    rows.append((at, at, 5, 0, 0, 1))  # the last event ends the last window
    table = np.array(rows, np.int64)
    about = {"system": "lru", "expert_slots": 2, "experts_total": 6}
    return chrome_trace(dict(zip(COLUMNS, table.T, strict=True)), KINDS, "folder/toy", about)
