"""Do prompts cost other requests their experts? The same requests with and without steps that stream.

    python bench/e2e/streaming_real.py                      # reference-moe, 25 % of experts, 4 at once
    python bench/e2e/streaming_real.py --slots 50% --at-once 8

Requests of the package's six domains through transformers' continuous batching, each run on a model loaded
anew, so that every cache begins empty. Told are counts, which other work on the machine does not change but
for which requests meet in a pass: hits of all passes without a prompt, of the first four after a prompt, and
bytes that moved per new token.
"""

import argparse
import statistics
from collections import defaultdict
from typing import Any

import torch

import prophet_moe
from prophet_moe.cli.bench_serve import domain_prompts
from prophet_moe.models.inspect import inspect
from prophet_moe.models.offload import offload_of
from prophet_moe.serving_run import measure

SYSTEMS = ("lru", "expected-next-use", "prophet")
AFTER = 4  # passes after one with a prompt in it


class Passes:
    """Hits of passes, by how long ago a prompt was served."""

    def __init__(self, engine: Any) -> None:
        self._engine, self._seen, self._since = engine, set[str](), 0
        self._before = engine.counters()
        self.decode, self.after = [0, 0], [0, 0]

    def __call__(self, news: Any) -> None:
        now = self._engine.counters()
        hits = now["hits_resident"] - self._before["hits_resident"]
        asked = hits + sum(now[key] - self._before[key] for key in ("hits_in_flight", "misses"))
        self._before = now
        fresh = {one.request_id for one in news} - self._seen
        self._seen |= fresh
        self._since = 0 if fresh else self._since + 1
        if self._since > 0:
            self._add(self.decode, hits, asked)
        if 0 < self._since <= AFTER:
            self._add(self.after, hits, asked)

    @staticmethod
    def _add(to: list[int], hits: int, asked: int) -> None:
        to[0] += hits
        to[1] += asked


def run(args: argparse.Namespace, system: str, streams: bool) -> tuple[float, float, float, float]:
    info = inspect(args.model)
    prompts = domain_prompts(info, args.requests, args.prompt_tokens)
    model = prophet_moe.load(args.model, slots=args.slots, system=system, sequences=args.at_once)
    offload = offload_of(model)
    try:
        offload.engine.streaming = streams
        passes = Passes(offload.engine)
        report = measure(
            model, prompts, concurrency=args.at_once, max_new_tokens=args.max_tokens, on_pass=passes
        )
    finally:
        offload.close()
    share = [part[0] / max(1, part[1]) for part in (passes.decode, passes.after)]
    return share[0], share[1], report.bytes_per_token / 2**20, report.streamed


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", nargs="?", default="reference-moe")
    parser.add_argument("--slots", default="25%")
    parser.add_argument("--at-once", type=int, default=4)
    parser.add_argument("--requests", type=int, default=12)
    parser.add_argument("--prompt-tokens", type=int, default=100)
    parser.add_argument("--max-tokens", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--systems", default=",".join(SYSTEMS))
    args = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[tuple[str, bool], list[tuple[float, float, float, float]]] = defaultdict(list)
    for turn in range(args.rounds):
        for system in args.systems.split(","):
            for streams in (False, True) if turn % 2 == 0 else (True, False):
                found[system, streams].append(run(args, system, streams))
    print("| system | streams | hits, passes without a prompt | first four after one | MiB a token | steps |")
    print("|---|---|---|---|---|---|")
    for (system, streams), runs in found.items():
        decode, after, moved, steps = (statistics.median(column) for column in zip(*runs, strict=True))
        print(
            f"| {system} | {'yes' if streams else 'no'} | {decode:.1%} | {after:.1%} | {moved:.2f} "
            f"| {steps:.0%} |"
        )


if __name__ == "__main__":
    main()
