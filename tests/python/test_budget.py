"""Sizes, slots and the account of a budget."""

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prophet_moe import machine
from prophet_moe.budget import (
    MIB,
    auto_budget,
    format_size,
    minimum_slots,
    parse_size,
    parse_slots,
    plan_memory,
    prefill_bytes,
)
from prophet_moe.errors import BudgetError, ProphetError

GIB = 1 << 30
RSS = 360 * MIB


@dataclass
class Model:
    """A model of 8 layers with 64 experts of 3 MiB."""

    layers: int = 8
    top_k: int = 8
    hidden: int = 1024
    inter: int = 512
    vocab_size: int = 32000
    experts_total: int = 512
    expert_bytes: int = 3 * MIB
    slot_bytes: int = 3 * MIB + 8192
    dense_bytes: int = 100 * MIB
    kv_bytes_per_token: int = 16384
    state_bytes: int = 0
    config: Any = field(default_factory=lambda: SimpleNamespace(num_attention_heads=16, head_dim=64))


def roomy() -> machine.Memory:
    return machine.Memory(64 * GIB, 32 * GIB, None, None)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("8GiB", 8 * GIB),
        ("12GB", 12 * 10**9),
        ("512m", 512 * 10**6),
        ("1.5g", 1_500_000_000),
        (" 2 gib ", 2 * GIB),
        ("4096", 4096),
        (4096, 4096),
        ("1ki", 1024),
        (".5GiB", GIB // 2),
        ("1TiB", 1 << 40),
        ("7b", 7),
    ],
)
def test_sizes(text: int | str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text", ["", "lots", "-1GiB", "0", "1e9", "8 GiBs", "GiB", "1..5g", "nan", "inf", True, -5, 0.0, "0.1"]
)
def test_what_is_no_size_gets_a_sentence(text: Any) -> None:
    with pytest.raises(ValueError, match="is not a size: "):
        parse_size(text)


@given(st.integers(1, 1 << 50))
def test_a_plain_count_means_itself(size: int) -> None:
    assert parse_size(str(size)) == parse_size(size) == size


def test_sizes_for_people() -> None:
    assert [format_size(n) for n in (12, 73728, 3 * MIB, 5 * GIB // 2)] == [
        "12 B",
        "72 KiB",
        "3 MiB",
        "2.50 GiB",
    ]


def test_slots() -> None:
    assert [parse_slots(text, 512) for text in (96, "96", "25%", "100%", "0.01%", "12.5%")] == [
        96,
        96,
        128,
        512,
        1,
        64,
    ]


@pytest.mark.parametrize("text", ["", "none", "-4", "0", "0%", "101%", "1.5", True, "25 %%", "%"])
def test_what_is_no_number_of_slots_gets_a_sentence(text: Any) -> None:
    with pytest.raises(ValueError, match=r"slots|share"):
        parse_slots(text, 512)


def test_auto_takes_no_more_than_all_experts_need() -> None:
    plan = plan_memory(Model(), context=100, rss_now=RSS, memory=roomy)
    assert plan.resident
    assert plan.slots == 512
    assert plan.total_bytes <= plan.budget_bytes < plan.total_bytes + 64 * MIB


def test_auto_respects_a_cgroup() -> None:
    limit = 7 * GIB // 4
    for used in (0, RSS, GIB // 2, GIB):
        boxed = machine.Memory(64 * GIB, 32 * GIB, limit, used)
        plan = plan_memory(Model(dense_bytes=0), context=100, rss_now=RSS, memory=lambda boxed=boxed: boxed)
        assert not plan.resident
        assert plan.budget_bytes < limit
        assert plan.budget_bytes - RSS + used < limit
        assert auto_budget(RSS, boxed) < auto_budget(RSS, roomy())


def test_auto_counts_mapped_files_as_memory_that_the_kernel_drops() -> None:
    limit, mapped, anonymous = 7 * GIB // 4, 90 * MIB, RSS - 90 * MIB
    group = machine.Memory(64 * GIB, 32 * GIB, limit, anonymous, mapped)
    budget = auto_budget(RSS, group)
    assert budget - mapped < limit  # what cannot be dropped stays within the limit
    assert budget > limit
    # Mapped pages are no licence to pass what others in the group hold, or what the machine has.
    crowded = machine.Memory(64 * GIB, 32 * GIB, limit, anonymous + GIB, mapped)
    assert auto_budget(RSS, crowded) < limit - GIB + mapped
    small = machine.Memory(2 * GIB, GIB // 2, limit, anonymous, mapped)
    assert auto_budget(RSS, small) < RSS + GIB // 2


def test_a_named_budget_counts_mapped_files_in_full() -> None:
    def box(mapped: int) -> machine.Memory:
        return machine.Memory(64 * GIB, 32 * GIB, GIB, RSS, mapped)

    plans = [
        plan_memory(
            Model(), budget="1GiB", context=100, rss_now=RSS, memory=lambda mapped=mapped: box(mapped)
        )
        for mapped in (0, 90 * MIB)
    ]
    assert plans[0] == plans[1]


def test_a_prefill_needs_attention_or_experts_at_a_time() -> None:
    wide = Model(config=SimpleNamespace(num_attention_heads=64, head_dim=128))
    per_token = (prefill_bytes(wide, 1001) - prefill_bytes(wide, 1)) / 1000
    assert 4 * 4 * (1024 + 64 * 128) <= per_token < 4 * 4 * (1024 + 64 * 128) + 4 * 3 * (1024 + 512)


def test_auto_refuses_a_cgroup_that_is_full() -> None:
    full = machine.Memory(64 * GIB, 32 * GIB, GIB, GIB)
    with pytest.raises(BudgetError, match="raise the cgroup's limit"):
        plan_memory(Model(), context=100, rss_now=RSS, memory=lambda: full)


@given(
    budget=st.integers(1, 4 * GIB),
    context=st.integers(1, 100_000),
    batch=st.integers(1, 8),
    pool=st.sampled_from(["global", "per-layer"]),
    rss=st.integers(0, GIB),
)
def test_a_plan_keeps_its_budget_and_wastes_no_slot(
    budget: int, context: int, batch: int, pool: str, rss: int
) -> None:
    model = Model()
    options: dict[str, Any] = {
        "context": context,
        "batch": batch,
        "pool": pool,
        "rss_now": rss,
        "memory": roomy,
    }
    least = plan_memory(model, budget=1 << 50, **options).minimum_bytes
    assert plan_memory(model, budget=least, **options).slots >= minimum_slots(model, pool)
    try:
        plan = plan_memory(model, budget=budget, **options)
    except BudgetError as error:
        refused = error
    else:
        refused = None
    if refused is not None:
        assert budget < least
        assert refused.minimum_bytes == least
        assert f"{least // MIB}MiB" in str(refused)
        return
    assert plan.total_bytes <= budget
    assert minimum_slots(model, pool) <= plan.slots <= model.experts_total
    assert plan.resident or plan.total_bytes + plan.slot_bytes * 1.03 > budget


def test_named_slots_are_the_arena() -> None:
    plan = plan_memory(Model(), slots="25%", context=100, rss_now=RSS, memory=roomy)
    assert plan.slots == 128
    assert plan.arena_bytes == 128 * Model().slot_bytes
    assert plan_memory(Model(), slots=9999, context=1, rss_now=RSS, memory=roomy).slots == 512


def test_named_slots_are_held_to_a_named_budget() -> None:
    with pytest.raises(BudgetError, match="cannot hold 128 expert slots") as caught:
        plan_memory(Model(), slots=128, budget="600MiB", context=100, rss_now=RSS, memory=roomy)
    assert (
        plan_memory(
            Model(), slots=128, budget=caught.value.minimum_bytes, context=100, rss_now=RSS, memory=roomy
        ).slots
        == 128
    )


@pytest.mark.parametrize(("pool", "least"), [("global", 8), ("per-layer", 64)])
def test_fewer_slots_than_a_token_needs(pool: str, least: int) -> None:
    with pytest.raises(BudgetError, match=f"name at least {least} slots"):
        plan_memory(Model(), slots=least - 1, context=1, pool=pool, rss_now=RSS, memory=roomy)
    assert plan_memory(Model(), slots=least, context=1, pool=pool, rss_now=RSS, memory=roomy).slots == least


def test_the_sentence_names_the_smallest_budget_and_is_both_kinds_of_error() -> None:
    with pytest.raises(
        BudgetError, match=r"a budget of 100 MiB cannot hold 8 expert slots .* is \d+MiB"
    ) as caught:
        plan_memory(Model(), budget="100MiB", context=4096, rss_now=RSS, memory=roomy)
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, ProphetError)


@pytest.mark.parametrize(("context", "batch"), [(0, 1), (1, 0), (-3, 1)])
def test_an_empty_context_is_refused(context: int, batch: int) -> None:
    with pytest.raises(ValueError, match="empty"):
        plan_memory(Model(), context=context, batch=batch, rss_now=RSS, memory=roomy)


def test_an_unknown_pool_is_refused() -> None:
    with pytest.raises(ValueError, match="use global or per-layer"):
        plan_memory(Model(), context=1, pool="puddle", rss_now=RSS, memory=roomy)


def test_eager_attention_is_charged_for_its_scores() -> None:
    eager = Model(config=SimpleNamespace(num_attention_heads=16, head_dim=64, _attn_implementation="eager"))
    assert prefill_bytes(eager, 2048) - prefill_bytes(Model(), 2048) > 16 * 2048 * 2048 * 4


def test_the_account_for_people() -> None:
    lines = plan_memory(Model(), context=100, rss_now=RSS, memory=roomy).lines()
    assert any(line.startswith("KV cache") for line in lines)
    assert lines[-1].startswith("in all")
