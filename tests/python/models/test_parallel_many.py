"""Experts divided over three and four processes, and what the others do when one dies.

Each rank loads a checkpoint in which the others' experts are not numbers, so that reading one shows.
"""

import contextlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import build

import prophet_moe

RANK = Path(__file__).with_name("parallel_many_rank.py")
EXPERTS, LAYERS, PATIENCE = 12, 2, 240
# Heads, experts and vocabulary that three and four ranks divide.
SIZES = {
    "num_experts": EXPERTS,
    "num_experts_per_tok": 4,
    "num_attention_heads": 12,
    "num_key_value_heads": 12,
    "head_dim": 8,
    "hidden_size": 96,
    "vocab_size": 264,
}


@contextlib.contextmanager
def processes(folder: Path, what: str, ranks: int) -> Iterator[list[subprocess.Popen[str]]]:
    """All ranks, with nobody beside them who would end the others for the death of one."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    started = [
        subprocess.Popen(
            [sys.executable, str(RANK), str(folder), what, str(rank), str(ranks)],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(ranks)
    ]
    try:
        yield started
    finally:
        for process in started:
            process.kill()
            process.communicate()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("transformers.distributed.expert_parallel")
    folder = tmp_path_factory.mktemp("many")
    build("qwen3_moe", **SIZES).save_pretrained(folder / "whole")
    build("qwen3_moe").save_pretrained(folder / "eight")
    for ranks in (3, 4):
        for rank in range(ranks):
            model = build("qwen3_moe", **SIZES)
            own = range(rank * EXPERTS // ranks, (rank + 1) * EXPERTS // ranks)
            with torch.no_grad():
                for name, tensor in model.named_parameters():
                    if ".experts." in name:
                        for expert in set(range(EXPERTS)) - set(own):
                            tensor[expert] = float("nan")
            model.save_pretrained(folder / f"{ranks}.{rank}")
    return folder


@pytest.fixture(scope="module")
def alone(folder: Path) -> dict[str, Any]:
    spec = importlib.util.spec_from_file_location("parallel_rank", RANK.with_name("parallel_rank.py"))
    assert spec is not None
    assert spec.loader is not None
    worker = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(worker)
    model = prophet_moe.load(folder / "whole", slots="50%", context=64, timeline=True)
    try:
        said: dict[str, Any] = worker.decoded(model)
        return said
    finally:
        prophet_moe.close(model)


@pytest.fixture(scope="module", params=[3, 4])
def said(request: pytest.FixtureRequest, folder: Path) -> list[dict[str, Any]]:
    ranks = request.param
    with processes(folder, "work", ranks) as started:
        for process in started:
            _, complaint = process.communicate(timeout=PATIENCE)
            assert process.returncode == 0, complaint
    return [json.loads((folder / f"work.{ranks}.{rank}.json").read_text()) for rank in range(ranks)]


def test_tokens_are_those_of_one_process(said: list[dict[str, Any]], alone: dict[str, Any]) -> None:
    for rank in said:
        assert rank["generate"] == alone["generate"]
        assert rank["batch"] == alone["generate"]


def test_each_rank_reads_its_own_share(said: list[dict[str, Any]], alone: dict[str, Any]) -> None:
    """What one process reads at all, its rank reads, and nobody else does."""
    own = EXPERTS // len(said)
    read = [{(layer, rank * own + local) for layer, local in one["reads"]} for rank, one in enumerate(said)]
    assert set().union(*read) == {(layer, expert) for layer, expert in alone["reads"]}
    assert sum(map(len, read)) == len(alone["reads"])
    for one in said:
        assert one["report"]["ranks"] == len(said)
        assert one["report"]["experts_total"] == own * LAYERS
    asked = sum(sum(one["report"]["hits"].values()) for one in said)
    assert asked == sum(alone["report"]["hits"].values())


def test_what_does_not_divide_is_refused(said: list[dict[str, Any]]) -> None:
    for rank in said:
        expected = "8 experts cannot be divided evenly over 3 ranks" if len(said) == 3 else "loaded"
        assert expected in rank["uneven"]


@pytest.mark.parametrize("what", ["die-loading", "die-generating"])
def test_one_that_dies_ends_the_others_with_a_sentence(folder: Path, what: str) -> None:
    with processes(folder, what, 3) as started:
        for rank, process in enumerate(started):
            _, complaint = process.communicate(timeout=PATIENCE)
            assert process.returncode == (-signal.SIGKILL if rank == 1 else 0), complaint
    for rank in (0, 2):
        ended = json.loads((folder / f"{what}.3.{rank}.json").read_text())["ended"]
        assert ended.startswith("StateError: ")
        assert "another process of this model has gone" in ended
