"""prophet run: one prompt, its continuation, one report."""

from __future__ import annotations

from contextlib import ExitStack

import typer

from prophet_moe.cli import options as flag
from prophet_moe.cli.console import (
    INTERRUPTED,
    end_of_run,
    guarded,
    log,
    print_block,
    print_json,
    spinner,
)

HELP = """Example: prophet run reference-moe -p "Call me Ishmael." -n 48

Continues a prompt. The text goes to stdout as it comes; the summary goes to stderr. Started by torchrun
(-m prophet_moe.cli run ...), it divides the experts over the processes."""


@guarded
def run(
    model: flag.Model,
    prompt: flag.Prompt = None,
    prompt_ids: flag.PromptIds = None,
    prompt_file: flag.PromptFile = None,
    max_tokens: flag.MaxTokens = 128,
    temperature: flag.Temperature = 0.0,
    top_p: flag.TopP = 1.0,
    seed: flag.Seed = None,
    threads: flag.Threads = None,
    budget: flag.Budget = "auto",
    slots: flag.Slots = None,
    system: flag.System = "auto",
    predictor: flag.Predictor = None,
    backend: flag.Backend = "auto",
    device_budget: flag.DeviceBudget = "auto",
    exact: flag.Exact = False,
    pool: flag.Pool = "global",
    context: flag.Context = None,
    timeline: flag.Timeline = None,
    json: flag.Json = False,
    quiet: flag.Quiet = False,
    verbose: flag.Verbose = False,
) -> None:
    from prophet_moe.cli import ranks
    from prophet_moe.cli.session import Session, Wish, look_at, read_prompt
    from prophet_moe.generate import TextStream
    from prophet_moe.timeline import write_timeline

    rank, size = ranks.place()
    aside = rank > 0  # rank 0 speaks for all
    quiet = quiet or aside
    if size > 1 and str(prompt_file) == "-":
        raise ValueError("several processes cannot read one stdin: give the prompt by -p or as a file.")
    info = look_at(model, quiet)
    tokens, tokenizer = read_prompt(info, prompt, prompt_ids, prompt_file)
    needed = len(tokens) + max_tokens
    if context is not None and context < needed:
        raise ValueError(
            f"--context {context} cannot hold {len(tokens)} prompt tokens and {max_tokens} new ones: "
            f"give at least {needed}."
        )
    wish = Wish(
        model,
        budget,
        slots,
        system,
        exact,
        pool,
        threads,
        context or needed,
        timeline is not None,
        quiet,
        predictor,
        expert_parallel=size,
        backend=backend,
        device_budget=device_budget,
    )
    with Session(wish, info, tokenizer) as session:
        if verbose and not aside:
            print_block(session.offload.plan.lines())
        console = log() if json else None
        stream = None if tokenizer is None else TextStream(lambda ids: str(tokenizer.decode(ids)))

        def tell(text: str) -> None:
            if aside:
                return
            if console is None:
                print(text, end="", flush=True)
            elif not quiet:
                console.print(text, end="", markup=False, soft_wrap=True)

        if size > 1 and seed is None:
            seed = ranks.common_seed()
        with ExitStack() as waiting:
            waiting.enter_context(spinner(f"reading the prompt: {len(tokens)} tokens", quiet))

            def on_token(token: int) -> None:
                waiting.close()  # the first token ends the wait
                tell(f"{token} " if stream is None else stream.feed(token))

            recording = session.decode(
                tokens, max_tokens, temperature=temperature, top_p=top_p, seed=seed, on_token=on_token
            )
        tell((stream.end() if stream is not None else "") + "\n")
        report = session.report(recording)
        reports = ranks.reports_of_all(report)
        if timeline is not None:
            timeline = ranks.own_file(timeline, rank, size)
            about = {
                "system": report.system,
                "expert_slots": report.expert_slots,
                "experts_total": report.experts_total,
            }
            events = write_timeline(timeline, session.offload.engine, model, about)
            if not quiet:
                log().print(f"{events} events in {timeline}", markup=False, soft_wrap=True)
        if recording.interrupted:
            log().print(f"interrupted after {report.new_tokens} of {max_tokens} tokens.")
        if not quiet:
            print_block([*end_of_run(report, recording, session.dtype), *ranks.lines(reports)])
        if json and not aside:
            for line in ranks.as_json(reports):
                print_json(line)
        if recording.interrupted:
            raise typer.Exit(INTERRUPTED)
