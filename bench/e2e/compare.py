"""Prophet beside its peers on one checkpoint that does not fit, under one memory limit.

    python bench/e2e/compare.py --work DIR --peers-python PEERS_VENV/bin/python   # root, 8 GB of disk

Makes the checkpoint and its GGUF in DIR when they are not there, then runs every peer once a round, each in
a control group of its own, on cold files, in rotating order (A B C, B C A, ...). Records are appended to
DIR/records.jsonl as they come; the Markdown table and the ratios that the measure asks for go to stdout.
--print FILE only prints records of earlier runs. A peer that is not installed gets a row that says so.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from control_group import NoControlGroup
from limited import run_limited
from make_checkpoint import Shape, make_checkpoint
from summary import Row, good, ratios, table
from units import MIB, parse_size

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Peer:
    """How one peer is run."""

    name: str
    runner: str
    takes_gguf: bool = False
    offload: bool = False  # writes a copy of the checkpoint


PEERS = (
    Peer("prophet", "run_prophet.py"),
    Peer("llama-cpp-python", "run_llama_cpp.py", takes_gguf=True),
    Peer("neurostream", "run_neurostream.py", takes_gguf=True),
    Peer("accelerate", "run_accelerate.py", offload=True),
)


def rotated(peers: Sequence[Peer], rounds: int) -> Iterator[tuple[int, Peer]]:
    """(round, peer): each peer once a round, each round beginning with the next peer."""
    for number in range(rounds):
        first = number % len(peers)
        for peer in (*peers[first:], *peers[:first]):
            yield number, peer


def prepare(work: Path, shape: Shape, gguf: bool) -> tuple[Path, Path]:
    """The checkpoint and the GGUF file in `work`, made when absent. An existing one is taken as it is."""
    checkpoint, converted = work / "checkpoint", work / "model.gguf"
    if not checkpoint.exists():
        make_checkpoint(checkpoint, shape)
    if gguf and not converted.exists():
        converter = [sys.executable, str(HERE / "peers/to_gguf.py"), str(checkpoint), str(converted)]
        subprocess.run(converter, check=True)
    return checkpoint, converted


def shape_of(checkpoint: Path) -> Shape:
    """The sizes of a checkpoint that make_checkpoint wrote."""
    config = json.loads((checkpoint / "config.json").read_text())
    return Shape(
        layers=config["num_hidden_layers"],
        hidden=config["hidden_size"],
        experts=config["num_experts"],
        top_k=config["num_experts_per_tok"],
        expert_width=config["moe_intermediate_size"],
        heads=config["num_attention_heads"],
        kv_heads=config["num_key_value_heads"],
        head_dim=config["head_dim"],
        vocab=config["vocab_size"],
    )


def libraries(python: str) -> list[Path]:
    """Shared libraries of an interpreter's environment: pages that others cached would be free memory."""
    question = "import sysconfig; print(sysconfig.get_paths()['platlib'])"
    answer = subprocess.run([python, "-c", question], capture_output=True, text=True, check=True)
    return [file for file in Path(answer.stdout.strip()).rglob("*.so*") if file.is_file()]


def measure(given: argparse.Namespace, out: Path) -> list[Row]:
    """Runs every round and returns the records, which are also appended to `out`."""
    peers = [peer for peer in PEERS if peer.name in given.peers]
    shape = Shape(embedding_std=given.embedding_std).sized(given.size)
    checkpoint, converted = prepare(given.work, shape, any(peer.takes_gguf for peer in peers))
    rows: list[Row] = []
    for number, peer in rotated(peers, given.rounds):
        python = given.prophet_python if peer.name == "prophet" else given.peers_python
        model = converted if peer.takes_gguf else checkpoint
        command = [python, str(HERE / "peers" / peer.runner), str(model)]
        command += ["--steps", str(given.steps), "--threads", str(given.threads)]
        command += given.option.get(peer.name, [])
        with tempfile.TemporaryDirectory(dir=given.work, prefix="offload-") as folder:
            command += ["--offload-folder", folder] if peer.offload else []
            record = run_limited(
                command,
                limit=given.limit,
                cold=[model, *libraries(python)],
                timeout=given.timeout,
                read_ahead_kb=given.read_ahead_kb,
            )
        row: Row = {"peer": peer.name, "round": number, **record}
        rows.append(row)
        with out.open("a") as file:
            file.write(json.dumps(row) + "\n")
        _tell(row, number + 1, given.rounds)
    return rows


def _tell(row: Row, number: int, rounds: int) -> None:
    """One line of progress."""
    if good(row):
        result = row["result"]
        read = result["bytes"]["per_token"] / MIB
        said = f"{result['tpot_ms']['mean'] / 1e3:.3f} s and {read:.0f} MiB a token"
    else:
        why = (row["result"] or {}).get("unavailable")
        said = why or f"did not run: exit {row['exit_status']}, OOM kills {row['oom_kills']}"
    print(f"round {number} of {rounds}, {row['peer']}: {said}", file=sys.stderr, flush=True)


def conditions(rows: Sequence[Row], ideal: int | None) -> str:
    """One line under the table: the machine, the limit, the files."""
    names = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    limits = {f"{row['limit_bytes'] / MIB:.0f} MiB" if row["limit_bytes"] else "none" for row in rows}
    ahead = ", ".join(sorted({str(row["read_ahead_kb"]) for row in rows}))
    kept = max((row["still_cached_bytes"] for row in rows), default=0)
    need = f"{ideal / MIB:.0f} MiB a token without any cache; " if ideal else ""
    return (
        f"{names[0] if names else platform.machine()}, {len(os.sched_getaffinity(0))} cores, Linux "
        f"{platform.release()}; limit {', '.join(sorted(limits))}; read-ahead {ahead} KiB; "
        f"{need}at most {kept / MIB:.0f} MiB of the evicted files stayed cached; "
        f"{datetime.now(timezone.utc):%Y-%m-%d}."
    )


def option(text: str) -> tuple[str, str]:
    """`neurostream:--ram-budget=384MB` as (peer, flag). Raises ArgumentTypeError with a sentence."""
    peer, _, flag = text.partition(":")
    if peer not in {known.name for known in PEERS} or not flag.startswith("--"):
        raise argparse.ArgumentTypeError(f"{text!r} is not PEER:--flag=value with a known peer.")
    return peer, flag


def arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line; exits with a sentence on nonsense."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    known = [peer.name for peer in PEERS]
    parser.add_argument("--work", type=Path, help="folder for checkpoint, GGUF and records")
    parser.add_argument("--limit", type=parse_size, default="1GiB", help="memory of each run [1GiB]")
    parser.add_argument("--size", type=parse_size, default="2.4GB", help="of a checkpoint to be made [2.4GB]")
    parser.add_argument("--embedding-std", type=float, default=Shape.embedding_std)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=16, help="tokens to decode in each run [16]")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--timeout", type=float, default=900, help="seconds for one run [900]")
    parser.add_argument("--peers", type=lambda text: text.split(","), default=known, help=",".join(known))
    parser.add_argument("--prophet-python", default=sys.executable)
    parser.add_argument("--peers-python", default=sys.executable)
    parser.add_argument("--read-ahead-kb", type=int, help="set for each run; belongs to the whole machine")
    parser.add_argument("--option", type=option, action="append", default=[], help="PEER:--flag=value")
    parser.add_argument("--out", type=Path, help="record file [WORK/records.jsonl]")
    parser.add_argument("--print", type=Path, metavar="FILE", help="print these records, run nothing")
    given = parser.parse_args(words)
    if strange := set(given.peers) - set(known):
        parser.error(f"--peers knows {', '.join(known)}, not {', '.join(sorted(strange))}.")
    if (given.work is None) == (given.print is None):
        parser.error("name a folder with --work, or records of an earlier run with --print.")
    if given.rounds < 1 or given.steps < 1:
        parser.error("--rounds and --steps are at least 1.")
    asked, given.option = given.option, {}
    for peer, flag in asked:
        given.option.setdefault(peer, []).append(flag)
    return given


def main() -> None:
    given = arguments()
    if given.print:
        rows = [json.loads(line) for line in given.print.read_text().splitlines()]
    else:
        given.work.mkdir(parents=True, exist_ok=True)
        try:
            rows = measure(given, given.out or given.work / "records.jsonl")
        except (NoControlGroup, OSError, subprocess.CalledProcessError) as error:
            sys.exit(f"{error}")
    checkpoint = (given.work or given.print.parent) / "checkpoint"
    ideal = shape_of(checkpoint).ideal_bytes_per_token if checkpoint.exists() else None
    print(table(rows, ideal), conditions(rows, ideal), *ratios(rows), sep="\n\n")


if __name__ == "__main__":
    main()
