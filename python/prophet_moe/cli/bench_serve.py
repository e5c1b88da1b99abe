"""prophet bench --serve: requests of different domains side by side, system by system."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

from prophet_moe.cli.console import data, number, print_json, print_warning, spinner

if TYPE_CHECKING:
    from prophet_moe.cli.session import Wish
    from prophet_moe.models.inspect import ModelInfo
    from prophet_moe.serving_run import ServingReport

SYSTEMS = ("on-demand", "expected-next-use", "prophet")
HEADINGS = ("system", "n", "TPOT ms", "p99", "TTFT ms", "tokens/s", "hits", "MiB/tok", "union")


def concurrencies(text: str) -> list[int]:
    """Numbers of `1,4,16`, ascending. Raises ValueError."""
    try:
        found = sorted({int(word) for word in text.split(",") if word.strip()})
    except ValueError:
        found = []
    if not found or found[0] < 1:
        raise ValueError(f"--concurrency {text!r} is no list of whole numbers above 0: write 1,4,16.")
    return found


def domain_prompts(info: ModelInfo, count: int, tokens: int) -> list[list[int]]:
    """`count` prompts of the package, its domains in turn, each cut to `tokens` tokens; repeated when short.

    A model without a tokenizer gets fixed tokens of its vocabulary.
    """
    from prophet_moe.generate import end_tokens, fixed_tokens
    from prophet_moe.models.stock import load_tokenizer
    from prophet_moe.record.prompts import read_prompts, shipped, tokenise

    if not info.has_tokenizer:
        fed = fixed_tokens(count * tokens, info.vocab_size, end_tokens(info))
        return [fed[at : at + tokens] for at in range(0, count * tokens, tokens)]
    by_domain: dict[str, list[Any]] = {}
    for prompt in read_prompts(shipped()):
        by_domain.setdefault(prompt.label, []).append(prompt)
    turns = [one for turn in zip_longest(*by_domain.values()) for one in turn if one is not None]
    turns = (turns * -(-count // len(turns)))[:count]
    return [ids[:tokens] for ids in tokenise(turns, load_tokenizer(info.directory), info.vocab_size)]


def available(names: Sequence[str], info: ModelInfo, predictor: str | None) -> list[str]:
    """The systems that can run; says which cannot."""
    from prophet_moe.cli.bench import trained_for
    from prophet_moe.predict import shipped

    if (
        "prophet" in names
        and trained_for("prophet", predictor) is None
        and shipped.matching(info.layers, info.experts_per_layer, info.top_k) is None
    ):
        print_warning("left out: prophet has no predictor for this geometry (--predictor FILE).")
        return [name for name in names if name != "prophet"]
    return list(names)


def rows(reports: Sequence[ServingReport]) -> list[list[str]]:
    """One row per system and concurrency: medians over rounds."""
    keys = sorted({(one.concurrency, one.system) for one in reports}, key=lambda key: key[0])
    order = list(dict.fromkeys(one.system for one in reports))
    keys.sort(key=lambda key: (key[0], order.index(key[1])))
    table = []
    for concurrency, system in keys:
        mine = [one for one in reports if (one.concurrency, one.system) == (concurrency, system)]

        def middle(values: Sequence[float | None], form: str) -> str:
            known = [value for value in values if value is not None]
            return number(statistics.median(known) if known else None, form)

        table.append([
            system,
            str(concurrency),
            middle([one.tpot_ms.mean for one in mine], ".1f"),
            middle([one.tpot_ms.p99 for one in mine], ".1f"),
            middle([one.ttft_ms.mean for one in mine], ".1f"),
            middle([one.tokens_per_second for one in mine], ".1f"),
            middle([one.hit_rate for one in mine], ".1%"),
            middle([one.bytes_per_token / 2**20 for one in mine], ".2f"),
            middle([one.union for one in mine], ".1f"),
        ])  # fmt: skip
    return table


def told(reports: Sequence[ServingReport]) -> list[str]:
    """Where caching stops paying, by the medians of rounds."""
    from prophet_moe.break_even import Point, verdicts

    groups: dict[tuple[str, int], list[float]] = {}
    for one in reports:
        if one.tpot_ms.mean is not None:
            groups.setdefault((one.system, one.concurrency), []).append(one.tpot_ms.mean)
    return verdicts([Point(name, n, statistics.median(values)) for (name, n), values in groups.items()])


def bench_serve(
    wish: Wish,
    info: ModelInfo,
    names: Sequence[str],
    at_once: Sequence[int],
    *,
    prompts: Sequence[Sequence[int]],
    max_tokens: int,
    repeat: int,
    json: bool,
    markdown: bool,
    quiet: bool,
) -> list[ServingReport]:
    """Rounds of all systems, each loaded anew and measured at every concurrency, fewest requests first."""
    import dataclasses
    import gc

    from prophet_moe import machine
    from prophet_moe.cli.bench import trained_for
    from prophet_moe.cli.session import Session
    from prophet_moe.serving_run import measure

    reports = []
    with spinner("starting", quiet) as say:
        for turn in range(repeat):
            order = list(names) if turn % 2 == 0 else list(reversed(names))
            for name in order:
                say(f"round {turn + 1} of {repeat}: {name}, loading")
                machine.reset_peak_rss()
                foresight = trained_for(name, wish.predictor)
                with Session(dataclasses.replace(wish, system=name, predictor=foresight), info) as session:
                    for count in at_once:
                        say(f"round {turn + 1} of {repeat}: {name}, {count} at once")
                        reports.append(
                            measure(
                                session.model, prompts, concurrency=count, max_new_tokens=max_tokens,
                                name=wish.model,
                            )
                        )  # fmt: skip
                        if json:
                            print_json(reports[-1].to_json())
                gc.collect()
                machine.return_free_memory()
    table = rows(reports)
    if markdown:
        lines = [HEADINGS, ["---"] * len(HEADINGS), *table]
        print("\n".join("| " + " | ".join(line) + " |" for line in lines))
        print("\n" + "\n\n".join(told(reports)))
    elif not json:
        from rich.table import Table

        slots = f"{reports[0].expert_slots} of {reports[0].experts_total} experts in memory"
        shown = Table(*HEADINGS, title=f"{wish.model}: {len(prompts)} requests, {slots}", pad_edge=False)
        shown.columns[0].no_wrap = True
        shown.caption = "n requests at once; union: experts asked for in a layer step; bytes with prompts'"
        for row in table:
            shown.add_row(*row)
        data().print(shown)
        for sentence in told(reports):
            data().print(sentence, markup=False, soft_wrap=True)
    return reports
