"""How fast demanded experts arrive, next to what an independent reader gets from the same file.

    python bench/demand_reads.py --file CHECKPOINT_OR_ANY_LARGE_FILE
    python bench/demand_reads.py --expert-mib 4 --rounds 5        # makes its own file

Needs fio (Debian: fio). Every round runs each fio job and each way of ours once, in an order that
changes from round to round, all past the page cache. "demand" leases --top-k random experts of a layer,
waits for all of them and drops them, as an on-demand model does between its computing; "lanes" keeps the
queue full without that barrier. fio reads into small pages, the arena is made of huge ones where the
system grants them: "demand small pages" forbids them, to show what they are worth.

Prints one JSON object: median bytes per second of each, and the ratios to the best fio job. The measure
asks for demand >= 0.85 with experts of at least 4 MiB.
"""

import argparse
import contextlib
import ctypes
import functools
import json
import os
import random
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

import prophet_ext

MIB = 1 << 20
FIO_JOBS = {
    "fio io_uring 1M qd8": ["--ioengine=io_uring", "--bs=1M", "--iodepth=8"],
    "fio io_uring 1M qd16": ["--ioengine=io_uring", "--bs=1M", "--iodepth=16"],
    "fio io_uring 4M qd8": ["--ioengine=io_uring", "--bs=4M", "--iodepth=8"],
    "fio psync 1M x4": ["--ioengine=psync", "--bs=1M", "--numjobs=4"],
}


def fio_rate(path: Path, seconds: float, job: list[str]) -> float:
    """Bytes per second of one fio job of random O_DIRECT reads."""
    command = ["fio", "--name=reads", f"--filename={path}", "--readonly", "--rw=randread", "--direct=1", *job]
    command += ["--thread", "--time_based", f"--runtime={seconds}s", "--group_reporting"]
    command += ["--invalidate=1", "--randrepeat=0", "--output-format=json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"fio failed on {path}: {done.stderr.strip() or done.stdout.strip()}")
    return float(json.loads(done.stdout)["jobs"][0]["read"]["bw_bytes"])


def demand_rate(path: Path, seconds: float, expert_bytes: int, top_k: int, io: str) -> float:
    """Bytes per second of experts leased, awaited and dropped, from the first lease to the last landing."""
    experts = path.stat().st_size // expert_bytes
    pieces = np.zeros((1, experts, 1, 3), np.uint64)
    pieces[0, :, 0, 1] = np.arange(experts) * expert_bytes
    pieces[0, :, 0, 2] = expert_bytes
    rng = random.Random(time.time_ns())
    with prophet_ext.Engine(
        files=[str(path)], pieces=pieces, top_k=top_k, slots=top_k, keep=False, io=io
    ) as engine:
        begin = time.perf_counter()
        while time.perf_counter() - begin < seconds:
            wanted = rng.sample(range(experts), top_k)
            engine.step(0)
            with engine.lease(0, wanted) as lease:
                for expert in wanted:
                    lease.wait(expert)
        elapsed = time.perf_counter() - begin
        counters = engine.counters()
    if counters["bytes_demand"] != counters["misses"] * expert_bytes:
        raise SystemExit("an expert was served without being read: the figure would be wrong")
    return counters["bytes_demand"] / elapsed


@contextlib.contextmanager
def small_pages() -> Iterator[None]:
    """No transparent huge pages for what this process maps meanwhile."""
    pr_set_thp_disable = 41
    prctl = ctypes.CDLL(None).prctl
    if prctl(pr_set_thp_disable, 1, 0, 0, 0) != 0:
        raise SystemExit("this kernel cannot switch huge pages off for one process")
    try:
        yield
    finally:
        prctl(pr_set_thp_disable, 0, 0, 0, 0)


def make_file(folder: Path, size: int) -> Path:
    """A file of incompressible bytes, written through to the disk."""
    path = folder / "experts.bin"
    block = os.urandom(16 * MIB)
    with path.open("wb") as out:
        for at in range(0, size, len(block)):
            # Different blocks, so that no disk can store one for all.
            out.write((at).to_bytes(8, "little") + block[8:])
        out.flush()
        os.fsync(out.fileno())
    return path


def measure(path: Path, args: argparse.Namespace) -> dict[str, object]:
    expert_bytes = int(args.expert_mib * MIB)
    if path.stat().st_size < 4 * args.top_k * expert_bytes:
        raise SystemExit(f"{path} holds fewer than {4 * args.top_k} experts: name a larger file")

    def demand(io: str = "auto") -> float:
        return demand_rate(path, args.seconds, expert_bytes, args.top_k, io)

    def demand_into_small_pages() -> float:
        with small_pages():
            return demand()

    def lanes() -> float:
        return float(prophet_ext.read_bandwidth(str(path), args.seconds, MIB, 16, "auto")["bytes_per_second"])

    ways: dict[str, Callable[[], float]] = {
        name: functools.partial(fio_rate, path, args.seconds, job) for name, job in FIO_JOBS.items()
    }
    ways |= {
        "demand": demand,
        "demand pread": functools.partial(demand, "pread"),
        "demand small pages": demand_into_small_pages,
        "lanes": lanes,
    }
    rates: dict[str, list[float]] = {name: [] for name in ways}
    order = list(ways)
    for _ in range(args.rounds):
        for name in order:
            rates[name].append(ways[name]())
        order = order[1:] + order[:1]
    medians = {name: statistics.median(values) for name, values in rates.items()}
    best = max(FIO_JOBS, key=lambda name: medians[name])
    return {
        "expert_bytes": expert_bytes,
        "top_k": args.top_k,
        "rounds": args.rounds,
        "bytes_per_second": {name: round(value) for name, value in medians.items()},
        "spread": {name: [round(min(v)), round(max(v))] for name, v in rates.items()},
        "best_fio": best,
        "ratio": {name: round(medians[name] / medians[best], 3) for name in ways if name not in FIO_JOBS},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--file", type=Path, help="read this file (a shard); default: a new one")
    parser.add_argument("--folder", type=Path, default=None, help="make the file here: the disk to measure")
    parser.add_argument("--size-mib", type=int, default=2048, help="size of a file made here")
    parser.add_argument("--expert-mib", type=float, default=4.0)
    parser.add_argument("--top-k", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each way in each round")
    args = parser.parse_args()
    if shutil.which("fio") is None:
        raise SystemExit("fio was not found: install it (Debian: apt-get install fio)")
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        path = args.file or make_file(Path(folder), args.size_mib * MIB)
        print(json.dumps(measure(path, args)))


if __name__ == "__main__":
    main()
