"""Foresight on real bytes: systems interleaved over texts that no predictor has seen.

    python bench/e2e/foresight_real.py --slots 25% --tokens 48 --rounds 3

Decodes greedily after the prompts of the package (six domains), one model per system, systems in
rotating order from prompt to prompt, so that drift of the machine meets all alike. Reads bypass the page
cache: every miss is a cold read. Prints Markdown: bytes a token and the ratio of step times to
`--base`, medians over prompts; tokens are compared and must agree. `--predictor NAME=FILE` adds a
system `prophet` with another file, such as one of a wrong domain or an untrained one.
"""

import argparse
import itertools
import json
import statistics
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import prophet_moe
from prophet_moe.generate import decode
from prophet_moe.models.offload import offload_of


@dataclass
class Runs:
    """What one system did, prompt by prompt."""

    step_ms: list[float] = field(default_factory=list)  # medians
    mean_ms: list[float] = field(default_factory=list)
    bytes: int = 0
    steps: int = 0
    counters: dict[str, int] = field(default_factory=dict)
    tokens: list[list[int]] = field(default_factory=list)


def prompts() -> list[str]:
    folder = Path(prophet_moe.__file__).parent / "assets" / "prompts"
    lines = [line for path in sorted(folder.glob("*.jsonl")) for line in path.read_text().splitlines()]
    return [json.loads(line)["prompt"] for line in lines]


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--model", default="reference-moe")
    asked.add_argument("--slots", default="25%")
    asked.add_argument("--tokens", type=int, default=48)
    asked.add_argument("--rounds", type=int, default=1)
    asked.add_argument("--systems", default="lru,expected-next-use,prophet")
    asked.add_argument("--base", default="expected-next-use")
    asked.add_argument("--predictor", action="append", default=[], metavar="NAME=FILE")
    given = asked.parse_args()
    wanted: dict[str, dict[str, Any]] = {name: {"system": name} for name in given.systems.split(",")}
    for text in given.predictor:
        name, _, file = text.partition("=")
        wanted[name] = {"system": "prophet", "predictor": file}
    models = {
        name: prophet_moe.load(given.model, slots=given.slots, context=512, **options)
        for name, options in wanted.items()
    }
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(offload_of(models[given.base]).info.directory)
    runs = {name: Runs() for name in models}
    names = list(models)
    for turn, text in enumerate(prompts() * given.rounds):
        ids = tokenizer(text)["input_ids"]
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            engine = offload_of(models[name]).engine
            marks = decode(models[name], ids, max_new_tokens=given.tokens, counters=engine.counters)
            run, steps = runs[name], marks.marks
            run.tokens.append(list(marks.token_ids))
            if len(steps) < 2:  # the text ended with its first token
                continue
            times = [(b.at_ns - a.at_ns) / 1e6 for a, b in itertools.pairwise(steps)]
            run.step_ms.append(statistics.median(times))
            run.mean_ms.append(statistics.fmean(times))
            run.bytes += steps[-1].counters["bytes_moved"] - steps[0].counters["bytes_moved"]
            run.steps += len(times)
            run.counters = dict(steps[-1].counters)
    base = runs[given.base]
    print("| system | KiB a token | of base | step ms | of base | mean | used / late / wasted MiB | held |")
    print("|---|---|---|---|---|---|---|---|")
    for name, run in runs.items():
        c = run.counters
        assert run.tokens == base.tokens, f"{name} decoded other tokens than {given.base}"
        parts = " / ".join(
            f"{c[f'bytes_prefetch_{kind}'] / 2**20:.1f}" for kind in ("used", "late", "wasted")
        )
        ratio = statistics.median(a / b for a, b in zip(run.step_ms, base.step_ms, strict=True))
        mean = statistics.median(a / b for a, b in zip(run.mean_ms, base.mean_ms, strict=True))
        print(
            f"| {name} | {run.bytes / run.steps / 1024:.0f} | "
            f"{run.bytes / run.steps / (base.bytes / base.steps):.3f} | "
            f"{statistics.median(run.step_ms):.2f} | "
            f"{ratio:.3f} | {mean:.3f} | {parts} | "
            f"{c['foresight_held_steps']} + {c['prefetch_held_steps']} of {c['layer_steps']} |"
        )


if __name__ == "__main__":
    main()
