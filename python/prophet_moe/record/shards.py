"""One recording done by several workers: parts of its prompts, a trace for each, and one trace of all.

Parts are consecutive prompts, the same for any number of workers, so that a recording may go on with
more or fewer. What is complete lies in the folder TRACE.shards: NNNN.safetensors for each part that is done.
The trace in the end is, byte for byte, what one worker alone records, given the same arithmetic: threads of
torch and instruction sets may round differently.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from prophet_moe.errors import ProphetError
from prophet_moe.formats.trace import TraceError, TraceReader, TraceWriter
from prophet_moe.record.merge import merge_traces
from prophet_moe.record.prompts import Prompt
from prophet_moe.record.recorder import Progress, fed_tokens, fingerprint, record

PARTS = 64  # about as many for any recording; each is recorded again, at most, when its worker is lost


@dataclass(frozen=True)
class Order:
    """What every worker does; travels to other processes and hosts."""

    model: str  # as prophet_moe.load takes it, on the worker's host
    load: dict[str, Any]  # its other arguments; budget and threads are those of one worker
    name: str  # the model's, for the trace
    settings: dict[str, Any]  # of record(): tokens, feed, phase, hidden, entering


@dataclass(frozen=True)
class Part:
    """Consecutive prompts of the recording."""

    number: int
    first: int  # sequence of the whole
    prompts: tuple[Prompt, ...]
    ids: tuple[tuple[int, ...], ...]

    def record(self, model: Any, order: Order, path: Path, progress: Progress | None = None) -> None:
        """Records the part as the trace `path`, going on where an earlier attempt ended."""
        if not path.exists():
            record(
                model,
                self.prompts,
                self.ids,
                path,
                name=order.name,
                resume=True,
                progress=progress,
                **order.settings,
            )


@dataclass(frozen=True)
class News:
    """What became of a part, or of a worker."""

    part: Part | None = None
    sequences: int = 0  # of the part that are complete
    tokens: int = 0  # recorded by now in this attempt
    lost: str = ""  # a worker that is no more: who, and why


# Does parts until none is left or no worker; the trace of a part is `place(part)` when it is done.
Runner = Callable[[Order, Sequence[Part], Callable[[Part], Path]], Iterator[News]]


def shards_of(path: Path) -> Path:
    """The folder that holds what is complete of `path`."""
    return path.with_name(path.name + ".shards")


def load_model(order: Order) -> Any:
    """The model of an order, in the worker's process."""
    import torch

    from prophet_moe.models.load import load
    from prophet_moe.models.stock import quiet_library

    quiet_library()
    if order.load.get("threads"):
        torch.set_num_threads(order.load["threads"])
    return load(order.model, **order.load)


def divide(prompts: Sequence[Prompt], ids: Sequence[Sequence[int]]) -> list[Part]:
    """About PARTS parts of as many prompts each, in order."""
    size = max(1, len(prompts) // PARTS)
    return [
        Part(
            number, first, tuple(prompts[first : first + size]), tuple(map(tuple, ids[first : first + size]))
        )
        for number, first in enumerate(range(0, len(prompts), size))
    ]


def collect(
    order: Order,
    prompts: Sequence[Prompt],
    ids: Sequence[Sequence[int]],
    path: str | Path,
    *,
    run: Runner,
    resume: bool = False,
    progress: Progress | None = None,
    warn: Callable[[str], None] | None = None,
) -> TraceReader:
    """Writes the trace `path` by the workers of `run` and opens it.

    Arguments as of record(). warn: told of workers that were lost while others did their work.

    Ctrl-C and lost workers leave the folder PATH.shards, from which resume goes on. Raises
    ProphetError, naming the workers, where parts are left undone; TraceError; KeyboardInterrupt.
    """
    path = Path(path)
    folder = shards_of(path)
    require_free(path, resume=resume)
    parts = divide(prompts, ids)
    fed = fed_tokens(ids, order.settings.get("feed", "greedy"), order.settings.get("tokens"))
    whole = fingerprint(prompts, fed)
    _keep_plan(folder, {"name": order.name, "prompts": whole, "exact": bool(order.load.get("exact"))}
               | order.settings)  # fmt: skip

    def place(part: Part) -> Path:
        return folder / f"{part.number:04}.safetensors"

    done = {part.number: _complete(place(part)) for part in parts}
    tokens: dict[int, int] = {}
    losses: list[str] = []

    def tell() -> None:
        if progress is not None:
            progress(sum(done.values()), len(prompts), sum(tokens.values()))

    tell()
    for news in run(order, [part for part in parts if not place(part).exists()], place):
        if news.part is not None:
            done[news.part.number], tokens[news.part.number] = news.sequences, news.tokens
            tell()
        if news.lost:
            losses.append(news.lost)
    if not all(place(part).exists() for part in parts):
        complete = sum(_complete(place(part)) for part in parts)
        raise ProphetError(
            f"{'; '.join(losses) or 'the workers have ended'}. {complete} of {len(prompts)} sequences are "
            f"complete in {folder}: go on with --resume."
        )
    for loss in losses:
        if warn is not None:
            warn(f"{loss}; others did its work.")
    merged = folder / "whole.safetensors"
    shutil.rmtree(TraceWriter.parts_of(merged), ignore_errors=True)
    merged.unlink(missing_ok=True)
    merge_traces([TraceReader(place(part)) for part in parts], merged, prompts=whole)
    os.replace(merged, path)
    shutil.rmtree(folder)
    return TraceReader(path)


def require_free(path: Path, *, resume: bool) -> None:
    """Raises TraceError as TraceWriter.require_free does, of the folder of shards too."""
    TraceWriter.require_free(path, resume=False)
    if shards_of(path).exists() and not resume:
        raise TraceError(
            f"{shards_of(path)} holds an interrupted recording: resume it, or remove it to begin anew."
        )


def _keep_plan(folder: Path, settings: dict[str, Any]) -> None:
    """Notes the settings of a recording that begins; raises TraceError where it was begun with others."""
    plan = folder / "plan.json"
    settings = json.loads(json.dumps(settings))
    if not plan.exists():
        folder.mkdir(parents=True, exist_ok=True)
        new = folder / "plan.json.new"
        new.write_text(json.dumps(settings), encoding="utf-8")
        os.replace(new, plan)
        return
    try:
        kept = dict(json.loads(plan.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise TraceError(f"{plan} is damaged: remove {folder} and begin anew.") from error
    differing = sorted(key for key in {*kept, *settings} if kept.get(key) != settings.get(key))
    if differing:
        raise TraceError(
            f"{folder} was begun with other settings ({', '.join(differing)}): use the same ones, or remove "
            "it."
        )


def _complete(shard: Path) -> int:
    """Sequences of a part that are recorded."""
    if shard.exists():
        return TraceReader(shard).sequences
    journal = TraceWriter.parts_of(shard) / "journal.json"
    return len(json.loads(journal.read_text(encoding="utf-8"))["notes"]) if journal.exists() else 0


def as_text(part: Part) -> str:
    """A part as JSON, for transports that carry plain values; `of_text` undoes it."""
    return json.dumps(asdict(part))


def of_text(text: str) -> Part:
    row = json.loads(text)
    prompts = tuple(Prompt(**{**prompt, "ids": tuple(prompt["ids"])}) for prompt in row["prompts"])
    return Part(row["number"], row["first"], prompts, tuple(map(tuple, row["ids"])))
