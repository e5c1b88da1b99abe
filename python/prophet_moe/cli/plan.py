"""prophet plan: will it fit, what will it read, how fast; nothing is loaded."""

from __future__ import annotations

from json import dumps

import typer

from prophet_moe.cli import options as flag
from prophet_moe.cli.console import data, guarded, number, print_json, spinner

HELP = """Example: prophet plan reference-moe --slots 25%

Says before loading anything whether a model fits, what it reads per token and what that
takes on this disk. Exits with 1 when it does not fit."""


@guarded
def plan(
    model: flag.Model,
    budget: flag.Budget = "auto",
    slots: flag.Slots = None,
    context: flag.Context = None,
    pool: flag.Pool = "global",
    threads: flag.Threads = None,
    measure: flag.Measure = True,
    json: flag.Json = False,
    quiet: flag.Quiet = False,
    verbose: flag.Verbose = False,
) -> None:
    from prophet_moe.budget import format_size
    from prophet_moe.cli.session import default_context, look_at
    from prophet_moe.plan import Outlook, look_ahead

    info = look_at(model, quiet)
    with spinner("measuring disk and memory", quiet or not measure):
        seen: Outlook = look_ahead(
            info,
            budget=budget,
            slots=slots,
            context=context or default_context(info),
            pool=pool,
            threads=threads,
            measure=measure,
        )
    if json:
        print_json(dumps(seen.to_dict()))
        raise typer.Exit(0 if seen.fits else 1)

    def size(value: float | None) -> str:
        return "-" if value is None else format_size(value)

    def rate(value: float | None) -> str:
        return "not measured" if value is None else f"{value / 1e9:.2f} GB/s"

    out = data()

    def say(line: str) -> None:
        out.print(line, markup=False, soft_wrap=True)

    say(f"{seen.model}: {seen.model_class}, {seen.dtype}, {seen.moe_layers} MoE layers, "
        f"{seen.experts_total} experts of {size(seen.expert_bytes)}, top-{seen.top_k}")  # fmt: skip
    say(f"experts {size(seen.all_experts_bytes)}, the rest {size(seen.dense_bytes)}, "
        f"KV cache {size(seen.kv_bytes)} for {seen.context} tokens")  # fmt: skip
    say("")
    if seen.fits:
        share = (seen.expert_slots or 0) / seen.experts_total
        mode = "fits: all experts stay in memory" if seen.resident else "fits, streaming experts from disk"
        say(f"{mode}; {seen.expert_slots} of {seen.experts_total} slots ({share:.0%}) "
            f"within {size(seen.budget_bytes)}; smallest budget {size(seen.minimum_bytes)}")  # fmt: skip
        for item in seen.account:
            say(f"  {item.name:<26} {size(item.bytes):>11}  {item.why}")
    else:
        say(f"does not fit: {seen.why_not}")
    say("")
    without = size(seen.bytes_per_token_zero_cache)
    with_slots = size(seen.bytes_per_token_expected)
    say(f"read per token          {without} with no cache, {with_slots} with these slots")
    say(f"                        assuming {seen.assumption}")
    disk, memory = rate(seen.disk_bytes_per_second), rate(seen.memory_bytes_per_second)
    say(f"measured                disk {disk}, memory {memory}")
    expected = number(seen.tpot_ms_expected, ".1f", " ms")
    slowest = number(seen.tpot_ms_zero_cache, ".1f", " ms")
    say(f"time per output token   {expected} expected, {slowest} with no cache")
    say("                        from bandwidths alone, without what Python costs per layer")
    raise typer.Exit(0 if seen.fits else 1)
