"""prophet chat: turns on a terminal, the cache of earlier turns kept."""

from __future__ import annotations

import sys
from typing import Any

from prophet_moe.cli import options as flag
from prophet_moe.cli.console import guarded, log, number, per_second
from prophet_moe.conversation import NEXT_SPEAKER, is_plain, render

HELP = """Example: prophet chat reference-moe --context 1024 -n 64

Turns on a terminal: /clear starts afresh, /quit or Ctrl-D leaves, Ctrl-C ends an answer. Uses the
model's chat template; a model without one gets plain turns."""


def answer(text: str, plain: bool) -> str:
    """What the model said in its turn; a plain model goes on with the next speaker by itself."""
    return text.split(NEXT_SPEAKER)[0].strip() if plain else text.strip()


def next_line() -> str | None:
    """A line of the user's, or None at the end of input."""
    if sys.stdin.isatty():
        try:
            return input("> ")
        except EOFError:
            return None
    line = sys.stdin.readline()
    return line.rstrip("\n") if line else None


@guarded
def chat(
    model: flag.Model,
    max_tokens: flag.MaxTokens = 256,
    temperature: flag.Temperature = 0.7,
    top_p: flag.TopP = 0.95,
    seed: flag.Seed = None,
    threads: flag.Threads = None,
    budget: flag.Budget = "auto",
    slots: flag.Slots = None,
    system: flag.System = "auto",
    backend: flag.Backend = "auto",
    device_budget: flag.DeviceBudget = "auto",
    exact: flag.Exact = False,
    pool: flag.Pool = "global",
    context: flag.Context = None,
    quiet: flag.Quiet = False,
    verbose: flag.Verbose = False,
) -> None:
    from prophet_moe.cli.session import Session, Wish, default_context, look_at
    from prophet_moe.generate import TextStream
    from prophet_moe.models.stock import load_tokenizer

    info = look_at(model, quiet)
    if not info.has_tokenizer:
        raise ValueError(f"{info.name} has no tokenizer: chat needs one; use prophet run with --prompt-ids.")
    tokenizer = load_tokenizer(info.directory)
    plain = is_plain(tokenizer)
    length = context or default_context(info)
    if length <= max_tokens:
        raise ValueError(
            f"--context {length} leaves no room beside {max_tokens} new tokens: give more, or a smaller -n."
        )
    wish = Wish(
        model,
        budget,
        slots,
        system,
        exact,
        pool,
        threads,
        length,
        quiet=quiet,
        backend=backend,
        device_budget=device_budget,
    )
    with Session(wish, info, tokenizer) as session:
        if not quiet:
            template = "plain turns (no chat template)" if plain else "chat template"
            log().print(f"{model}: {template}, context {length}. /clear, /quit.", markup=False)
        turns: list[dict[str, str]] = []
        past: Any = None
        seen: list[int] = []  # the tokens whose keys and values `past` holds
        while (line := next_line()) is not None and line.strip() != "/quit":
            if line.strip() == "/clear":
                turns, past, seen = [], None, []
                continue
            if not line.strip():
                continue
            turns.append({"role": "user", "content": line})
            tokens = render(tokenizer, turns)
            if len(tokens) + max_tokens > length:
                turns.pop()
                log().print(
                    f"the context of {length} tokens is full: /clear, or begin with a larger --context."
                )
                continue
            if past is None or tokens[: len(seen)] != seen or len(tokens) == len(seen):
                past, seen = None, []
            stream = TextStream(lambda ids: str(tokenizer.decode(ids, skip_special_tokens=True)))
            before = len(tokens)
            recording = session.decode(
                tokens,
                max_tokens,
                temperature=temperature,
                top_p=top_p,
                seed=seed,
                past=past,
                stop=(lambda ids, at=before: NEXT_SPEAKER in tokenizer.decode(ids[at:])) if plain else None,
                on_token=lambda token, stream=stream: print(stream.feed(token), end="", flush=True),
            )
            print(stream.end())
            past = recording.past
            # The last token was chosen but not fed: its keys are not in the cache.
            seen = (tokens + recording.token_ids)[:-1] if past is not None else []
            report = session.report(recording)
            turns.append({"role": "assistant", "content": answer(report.text or "", plain)})
            if not quiet:
                rate, hits = number(per_second(report)[1], ".2f"), number(report.hit_rate, ".0%")
                ending = ", interrupted" if recording.interrupted else ""
                log().print(f"{report.new_tokens} tokens, {rate} tok/s, hit rate {hits}{ending}", style="dim")
