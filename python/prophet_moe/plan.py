"""Will it fit, what will it read, how fast can it be: answered from headers and two short measurements."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import prophet_ext
from prophet_moe import machine
from prophet_moe.budget import Item, MemoryPlan, plan_memory
from prophet_moe.errors import BudgetError, ProphetError

ASSUMPTION = "uniform routing: every expert is equally likely at every token"
_MEASURE_SECONDS = 0.4


@dataclass(frozen=True)
class Outlook:
    """What a run would be like. Sizes bytes, rates bytes per second, times milliseconds.

    tpot_ms_expected and tpot_ms_zero_cache add up reading missed experts from disk and reading
    everything that a token touches from memory; what Python and the library cost per layer is not
    in them. None where a rate could not be measured or the model does not fit.
    """

    model: str
    family: str
    model_class: str
    dtype: str
    fits: bool
    resident: bool
    why_not: str | None
    budget_bytes: int | None
    minimum_bytes: int | None
    expert_slots: int | None
    experts_total: int
    expert_bytes: int
    moe_layers: int
    top_k: int
    dense_bytes: int
    all_experts_bytes: int
    context: int
    kv_bytes: int
    account: list[Item]
    bytes_per_token_zero_cache: int
    bytes_per_token_expected: int | None
    assumption: str
    disk_bytes_per_second: float | None
    memory_bytes_per_second: float | None
    tpot_ms_zero_cache: float | None
    tpot_ms_expected: float | None

    def to_dict(self) -> dict[str, Any]:
        """Plain dictionaries and numbers, for JSON."""
        return asdict(self)


def measure_disk(
    path: str | os.PathLike[str], expert_bytes: int, seconds: float = _MEASURE_SECONDS
) -> float | None:
    """Bytes per second of random reads of about one expert past the page cache; None where that fails."""
    page = machine.PAGE
    chunk = min(max(expert_bytes // page * page, page), 1 << 20)
    try:
        measured = prophet_ext.read_bandwidth(str(path), seconds, chunk, 16, "auto")
    except (ProphetError, OSError):
        return None
    return measured["bytes_per_second"] or None


def look_ahead(
    info: Any,
    *,
    budget: int | str = "auto",
    slots: int | str | None = None,
    context: int,
    pool: str = "global",
    threads: int | None = None,
    measure: bool = True,
) -> Outlook:
    """The outlook of a models.ModelInfo. What does not fit is an answer; ValueError is for nonsense flags."""
    plan: MemoryPlan | None = None
    why_not: str | None = None
    minimum: int | None = None
    try:
        plan = plan_memory(info, budget=budget, slots=slots, context=context, pool=pool)
        minimum = plan.minimum_bytes
    except BudgetError as error:
        why_not, minimum = str(error), error.minimum_bytes
    zero_cache = info.layers * info.top_k * info.expert_bytes
    expected = None
    if plan is not None:
        expected = round(zero_cache * (1 - plan.slots / info.experts_total))
    disk = memory = None
    if measure:
        largest = max(info.files, key=lambda file: Path(file).stat().st_size)
        disk = measure_disk(largest, info.expert_bytes)
        memory = prophet_ext.memory_bandwidth(threads or machine.cpu_count(), _MEASURE_SECONDS)
    touched = info.dense_bytes + zero_cache

    def tpot(read: int | None) -> float | None:
        if read is None or not disk or not memory:
            return None
        return (read / disk + touched / memory) * 1000

    return Outlook(
        model=info.name,
        family=info.family,
        model_class=info.class_name,
        dtype=str(info.dtype).removeprefix("torch."),
        fits=plan is not None,
        resident=plan is not None and plan.resident,
        why_not=why_not,
        budget_bytes=plan.budget_bytes if plan else None,
        minimum_bytes=minimum,
        expert_slots=plan.slots if plan else None,
        experts_total=info.experts_total,
        expert_bytes=info.expert_bytes,
        moe_layers=info.layers,
        top_k=info.top_k,
        dense_bytes=info.dense_bytes,
        all_experts_bytes=info.experts_total * info.expert_bytes,
        context=context,
        kv_bytes=info.kv_bytes_per_token * context + info.state_bytes,
        account=list(plan.items) if plan else [],
        bytes_per_token_zero_cache=zero_cache,
        bytes_per_token_expected=expected,
        assumption=ASSUMPTION,
        disk_bytes_per_second=disk,
        memory_bytes_per_second=memory,
        tpot_ms_zero_cache=tpot(zero_cache),
        tpot_ms_expected=tpot(expected),
    )
