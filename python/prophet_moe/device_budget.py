"""Will it fit on a GPU? The account of device memory, and what is left on the host for the pool below it.

`device_budget` bounds what Prophet and torch put on the GPU: experts first of all, and where torch
computes there also the weights that stay, the KV cache and working memory. `budget` keeps its meaning,
the peak of the process on the host; what it leaves is the host pool, from which experts come without a
read. Sizes in bytes.
"""

from __future__ import annotations

from prophet_moe import machine
from prophet_moe.budget import (
    MIB,
    Item,
    MemoryPlan,
    ModelSize,
    auto_budget,
    format_size,
    host_account,
    minimum_slots,
    parse_size,
    parse_slots,
    prefill_bytes,
)
from prophet_moe.errors import BudgetError

ENGINE = 16 * MIB  # buffers of the kernels, tables, the rings of the hit path
LIBRARIES = 256 * MIB  # torch's matrix libraries, their workspaces
AUTO_SHARE = 0.95  # of the memory that is free
LEAST_POOL = 64 * MIB


def plan_device(
    model: ModelSize,
    *,
    free: int,
    device_budget: int | str | None = "auto",
    slots: int | str | None = None,
    context: int,
    batch: int = 1,
    pool: str = "global",
    whole_model: bool,
) -> MemoryPlan:
    """Divides the memory of a GPU. free: its bytes now; whole_model: torch computes there too.

    Raises BudgetError (with .minimum_bytes) when too few experts fit, ValueError for what is no size or
    count.
    """
    asked = None if slots is None else parse_slots(slots, model.experts_total)
    least = minimum_slots(model, pool)
    if asked is not None and asked < least:
        raise BudgetError(
            f"{slots} slots hold {asked} of {model.experts_total} experts, and one token needs {least}: "
            f"name at least {least} slots."
        )
    items = [Item("engine", ENGINE, "buffers and tables")]
    if whole_model:
        cache = (model.kv_bytes_per_token * context + model.state_bytes) * batch
        items += [
            Item("weights that stay", model.dense_bytes, "everything but the experts"),
            Item("KV cache", cache + cache // 4, f"{context} tokens x {batch}"),
            Item("working memory", prefill_bytes(model, context, batch), f"a prefill of {context} tokens"),
            Item("libraries", LIBRARIES, "workspaces of torch"),
        ]
    fixed = sum(item.bytes for item in items)
    wanted = min(asked or model.experts_total, model.experts_total)
    needed = fixed + (wanted if asked else least) * model.slot_bytes
    if device_budget is None or device_budget == "auto":
        limit = int(free * AUTO_SHARE)
        named = f"the GPU's free memory ({format_size(free)})"
    else:
        limit = min(parse_size(device_budget), free)
        named = f"a device budget of {format_size(limit)}"
    count = min(wanted, max(0, limit - fixed) // model.slot_bytes)
    if count < (wanted if asked else least):
        raise BudgetError(
            f"{named} cannot hold {wanted if asked else least} expert slots beside what must stay there: "
            f"the smallest device budget that would do is {-(-needed // MIB)}MiB; fewer slots or a shorter "
            "context need less.",
            minimum_bytes=needed,
        )
    items.append(Item("experts", count * model.slot_bytes, f"{count} slots"))
    return MemoryPlan(
        budget_bytes=limit,
        slots=count,
        experts_total=model.experts_total,
        slot_bytes=model.slot_bytes,
        context=context,
        batch=batch,
        items=tuple(items),
        minimum_bytes=fixed + least * model.slot_bytes,
    )


def host_pool(
    model: ModelSize,
    *,
    budget: int | str | None = "auto",
    context: int,
    batch: int = 1,
    rss_now: int | None = None,
    memory: machine.Memory | None = None,
) -> int:
    """Bytes of host memory for experts below the GPU: what the budget leaves, and no more than all of them.

    Raises BudgetError when less than 64 MiB would be left, ValueError for what is no size.
    """
    rss_now = machine.rss() if rss_now is None else rss_now
    fixed = sum(item.bytes for item in host_account(model, 0, model.slot_bytes, context, batch, rss_now))
    automatic = budget is None or budget == "auto"
    limit = auto_budget(rss_now, memory) if budget is None or budget == "auto" else parse_size(budget)
    most = max(model.experts_total * model.slot_bytes, LEAST_POOL)
    left = limit - fixed
    if left < LEAST_POOL and not automatic:
        minimum = fixed + LEAST_POOL
        raise BudgetError(
            f"a budget of {format_size(limit)} leaves no host memory between disk and GPU: the smallest that "
            f"would do is {-(-minimum // MIB)}MiB.",
            minimum_bytes=minimum,
        )
    return min(most, max(left, LEAST_POOL))
