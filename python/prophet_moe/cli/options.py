"""The flags of all verbs. Each has an environment variable: --max-tokens is PROPHET_MAX_TOKENS."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer


def _flag(*names: str, text: str, **more: Any) -> Any:
    long = next(name for name in names if name.startswith("--"))
    variable = "PROPHET_" + long.split("/")[0].lstrip("-").replace("-", "_").upper()
    return typer.Option(*names, help=text, envvar=variable, show_envvar=False, **more)


Model = Annotated[str, typer.Argument(metavar="MODEL", help="A folder, a Hub id, or reference-moe.")]
Out = Annotated[Path, typer.Argument(metavar="OUT", help="The folder to write.")]
Trace = Annotated[Path, typer.Argument(metavar="TRACE", help="A routing trace.")]

# What to keep in memory.
Budget = Annotated[
    str,
    _flag(
        "--budget",
        metavar="SIZE",
        text="Peak memory of the whole process: 8GiB, 12GB, or auto (what the machine and its cgroup leave).",
    ),
]
Slots = Annotated[
    str | None, _flag("--slots", metavar="N", text="Experts kept in memory, exactly: 96 or 25%.")
]
System = Annotated[
    str,
    _flag(
        "--system",
        metavar="NAME",
        text="What stays in memory and what comes early: auto, or a name of docs/systems.md.",
    ),
]
Predictor = Annotated[
    str | None,
    _flag("--predictor", metavar="FILE", text="A trained predictor: a file, or a name in the package."),
]
Pool = Annotated[
    str, _flag("--pool", metavar="NAME", text="One pool of slots, or one per layer: global, per-layer.")
]
Context = Annotated[
    int | None, _flag("--context", min=1, metavar="N", text="Tokens that the KV cache must hold.")
]

# How to compute.
Backend = Annotated[
    str,
    _flag(
        "--backend",
        metavar="NAME",
        text="Where experts stand and are computed: cpu, cuda, or auto (cuda where a GPU can be used).",
    ),
]
DeviceBudget = Annotated[
    str,
    _flag(
        "--device-budget",
        metavar="SIZE",
        text="GPU memory for all that is put there, or auto (what is free). --budget is then the host's.",
    ),
]
Exact = Annotated[bool, _flag("--exact", text="Bit for bit the logits of stock transformers (slower).")]
Threads = Annotated[
    int | None,
    _flag("-t", "--threads", min=1, metavar="N", text="Compute threads. Default: all cores allowed."),
]

# What to generate.
Prompt = Annotated[str | None, _flag("-p", "--prompt", metavar="TEXT", text="The text to continue.")]
PromptIds = Annotated[str | None, _flag("--prompt-ids", metavar="1,2,3", text="Token ids instead of text.")]
PromptFile = Annotated[
    Path | None, _flag("--prompt-file", metavar="FILE", text="A file with the text; - is stdin.")
]
DemoPrompt = Annotated[str, _flag("-p", "--prompt", metavar="TEXT", text="The text to continue.")]
MaxTokens = Annotated[
    int, _flag("-n", "--max-tokens", min=1, metavar="N", text="Tokens to generate at most.")
]
Temperature = Annotated[
    float, _flag("--temperature", min=0.0, metavar="X", text="0 always takes the likeliest token.")
]
TopP = Annotated[float, _flag("--top-p", metavar="X", text="Sample from this share of the probability.")]
Seed = Annotated[int | None, _flag("--seed", metavar="N", text="Seed of the sampling.")]

# What to measure.
BenchTokens = Annotated[
    int,
    _flag("-n", "--max-tokens", min=2, metavar="N", text="Tokens: one by the prefill, the others decoded."),
]
PromptTokens = Annotated[int, _flag("--prompt-tokens", min=1, metavar="N", text="Tokens of the prompt.")]
Systems = Annotated[str, _flag("--systems", metavar="A,B", text="Systems to compare, interleaved.")]
Stock = Annotated[
    bool, _flag("--stock", text="Compare with stock transformers: whole model in memory, same threads.")
]
Repeat = Annotated[int, _flag("--repeat", min=1, metavar="R", text="Rounds of all systems.")]
Cold = Annotated[bool, _flag("--cold", text="Drop the model's files from the page cache before each run.")]
Serve = Annotated[
    bool, _flag("--serve", text="Requests side by side instead: continuous batching, domains mixed.")
]
Concurrency = Annotated[
    str, _flag("--concurrency", metavar="A,B", text="With --serve: requests that live at once.")
]
Requests = Annotated[
    int | None,
    _flag("--requests", min=1, metavar="N", text="With --serve: requests. Default: twice the concurrency."),
]
Measure = Annotated[
    bool,
    _flag("--measure/--no-measure", text="Read the checkpoint's file and memory for half a second each."),
]
ProbePath = Annotated[
    Path | None,
    _flag(
        "--path",
        metavar="PATH",
        text="Measure this file, or the disk of this folder. Default: the cache folder.",
    ),
]

# What to analyze.
SlotsList = Annotated[
    str | None,
    _flag("--slots", metavar="A,B", text="Sizes to name: 192,50%. Default: 25, 37.5, 50 and 75 %."),
]
Phase = Annotated[
    str,
    _flag(
        "--phase", metavar="NAME", text="Tokens: auto (decoded where there are any), decode, prefill, all."
    ),
]
Horizons = Annotated[str, _flag("--horizons", metavar="A,B", text="Layers ahead, in the same token.")]
Lags = Annotated[str, _flag("--lags", metavar="A,B", text="Tokens ahead, in the same layer.")]
ByDomain = Annotated[bool, _flag("--by-domain", text="Show the drift between each two domains.")]
Shuffles = Annotated[int, _flag("--shuffles", min=2, metavar="N", text="Shuffles of each null.")]
Bootstrap = Annotated[
    int, _flag("--bootstrap", min=0, metavar="N", text="Draws of sequences for intervals; 0: none.")
]

# What to write.
Timeline = Annotated[
    Path | None, _flag("--timeline", metavar="FILE", text="Write a trace for Perfetto or chrome://tracing.")
]
Overwrite = Annotated[bool, _flag("--overwrite", text="Replace OUT if it exists.")]
DryRun = Annotated[bool, _flag("--dry-run", text="Say what would be written, and write nothing.")]
Json = Annotated[bool, _flag("--json", text="One JSON object per run on stdout, the rest on stderr.")]
Markdown = Annotated[bool, _flag("--markdown", text="The table as Markdown.")]
Quiet = Annotated[bool, _flag("-q", "--quiet", text="No progress, no summary.")]
Verbose = Annotated[bool, _flag("-v", "--verbose", text="The memory account, and tracebacks.")]
