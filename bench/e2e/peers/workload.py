"""What every runner does alike: the options, the fixed tokens, the clock, the one JSON line.

All runners feed the same pseudo-random tokens instead of what the model picks. A random-weight model decoded
greedily soon repeats one token; its routing then repeats too, and every cache looks perfect.
"""

import argparse
import json
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

UNAVAILABLE = 3  # exit status of a runner whose peer cannot run here


def fixed_tokens(count: int, vocab: int = 256, seed: int = 7) -> list[int]:
    """`count` tokens below `vocab`: SplitMix64, the same in every environment."""
    mask = (1 << 64) - 1
    tokens = []
    for step in range(seed, seed + count):
        x = step * 0x9E3779B97F4A7C15 & mask
        x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & mask
        x = (x ^ x >> 27) * 0x94D049BB133111EB & mask
        tokens.append((x ^ x >> 31) % vocab)
    return tokens


def read_bytes() -> int:
    """Bytes that all threads of this process, ended ones included, fetched from block devices."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("read_bytes"))


def peak_rss() -> int:
    """Largest resident set of this process since it began, in bytes; mapped file pages count."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


class Workload:
    """Options of a runner and the record of its one generation.

    Call loaded() when the model is ready, then token() each time the logits of a position are ready: the
    first call ends the prefill, each later one a decode step, and each returns the token to feed next.
    """

    def __init__(self, about: str | None, **options: Any) -> None:
        """`options` become flags with these defaults, attributes of `given`."""
        begin = time.perf_counter()
        # As the command `prophet` does, for every peer, before its libraries load: OpenMP workers that spin
        # between operations cost tenfold beside other work.
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")
        parser = argparse.ArgumentParser(description=about)
        parser.add_argument("model")
        parser.add_argument("--steps", type=int, default=16, help="tokens to decode after the prefill")
        parser.add_argument("--prompt-tokens", type=int, default=11)
        parser.add_argument("--threads", type=int, default=2)
        for name, value in options.items():
            parser.add_argument("--" + name.replace("_", "-"), default=value)
        self.given = parser.parse_args()
        if self.given.steps < 1 or self.given.prompt_tokens < 1:
            parser.error("--steps and --prompt-tokens are at least 1.")
        tokens = fixed_tokens(self.given.prompt_tokens + self.given.steps)
        self.prompt = tokens[: self.given.prompt_tokens]
        self.following = tokens[self.given.prompt_tokens :]
        self._marks = [(begin, 0, 0.0)]  # seconds, bytes read, seconds of processor time
        self._picked: list[int] = []

    @property
    def positions(self) -> int:
        """How often token() is to be called: once for the prefill, then once a step."""
        return self.given.steps + 1

    def loaded(self) -> None:
        """The model is ready: the clock of the prefill starts."""
        self._mark()

    def token(self, picked: int) -> int:
        """Ends the prefill or a step, at which the model itself would have picked `picked`.

        Returns the token that follows instead; after the last step any token.
        """
        self._mark()
        self._picked.append(int(picked))
        return self.following[min(len(self._marks) - 3, len(self.following) - 1)]

    def _mark(self) -> None:
        self._marks.append((time.perf_counter(), read_bytes(), time.process_time()))

    def emit(self, peer: str, version: str, **more: Any) -> None:
        """Prints the line; `more` is added to it. Raises RuntimeError unless every step was taken."""
        if len(self._marks) != self.positions + 2:
            raise RuntimeError(f"{peer} took {len(self._marks) - 3} of {self.given.steps} decode steps.")
        pairs = list(zip(self._marks, self._marks[1:], strict=False))
        seconds, moved, cpu = ([after[i] - before[i] for before, after in pairs] for i in range(3))
        steps_ms = [1e3 * value for value in seconds[2:]]
        line = {
            "peer": peer,
            "version": version,
            "prompt_tokens": len(self.prompt),
            "decode_steps": len(steps_ms),
            "threads": self.given.threads,
            "load_s": round(seconds[0], 3),
            "ttft_ms": round(1e3 * seconds[1], 3),
            "tpot_ms": {
                "mean": round(statistics.fmean(steps_ms), 3),
                "median": round(statistics.median(steps_ms), 3),
            },
            "cpu_ms_per_token": round(1e3 * statistics.fmean(cpu[2:]), 3),
            "bytes": {
                "load": moved[0],
                "prefill": moved[1],
                "decode": sum(moved[2:]),
                "per_token": sum(moved[2:]) // len(steps_ms),
            },
            "peak_rss_bytes": peak_rss(),
            "steps_ms": [round(value, 3) for value in steps_ms],
            "step_bytes": moved[2:],
            "picked": self._picked,  # evidence that all peers run the same weights
        }
        print(json.dumps(line | more), flush=True)


def unavailable(peer: str, error: Exception) -> NoReturn:
    """Ends a runner whose peer is not installed, with the sentence in its line."""
    why = f"{peer} cannot be imported by {sys.executable}: {error}. bench/README.md names its packages."
    print(json.dumps({"peer": peer, "unavailable": why}), flush=True)
    sys.exit(UNAVAILABLE)
