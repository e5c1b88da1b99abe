"""Will it fit? An itemised account of a process' memory, drawn up before anything is loaded.

The budget bounds the *peak* resident memory of the whole process: what the interpreter and its
libraries hold already, the weights that stay, the KV cache for the context asked for, the working
memory of a prefill, the engine, and the arena of expert slots, which takes what is left. The
account rounds up everywhere: a budget is kept or refused, never passed in silence.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from prophet_moe import machine
from prophet_moe.errors import BudgetError

MIB = 1 << 20
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_UNITS |= {unit + "i": 1024**power for power, unit in enumerate("kmgt", 1)}
_SIZE = re.compile(r"(\d+(?:\.\d*)?|\.\d+)\s*([kmgt]?i?)b?", re.IGNORECASE)

# Code pages and workspaces that libraries touch at their first forward; the account's tests hold it and
# its neighbours against real processes. With torch 2.13 on CPU, transformers 5.23, 2 threads, 500 tokens of
# a 2.46 GB model: 34 MiB, of which 14 are code and 16 the kernels that machine.bound_library_memory lets
# oneDNN keep; the whole account was 42 to 47 MiB above the peak.
FIRST_USE = 30 * MIB
FIRST_USE_PER_THREAD = 2 * MIB
ENGINE_FIXED = 4 * MIB
ENGINE_PER_EXPERT = 1024
# An auto budget leaves this part of the machine's available memory to everybody else.
AUTO_SHARE = 0.8


class ModelSize(Protocol):
    """What the account needs to know of a model; models.ModelInfo has it."""

    @property
    def layers(self) -> int: ...
    @property
    def top_k(self) -> int: ...
    @property
    def hidden(self) -> int: ...
    @property
    def inter(self) -> int: ...
    @property
    def vocab_size(self) -> int: ...
    @property
    def experts_total(self) -> int: ...
    @property
    def expert_bytes(self) -> int: ...
    @property
    def dense_bytes(self) -> int: ...
    @property
    def kv_bytes_per_token(self) -> int: ...
    @property
    def state_bytes(self) -> int: ...
    @property
    def slot_bytes(self) -> int: ...
    @property
    def config(self) -> Any: ...


@dataclass(frozen=True)
class Item:
    """One line of the account."""

    name: str
    bytes: int
    why: str


@dataclass(frozen=True)
class MemoryPlan:
    """How a budget is spent. All sizes in bytes."""

    budget_bytes: int
    slots: int
    experts_total: int
    slot_bytes: int
    context: int
    batch: int
    items: tuple[Item, ...]
    minimum_bytes: int  # the smallest budget that would do

    @property
    def arena_bytes(self) -> int:
        """Bytes of all slots together."""
        return self.slots * self.slot_bytes

    @property
    def total_bytes(self) -> int:
        """The peak that the account expects; at most budget_bytes."""
        return sum(item.bytes for item in self.items)

    @property
    def resident(self) -> bool:
        """True when every expert has a slot: nothing is read twice."""
        return self.slots >= self.experts_total

    def lines(self) -> list[str]:
        """The account for people, one line an item."""
        rows = [(item.name, item.bytes, item.why) for item in self.items]
        rows.append(("in all", self.total_bytes, f"of a budget of {format_size(self.budget_bytes)}"))
        return [f"{name:<26} {format_size(size):>11}  {why}" for name, size, why in rows]


def parse_size(size: int | str) -> int:
    """Bytes of `8GiB`, `12GB`, `512m`, `1.5g` (k m g t: powers of 1000; ki mi gi ti: of 1024) or a count.

    Raises ValueError with a sentence for anything else, zero and negative sizes included.
    """
    if isinstance(size, int) and not isinstance(size, bool):
        value = size
    else:
        match = _SIZE.fullmatch(str(size).strip())
        if match is None or isinstance(size, bool):
            raise ValueError(f"{size!r} is not a size: write bytes or something like 8GiB, 12GB or 512MiB.")
        value = int(float(match[1]) * _UNITS[match[2].lower()])
    if value <= 0:
        raise ValueError(f"{size!r} is not a size: it must be more than zero bytes.")
    return value


def format_size(size: float) -> str:
    """`1.50 GiB`, `320 MiB`, `72 KiB`: for people."""
    for unit, power in (("GiB", 3), ("MiB", 2), ("KiB", 1)):
        if abs(size) >= 1024**power:
            value = size / 1024**power
            return f"{value:.2f} {unit}" if unit == "GiB" else f"{value:.4g} {unit}"
    return f"{size:.0f} B"


def parse_slots(slots: int | str, experts_total: int) -> int:
    """Slots of `40` or of `25%` (of all experts, at least one). Raises ValueError with a sentence."""
    text = str(slots).strip()
    match = re.fullmatch(r"(\d+(?:\.\d*)?)\s*(%?)", text)
    if match is None or isinstance(slots, bool):
        raise ValueError(
            f"{slots!r} is not a number of slots: write a count such as 96 or a share such as 25%."
        )
    if match[2]:
        share = float(match[1])
        if not 0 < share <= 100:
            raise ValueError(f"{text} is no share of the experts: it lies above 0% and up to 100%.")
        return max(1, round(experts_total * share / 100))
    if "." in match[1] or int(match[1]) < 1:
        raise ValueError(f"{slots!r} is not a number of slots: write a whole count of at least 1, or 25%.")
    return int(match[1])


def minimum_slots(model: ModelSize, pool: str = "global") -> int:
    """The fewest slots that can serve one token, without and with a pool for each layer."""
    if pool == "per-layer":
        return model.top_k * model.layers
    return min(model.experts_total, max(model.top_k, 2))


def _largest(config: Any, name: str) -> int:
    """A size that the configuration names once, or for each layer; 0 where it does not."""
    try:
        found = getattr(config, name, None)
    except RuntimeError:  # transformers refuses to name one value where layers differ
        found = [getattr(layer, name, None) for layer in config.per_layer_config]
    values = found if isinstance(found, (list, tuple)) else [found]
    return max((int(value) for value in values if value), default=0)


def prefill_bytes(model: ModelSize, tokens: int, batch: int = 1) -> int:
    """Working memory of one forward over `tokens` tokens of each of `batch` sequences, an upper estimate.

    Hidden states in the model's type and in fp32 (norms), attention's projections, the rows of
    the worst expert (all tokens), logits of the last token with the copies that sampling makes.
    """
    config = getattr(model.config, "get_text_config", lambda: model.config)()
    heads = _largest(config, "num_attention_heads") or 1
    head_dim = _largest(config, "head_dim") or model.hidden // heads or 1
    dense_width = _largest(config, "intermediate_size")
    width = 4  # bytes: fp32, or two copies in 16 bits
    # What attention needs is free again when the experts begin.
    attention = 4 * max(model.hidden, heads * head_dim)
    experts = 3 * model.hidden + 3 * model.inter + 4 * (model.experts_total // max(1, model.layers))
    per_token = width * (4 * model.hidden + max(attention, experts, 3 * dense_width))
    total = per_token * tokens * batch
    if getattr(config, "_attn_implementation", None) == "eager":
        total += 3 * 4 * heads * tokens * tokens * batch
    else:
        total += tokens * tokens * batch  # a mask of booleans
    return total + 8 * 4 * model.vocab_size * batch + 3 * model.expert_bytes


def host_account(
    model: ModelSize, slots: int, slot_bytes: int, context: int, batch: int, rss_now: int
) -> tuple[Item, ...]:
    """What this process will hold, item by item; plan_memory has the meaning of the arguments."""
    kv = (model.kv_bytes_per_token * context + model.state_bytes) * batch
    items = [
        Item("interpreter and libraries", rss_now, "resident now"),
        Item(
            "first use of libraries",
            FIRST_USE + FIRST_USE_PER_THREAD * machine.cpu_count(),
            "code and workspaces touched by the first forward",
        ),
        Item("weights that stay", model.dense_bytes, "everything but the experts"),
        # A cache grows by copying one layer at a time, and freed blocks do not all return at once.
        Item("KV cache", kv + kv // 4, f"{context} tokens x {batch}"),
        Item("working memory", prefill_bytes(model, context, batch), f"a prefill of up to {context} tokens"),
        Item("engine", ENGINE_FIXED + ENGINE_PER_EXPERT * model.experts_total, "tables, queues, threads"),
        Item("experts", slots * slot_bytes, f"{slots} slots of {format_size(slot_bytes)}"),
    ]
    margin = max(16 * MIB, sum(item.bytes for item in items) // 50)
    return (*items, Item("margin", margin, "2 %, at least 16 MiB"))


def _round_up(size: int) -> int:
    """A round number a little above: rss_now differs by a few MiB from run to run."""
    step = 16 * MIB
    return (size + 8 * MIB + step - 1) // step * step


def auto_budget(rss_now: int, memory: machine.Memory | None = None) -> int:
    """Bytes that this process may grow to: its own now, and what machine and cgroup leave it.

    Counted as rss() counts, so that the figure may pass a cgroup's limit by the file pages mapped now.
    """
    memory = memory or machine.memory()
    most = rss_now + int(memory.available * AUTO_SHARE)
    if memory.limit is not None:
        # The account counts file pages (libraries, about 100 MiB), which the kernel drops before it
        # kills, and which another group may have paid for. Those that every token runs through find room in
        # what the account keeps for a first use, and in its margin.
        limit = memory.limit - MIB
        most = min(most, limit + memory.mapped, rss_now + limit - (memory.used or 0))
    return max(rss_now, most)


def plan_memory(
    model: ModelSize,
    *,
    budget: int | str | None = "auto",
    slots: int | str | None = None,
    context: int,
    batch: int = 1,
    pool: str = "global",
    rss_now: int | None = None,
    memory: Callable[[], machine.Memory] = machine.memory,
) -> MemoryPlan:
    """Divides a budget. Call it when the libraries are imported and before weights are read.

    budget: bytes, a size such as `8GiB`, or auto (None is auto): what the machine and its cgroups
    leave, and no more than all experts need. slots: names the arena exactly (`96`, `25%`);
    the budget is then a bound that the account is held to. context: tokens that the KV cache must
    hold. rss_now: measured when None.

    Raises BudgetError (with .minimum_bytes) when the budget holds too few slots, ValueError for
    what is no size, no count or no context.
    """
    if context < 1 or batch < 1:
        raise ValueError(
            f"a context of {context} tokens in {batch} sequences is empty: both must be at least 1."
        )
    if pool not in ("global", "per-layer"):
        raise ValueError(f"{pool!r} is not a pool: use global or per-layer.")
    rss_now = machine.rss() if rss_now is None else rss_now
    slot = model.slot_bytes
    least = minimum_slots(model, pool)

    def account(count: int) -> tuple[Item, ...]:
        return host_account(model, count, slot, context, batch, rss_now)

    def total(count: int) -> int:
        return sum(item.bytes for item in account(count))

    asked = None if slots is None else parse_slots(slots, model.experts_total)
    if asked is not None and asked < least:
        raise BudgetError(
            f"{slots} slots hold {asked} of {model.experts_total} experts, and one token needs {least}"
            f"{' (top-k of every layer)' if pool == 'per-layer' else ''}: name at least {least} slots.",
            minimum_bytes=_round_up(total(least)),
        )
    wanted = min(asked or model.experts_total, model.experts_total)
    minimum = _round_up(total(wanted if asked else least))
    if budget is None or budget == "auto":
        limit = min(auto_budget(rss_now, memory()), _round_up(total(wanted)))
        named = f"the memory left to this process ({format_size(limit)})"
        way_out = "free memory, raise the cgroup's limit, or name a shorter context"
    else:
        limit = parse_size(budget)
        named = f"a budget of {format_size(limit)}"
        way_out = f"the smallest budget that would do is {minimum // MIB}MiB"
        if context > 1:
            way_out += f", and less for a context shorter than {context} tokens"
    if batch > 1:
        way_out += f", or for fewer sequences at a time than {batch}"
    count = wanted
    if total(wanted) > limit and asked is None:
        # total() grows by slot bytes and at most 2 % of them: start below and step up to the last fit.
        spare = limit - total(0)
        count = max(0, min(wanted, math.floor(spare / (slot * 1.02))))
        while count < wanted and total(count + 1) <= limit:
            count += 1
    if count < least or total(count) > limit:
        needed = f"{wanted if asked else least} expert slots"
        raise BudgetError(
            f"{named} cannot hold {needed} beside what must stay in memory: {way_out}.",
            minimum_bytes=minimum,
        )
    return MemoryPlan(
        budget_bytes=limit,
        slots=count,
        experts_total=model.experts_total,
        slot_bytes=slot,
        context=context,
        batch=batch,
        items=account(count),
        minimum_bytes=_round_up(total(least)),
    )
