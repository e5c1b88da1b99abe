"""What foresight is worth in replay, and that it does no harm: two tables of docs/foresight.md.

    python bench/foresight_replay.py ROUTES                     # shares of eviction and of prefetch
    python bench/foresight_replay.py ROUTES --harm              # wrong and untrained predictors, every cell
    python bench/foresight_replay.py ROUTES --predictor FILE --shares 0.25 --ratios 1,4    # fewer cells

Replays the sequences held out from training (60 of seed 0) on machines known by one number: how many layers'
time an expert takes over the link. All times are virtual: ratios only. An untrained predictor has the
shapes of the trained one and random weights; the wrong one is the trained one with the experts of every layer
renamed, so that all it knows is about others.
"""

import argparse
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from prophet_moe.formats.trace import TraceReader, split_sequences
from prophet_moe.predict import shipped
from prophet_moe.predict.export import native
from prophet_moe.sim.machine import Machine
from prophet_moe.sim.replay import ReplayReport, replay
from prophet_moe.systems import PROPHET, system_named

EXPERT = 13 << 20  # bytes; only its ratio to the link's speed matters
RATIOS = (0.25, 1.0, 4.0, 16.0)
SHARES = (0.25, 0.5, 0.75)


@dataclass(frozen=True)
class Cell:
    """One replay: a system on a machine. predictor: a file, or none."""

    routes: Path
    share: float
    ratio: float
    policy: str
    predictor: Path | None
    prefetch: bool
    sequences: tuple[int, ...]


def run(cell: Cell) -> ReplayReport:
    trace = TraceReader(cell.routes)
    total = trace.layers * trace.experts_per_layer
    return replay(
        trace,
        Machine.of_ratio(cell.ratio, trace.top_k, EXPERT),
        slots=max(trace.top_k, int(total * cell.share)),
        expert_bytes=EXPERT,
        policy=cell.policy,
        predictor=None if cell.predictor is None else native(cell.predictor, cell.share),
        prefetch=system_named(PROPHET).prefetch if cell.prefetch else None,
        sequences=cell.sequences,
    )


def replays(cells: Sequence[Cell], jobs: int) -> Iterator[ReplayReport]:
    with ProcessPoolExecutor(jobs) as pool:
        yield from pool.map(run, cells)


def altered(file: Path, folder: Path, seed: int = 0) -> dict[str, Path]:
    """The predictor's file with other weights: "untrained" and "renamed"."""
    with safe_open(file, "np") as opened:
        metadata = opened.metadata()
    tensors = load_file(file)
    dice = np.random.default_rng(seed)
    experts = next(v.shape[-1] for k, v in tensors.items() if k == "own.bias")
    names = dice.permutation(experts)

    def random(name: str, v: Any) -> Any:
        if any(part in name for part in ("scale", "gap", "prior")):  # calibration: keeps its meaning
            return v
        spread = max(1e-3, float(np.std(v.astype(np.float32))))
        return (dice.standard_normal(v.shape) * spread).astype(v.dtype)

    def renamed(v: Any) -> Any:
        for axis, size in enumerate(v.shape):
            if size == experts:
                v = np.take(v, names, axis=axis)
        return np.ascontiguousarray(v)

    made = {"untrained": folder / "untrained.safetensors", "renamed": folder / "renamed.safetensors"}
    save_file({k: random(k, v) for k, v in tensors.items()}, made["untrained"], metadata)
    save_file({k: renamed(v) for k, v in tensors.items()}, made["renamed"], metadata)
    return made


def worth(
    routes: Path,
    predictor: Path,
    held_out: tuple[int, ...],
    jobs: int,
    shares: Sequence[float],
    ratios: Sequence[float],
) -> None:
    kinds = {
        "lru": ("lru", None, False),
        "expected-next-use": ("expected-next-use", None, False),
        "foresight in eviction": ("expected-next-use", predictor, False),
        "and in prefetch": ("expected-next-use", predictor, True),
    }
    cells = [
        Cell(routes, share, ratio, *kind, held_out)
        for share in shares
        for ratio in ratios
        for kind in kinds.values()
    ]
    done = replays(cells, jobs)
    names = [name + ", of LRU's TPOT" for name in kinds if name != "lru"]
    moved_words = "experts moved a token: used / late / wasted / all"
    print("| " + " | ".join(["slots", "transfer / compute", *names, "misses", "late", moved_words]) + " |")
    print("|---" * (len(names) + 5) + "|")
    for share in shares:
        for ratio in ratios:
            lru, *rest = (next(done) for _ in kinds)
            last, n = rest[-1], rest[-1].tokens * EXPERT
            moved = (last.bytes.prefetch_used, last.bytes.prefetch_late, last.bytes.prefetch_wasted)
            print(
                f"| {share:.0%} | {ratio:g} | "
                + " | ".join(f"{r.tpot_ms.mean / lru.tpot_ms.mean:.3f}" for r in rest)
                + f" | {last.miss_rate:.4f} | {last.hits.in_flight / last.accesses:.4f} | "
                + " / ".join(f"{bytes / n:.1f}" for bytes in moved)
                + f" / {(last.bytes.per_token or 0) / EXPERT:.1f} |",
                flush=True,
            )


def harm(routes: Path, predictor: Path, held_out: tuple[int, ...], jobs: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        files = {"trained": predictor, **altered(predictor, Path(folder))}
        cells = []
        for share in SHARES:
            for ratio in RATIOS:
                cells.append(Cell(routes, share, ratio, "expected-next-use", None, False, held_out))
                for file in files.values():
                    cells += [
                        Cell(routes, share, ratio, "expected-next-use", file, early, held_out)
                        for early in (False, True)
                    ]
        done = replays(cells, jobs)
        names = [f"{name}: evict, + prefetch" for name in files]
        print("| " + " | ".join(["slots", "transfer / compute", *names]) + " |")
        print("|---" * (len(files) + 2) + "|")
        for share in SHARES:
            for ratio in RATIOS:
                base = next(done).tpot_ms.mean
                ratios = [next(done).tpot_ms.mean / base for _ in range(2 * len(files))]
                pairs = [f"{a:.3f}, {b:.3f}" for a, b in zip(ratios[::2], ratios[1::2], strict=True)]
                print(f"| {share:.0%} | {ratio:g} | " + " | ".join(pairs) + " |", flush=True)


def numbers(text: str) -> tuple[float, ...]:
    return tuple(float(part) for part in text.split(","))


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("routes", type=Path)
    asked.add_argument("--predictor", default="gpt-oss-20b")
    asked.add_argument("--harm", action="store_true")
    asked.add_argument("--jobs", type=int, default=1)
    asked.add_argument("--shares", type=numbers, default=SHARES, help="of experts in slots, as 0.25,0.5")
    asked.add_argument("--ratios", type=numbers, default=RATIOS, help="of an expert's transfer to a layer")
    given = asked.parse_args()
    held_out = tuple(split_sequences(TraceReader(given.routes), test=60, val=30, seed=0).test)
    predictor = shipped.find(given.predictor)
    if given.harm:
        harm(given.routes, predictor, held_out, given.jobs)
    else:
        worth(given.routes, predictor, held_out, given.jobs, given.shares, given.ratios)


if __name__ == "__main__":
    main()
