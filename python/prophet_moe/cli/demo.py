"""prophet demo: the same tokens with all, half and a quarter of the experts in memory."""

from __future__ import annotations

import typer

from prophet_moe.cli import options as flag
from prophet_moe.cli.console import data, guarded, log, number, per_second, print_json, spinner

HELP = """Example: prophet demo

Runs the model inside the package resident, with 50 % and with 25 % of its experts in memory, and
compares the tokens with stock transformers'. Under a minute."""

PROMPT = "It was a dark and stormy night, and the captain"
SHARES = ("100%", "50%", "25%")


def same_tokens(mine: list[int], theirs: list[int]) -> str:
    """`yes`, or where two continuations part."""
    if mine == theirs:
        return "yes"
    pairs = zip(mine, theirs, strict=False)
    first = next((at for at, (a, b) in enumerate(pairs) if a != b), min(len(mine), len(theirs)))
    return f"no, from token {first + 1}"


@guarded
def demo(
    prompt: flag.DemoPrompt = PROMPT,
    max_tokens: flag.MaxTokens = 48,
    threads: flag.Threads = None,
    json: flag.Json = False,
    quiet: flag.Quiet = False,
    verbose: flag.Verbose = False,
) -> None:
    with spinner("starting", quiet):
        from prophet_moe import machine
        from prophet_moe.cli.session import Session, Wish, look_at, read_prompt, set_threads
        from prophet_moe.generate import Recording, TextStream, decode
        from prophet_moe.models.stock import load_stock
    name = "reference-moe"
    info = look_at(name, quiet)
    tokens, tokenizer = read_prompt(info, prompt, None, None)
    count = set_threads(threads)
    with spinner("stock transformers, for comparison", quiet):
        stock = load_stock(info.directory)
        expected = decode(stock, tokens, max_new_tokens=max_tokens).whole()
        del stock

    def tell(text: str) -> None:
        if not quiet:
            log().print(text, end="", markup=False, soft_wrap=True)

    def told(session: Session) -> Recording:
        stream = TextStream(lambda ids: str(tokenizer.decode(ids)))
        recording = session.decode(tokens, max_tokens, on_token=lambda token: tell(stream.feed(token)))
        tell(stream.end() + "\n")
        return recording.whole()

    reports = []
    for share in SHARES:
        machine.return_free_memory()
        machine.reset_peak_rss()
        # Exact, so that equal tokens are a promise and not luck with rounding.
        wish = Wish(name, "auto", share, "auto", True, "global", count, len(tokens) + max_tokens, quiet=True)
        with Session(wish, info, tokenizer) as session:
            tell(f"\n{share} of the experts in memory:\n{prompt}")
            recording = told(session)
            reports.append(session.report(recording))
        if json:
            print_json(reports[-1].to_json())
    verdicts = [same_tokens(report.token_ids, expected.token_ids) for report in reports]
    if not json:
        from rich.table import Table

        table = Table("in memory", "slots", "tokens as stock", "tok/s", "hits", "MiB/token", "peak MiB")
        for share, report, verdict in zip(SHARES, reports, verdicts, strict=True):
            per_token = report.bytes.per_token
            table.add_row(
                share,
                f"{report.expert_slots}/{report.experts_total}",
                verdict,
                number(per_second(report)[1]),
                number(report.hit_rate, ".1%"),
                number(None if per_token is None else per_token / 2**20, ".2f"),
                f"{report.peak_rss_bytes / 2**20:.0f}",
            )
        data().print(table)
    if any(verdict != "yes" for verdict in verdicts):
        log().print(
            "the tokens differ from stock transformers': please report it with the output of prophet doctor."
        )
        raise typer.Exit(1)
    if not quiet:
        log().print('next: prophet run reference-moe -p "Call me Ishmael." --slots 25%', markup=False)
