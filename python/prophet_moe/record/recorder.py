"""Records what the routers of a model choose for given prompts, one sequence at a time.

Three ways to feed. *greedy*: the prompt is prefilled and the model's own likeliest tokens follow.
*forced*: a text is the sequence; one forward pass gives its routing, which for a causal model is what
decoding it token by token gives, up to rounding. *steps*: the same text really fed token by token.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from prophet_moe.errors import InvalidArgument, ProphetError, UnsupportedModelError, WriteError
from prophet_moe.formats.trace import DECODE, PREFILL, TraceReader, TraceWriter
from prophet_moe.generate import decode, end_tokens
from prophet_moe.models.families import require_experts
from prophet_moe.models.offload import Offload
from prophet_moe.record.listen import Routed, listening
from prophet_moe.record.prompts import Prompt

FEEDS = {
    "greedy": "prompt prefilled, greedy tokens decoded",
    "forced": "teacher-forced, one forward pass per text",
    "steps": "teacher-forced, token by token",
}
Progress = Callable[[int, int, int], None]  # (sequences done, sequences, tokens recorded in this run)


def record(
    model: Any,
    prompts: Sequence[Prompt],
    ids: Sequence[Sequence[int]],
    path: str | Path,
    *,
    name: str,
    tokens: int | None = None,
    feed: str = "greedy",
    phase: str = "decode",
    hidden: str = "",
    entering: str = "",
    resume: bool = False,
    progress: Progress | None = None,
) -> TraceReader:
    """Writes the trace `path` and opens it.

    model: of prophet_moe.load, or of transformers. ids: the tokens of each prompt. name: the model's, for
    the trace. tokens: new ones after each prompt when greedy (64 if None), else the most of each text that
    is fed (None: all). phase: how the rows of a forced text are labelled, "decode" or "prefill". hidden:
    "F16" or "F32" records what each router read; entering: the same of what entered each layer, before its
    attention. resume: goes on after the last complete sequence of an
    interrupted recording with the same settings and prompts.

    Ctrl-C and errors leave the folder PATH.partial, from which resume goes on. Raises InvalidArgument,
    UnsupportedModelError, TraceError, WriteError (disk full), KeyboardInterrupt.
    """
    path = Path(path)
    kinds = ("", "F16", "F32")
    if feed not in FEEDS or phase not in ("decode", "prefill") or not {hidden, entering} <= set(kinds):
        raise InvalidArgument(
            f"there is no way to record called {feed!r}, {phase!r}, {hidden!r}, {entering!r}."
        )
    if hidden and entering and hidden != entering:
        raise InvalidArgument("what routers read and what enters layers is kept in one type: name the same.")
    if not prompts or len(prompts) != len(ids):
        raise InvalidArgument(f"{len(prompts)} prompts with {len(ids)} lists of tokens cannot be recorded.")
    TraceWriter.require_free(path, resume=resume)
    tokens = 64 if tokens is None and feed == "greedy" else tokens
    fed = fed_tokens(ids, feed, tokens)
    about = {
        "feed": FEEDS[feed],
        "tokens_each": "all" if tokens is None else str(tokens),
        "prompts": fingerprint(prompts, fed),
        "dtype": str(model.dtype).removeprefix("torch."),
        "arithmetic": _arithmetic(model),
    }
    if feed == "forced":
        about["phase"] = f"labelled {phase}"
    first = _first_token(model, fed[0][0], hidden, entering)
    done = 0
    with (
        _told_of_the_disk(path),
        TraceWriter(
            path,
            model=name,
            layers=first.experts.shape[1],
            experts_per_layer=_experts_per_layer(model),
            top_k=first.experts.shape[2],
            hidden=0 if first.gate_input is None else first.gate_input.shape[2],
            entering=0 if first.entering is None else first.entering.shape[2],
            hidden_dtype=hidden or entering or "F16",
            about=about,
            resume=resume,
        ) as writer,
    ):
        for number in range(writer.sequences, len(fed)):
            if progress is not None:
                progress(number, len(fed), done)
            sequence = _Sequence(writer, fed[number], feed, phase)
            with listening(model, sequence.heard, hidden, entering):
                _run(model, sequence, tokens or 1)
            prompt = prompts[number]
            writer.end_sequence(prompt.label, source=prompt.source, prompt_tokens=sequence.prefilled)
            done += sequence.rows
        if progress is not None:
            progress(len(fed), len(fed), done)
    return TraceReader(path)


class _Sequence:
    """Gives each row that the routers speak of the token that was fed and its phase."""

    def __init__(self, writer: TraceWriter, tokens: list[int], feed: str, phase: str) -> None:
        self._writer, self.tokens, self.feed = writer, list(tokens), feed
        self.rows = 0
        self.prefilled = len(tokens) if feed == "greedy" or (feed, phase) == ("forced", "prefill") else 0

    def heard(self, routed: Routed) -> None:
        first, count = self.rows, len(routed.experts)
        if first + count > len(self.tokens):
            raise UnsupportedModelError(
                f"the routers spoke of {first + count} tokens where {len(self.tokens)} were fed; "
                "please report this model."
            )
        self.rows += count
        row = np.arange(first, first + count)
        self._writer.append(
            routed.experts,
            gate_probs=routed.gate_probs,
            token_id=self.tokens[first : first + count],
            phase=np.where(row < self.prefilled, PREFILL, DECODE),
            gate_input=routed.gate_input,
            entering=routed.entering,
        )


def _run(model: Any, sequence: _Sequence, new_tokens: int) -> None:
    """Feeds one sequence. The last token that `decode` chooses is never fed, so it has no row."""
    tokens = sequence.tokens
    if sequence.feed == "greedy":
        # One token more is chosen than asked for, so that the last one asked for is fed.
        decode(model, tuple(tokens), max_new_tokens=new_tokens + 1, on_token=tokens.append).whole()
        return
    if sequence.feed == "forced":
        decode(model, tokens, max_new_tokens=1).whole()
    else:
        with _without_end(model):
            forced = [*tokens[1:], tokens[-1]]
            decode(model, tokens[:1], max_new_tokens=len(tokens), forced=forced).whole()
    if sequence.rows != len(tokens):
        raise UnsupportedModelError(
            f"{len(tokens)} tokens were fed and the routers spoke of {sequence.rows}; "
            "please report this model."
        )


def _first_token(model: Any, token: int, hidden: str, entering: str) -> Routed:
    """The routing of one token: how many layers speak, of how many experts, about how wide a tensor."""
    heard: list[Routed] = []
    with listening(model, heard.append, hidden, entering):
        decode(model, [token], max_new_tokens=1).whole()
    if len(heard) != 1 or len(heard[0].experts) != 1:
        raise UnsupportedModelError(
            f"{model.config.model_type}: its routers did not speak once about one token; "
            "please report this model."
        )
    return heard[0]


def fed_tokens(ids: Sequence[Sequence[int]], feed: str, tokens: int | None) -> list[list[int]]:
    """What is fed of each prompt as it stands: all where tokens follow, else the first `tokens`."""
    return [list(row) if feed == "greedy" else list(row)[:tokens] for row in ids]


def fingerprint(prompts: Sequence[Prompt], fed: Sequence[Sequence[int]]) -> str:
    """Of what is fed and what is noted about it, for the trace."""
    said = [[prompt.label, prompt.source, list(row)] for prompt, row in zip(prompts, fed, strict=True)]
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()


def _offload(model: Any) -> Offload | None:
    """None for a model of transformers."""
    return next((value for value in vars(model).values() if isinstance(value, Offload)), None)


def _experts_per_layer(model: Any) -> int:
    """Those that the router chooses among; a rank's modules count their own."""
    offload = _offload(model)
    parts = 1 if offload is None or offload.ranks is None else offload.ranks.parts
    return parts * max(int(module.num_experts) for module in require_experts(model).values())


def _arithmetic(model: Any) -> str:
    """Whose rounding the routing shows."""
    offload = _offload(model)
    if offload is None:
        return "transformers"
    return "prophet, exact" if offload.exact else "prophet"


@contextmanager
def _without_end(model: Any) -> Iterator[None]:
    """No token ends a text that is fed by force."""
    settings = model.generation_config
    kept, padding = settings.eos_token_id, settings.pad_token_id
    settings.eos_token_id, settings.pad_token_id = None, (end_tokens(model) or [0])[0]
    try:
        yield
    finally:
        settings.eos_token_id, settings.pad_token_id = kept, padding


@contextmanager
def _told_of_the_disk(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if isinstance(error, ProphetError):
            raise
        raise WriteError(
            f"{TraceWriter.parts_of(path)} could not be written ({error.strerror}): the sequences that are "
            "complete are kept there; make room and go on with --resume."
        ) from error
