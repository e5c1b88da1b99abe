"""One rank of test_parallel_many.py, started as a plain process: argv is FOLDER WHAT RANK RANKS.

WHAT: `work` says in FOLDER/RANKS.RANK.json what this rank did; `die-loading` and `die-generating` are for
three ranks of which the second is killed, and say how the others end.
"""

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import transformers
from parallel_rank import PROMPTS, batched, decoded, refused, solo

import prophet_moe
from prophet_moe.models.parallel import leave

PLAIN: dict[str, Any] = {"slots": "50%", "context": 64, "timeline": True}


def work(folder: Path, rank: int, ranks: int) -> dict[str, Any]:
    model = prophet_moe.load(folder / f"{ranks}.{rank}", expert_parallel=ranks, **PLAIN)
    said = decoded(model) | {"batch": batched(model)}
    prophet_moe.close(model)
    return said | {"uneven": refused(folder / "eight", expert_parallel=ranks)}


def die(folder: Path, rank: int, ranks: int, *, loading: bool) -> dict[str, Any]:
    def end(*_: Any) -> None:
        if rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)

    if loading:
        end()
    try:
        model = prophet_moe.load(folder / "whole", expert_parallel=ranks, **PLAIN)
        solo(model, PROMPTS[0])
        model.register_forward_pre_hook(end)
        solo(model, PROMPTS[1])
    except prophet_moe.ProphetError as error:
        return {"ended": f"{type(error).__name__}: {error}"}
    return {"ended": "did not notice"}


def main(folder: Path, what: str, rank: int, ranks: int) -> None:
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    meeting = (folder / f"{what}.{ranks}.meeting").absolute()
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=ranks)
    if what == "work":
        said = work(folder, rank, ranks)
    else:
        said = die(folder, rank, ranks, loading=what == "die-loading")
    (folder / f"{what}.{ranks}.{rank}.json").write_text(json.dumps(said))
    if what == "work":
        leave()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
