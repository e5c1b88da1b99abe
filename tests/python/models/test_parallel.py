"""Experts divided over two processes: the tokens of one process, and no byte of another rank's experts.

Each rank loads a checkpoint in which the other's experts are not numbers, so that reading one shows.
"""

import dataclasses
import importlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import build

import prophet_moe
from prophet_moe import machine
from prophet_moe.errors import InvalidArgument, UnsupportedModelError
from prophet_moe.models.checkpoint import TensorReader, open_checkpoint
from prophet_moe.models.inspect import inspect, make_blueprint
from prophet_moe.models.locate import locate
from prophet_moe.models.parallel import Ranks, join, planned, require_divided, share_of
from prophet_moe.models.resident import Unread
from prophet_moe.record import Prompt, record

RANK = Path(__file__).with_name("parallel_rank.py")
EXPERTS, LAYERS = 32, 12
OWN = [range(16), range(16, 32)]
FAMILIES = ["mixtral", "gpt_oss", "deepseek_v3"]


def poisoned(folder: Path, own: range) -> None:
    """The reference model, float32, with experts outside of `own` that are not numbers."""
    shutil.copytree(locate("reference-moe"), folder, ignore=shutil.ignore_patterns("*.safetensors"))
    tensors = load_file(locate("reference-moe") / "model.safetensors")
    for name, tensor in tensors.items():
        if ".experts." in name and int(name.split(".experts.")[1].split(".")[0]) not in own:
            tensor.fill_(float("nan"))
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


@pytest.fixture(scope="module")
def worker() -> ModuleType:
    spec = importlib.util.spec_from_file_location("parallel_rank", RANK)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    for rank, own in enumerate(OWN):
        poisoned(folder / f"rank{rank}", own)
    shutil.copytree(folder / "rank1", folder / "damaged")
    with (folder / "damaged" / "model.safetensors").open("r+b") as file:
        file.truncate(10_000_000)
    build("qwen3_moe", num_experts=7).save_pretrained(folder / "uneven")
    build("zaya").save_pretrained(folder / "planless")
    for family in FAMILIES:
        build(family).save_pretrained(folder / family)
    return folder


@pytest.fixture(scope="module")
def ranks(folder: Path) -> list[dict[str, Any]]:
    """What two processes said."""
    pytest.importorskip("transformers.distributed.expert_parallel")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*launch, str(RANK), str(folder), *FAMILIES],
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


@pytest.fixture(scope="module")
def alone(worker: ModuleType, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The same in one process, and what its routers chose."""
    model = prophet_moe.load("reference-moe", dtype="float32", slots="50%", context=64)
    model.generation_config.eos_token_id = None
    said: dict[str, Any] = {
        "tokens": [worker.solo(model, prompt) for prompt in worker.PROMPTS],
        "report": prophet_moe.report(model),
    }
    prompts = [Prompt("d", f"p:{i}") for i in range(len(worker.PROMPTS))]
    path = tmp_path_factory.mktemp("alone") / "trace.safetensors"
    said["trace"] = record(model, prompts, worker.PROMPTS, path, name="m", tokens=11)
    prophet_moe.close(model)
    return said


@pytest.mark.parametrize("layout", ["tensor", "exchange"])
def test_tokens_are_those_of_one_process(
    ranks: list[dict[str, Any]], alone: dict[str, Any], layout: str
) -> None:
    for rank in ranks:
        assert rank[layout]["generate"] == alone["tokens"]


def test_continuous_batching_too(ranks: list[dict[str, Any]], alone: dict[str, Any]) -> None:
    assert ranks[0]["batch"] == ranks[1]["batch"] == alone["tokens"]
    for rank in ranks:
        assert "FSDP" in rank["batch_of_fsdp"], "the library refuses it by a sentence"


@pytest.mark.parametrize("layout", ["tensor", "exchange"])
def test_each_rank_reads_its_own_experts_alone(
    ranks: list[dict[str, Any]], alone: dict[str, Any], layout: str
) -> None:
    """Exactly those that the routers of one process chose among its own."""
    chosen = {
        (layer, int(expert))
        for layer in range(LAYERS)
        for expert in np.unique(alone["trace"].map("experts")[:, layer])
    }
    for rank, own in zip(ranks, OWN, strict=True):
        read = {(layer, own.start + local) for layer, local in rank[layout]["reads"]}
        mine = {(layer, expert) for layer, expert in chosen if expert in own}
        # Where no row comes, the library's exchange calls a rank's first expert with a row of nothing.
        idle = {(layer, own.start) for layer in range(LAYERS)} if layout == "exchange" else set()
        assert mine <= read <= mine | idle


@pytest.mark.parametrize("layout", ["tensor", "exchange"])
def test_bytes_read_are_a_share(ranks: list[dict[str, Any]], alone: dict[str, Any], layout: str) -> None:
    whole = alone["report"]
    reports = [rank[layout]["report"] for rank in ranks]
    assert [report["rank"] for report in reports] == [0, 1]
    assert {report["ranks"] for report in reports} == {2}
    for report in reports:
        assert report["experts_total"] == EXPERTS * LAYERS // 2
        assert report["expert_slots"] == whole["expert_slots"] // 2
        # Routing need not be even, and half of the slots is not half of the misses.
        assert 0.35 < report["bytes"]["demand"] / whole["bytes"]["demand"] < 0.65
    asked = sum(sum(report["hits"].values()) for report in reports)
    if layout == "tensor":
        assert asked == sum(whole["hits"].values()), "every expert is asked for once, on one rank"
    moved = sum(report["bytes"]["demand"] for report in reports)
    assert moved == pytest.approx(whole["bytes"]["demand"], rel=0.15)


def test_the_account_knows_what_a_rank_holds(ranks: list[dict[str, Any]]) -> None:
    """Dense weights: never less than there are, and not much more."""
    whole = inspect("reference-moe", dtype=torch.float32).dense_bytes
    for rank in ranks:
        held, told = rank["dense_bytes"]
        assert 0.5 * whole <= held <= told <= 1.01 * held
        assert rank["dense_read"] <= 0.7 * whole / 2, "half of a checkpoint in bfloat16, and some whole"


@pytest.mark.parametrize("family", FAMILIES)
def test_families(
    ranks: list[dict[str, Any]],
    worker: ModuleType,
    folder: Path,
    load: Callable[..., Any],
    family: str,
) -> None:
    ours = load(folder / family, slots="50%", context=64)
    ours.generation_config.eos_token_id = None
    assert ranks[0][family] == ranks[1][family] == [worker.solo(ours, worker.PROMPTS[0])]


def test_untrained_predictors_work_on_a_part(ranks: list[dict[str, Any]], alone: dict[str, Any]) -> None:
    for system in ("fate", "moe-infinity"):
        assert ranks[0][system] == ranks[1][system] == alone["tokens"][:1]


def test_a_trace_has_the_ids_of_the_whole_layer(
    ranks: list[dict[str, Any]], alone: dict[str, Any], folder: Path
) -> None:
    one, two = (folder / f"{rank}.safetensors" for rank in range(2))
    assert one.read_bytes() == two.read_bytes(), "ranks that share a batch hear the same"
    assert [rank["trace_experts"] for rank in ranks] == [EXPERTS, EXPERTS]
    heard = prophet_moe.formats.trace.TraceReader(one)
    rows = slice(0, heard.tokens)
    np.testing.assert_array_equal(heard.map("experts"), alone["trace"].map("experts")[rows])


def test_what_fails_on_one_rank_fails_on_all(ranks: list[dict[str, Any]]) -> None:
    assert "model.safetensors" in ranks[1]["damaged"]
    assert ranks[1]["damaged"].startswith("CheckpointError: ")
    sentence = ranks[1]["damaged"].removeprefix("CheckpointError: ")
    assert ranks[0]["damaged"] == f"StateError: rank 1 could not load its part of the model: {sentence}"
    assert ranks[0]["still_together"] == [0, 1]


def test_what_cannot_be_divided_is_refused(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        assert "7 experts cannot be divided evenly over 2 ranks" in rank["uneven"]
        assert "needs 3 processes that know each other, and there are 2 processes" in rank["other_number"]
        assert rank["no_plan"].startswith("UnsupportedModelError: ")
        assert "no tensor-parallel plan for zaya: run it in one process" in rank["no_plan"]


# In one process.


def test_without_torchrun() -> None:
    with pytest.raises(InvalidArgument, match="this process is alone: start the command by torchrun"):
        prophet_moe.load("reference-moe", expert_parallel=2)
    for wrong in (0, -2, 1.5, "two", True):
        with pytest.raises(InvalidArgument, match="expert_parallel is a number of processes"):
            join(wrong)
    assert join(None) is join(1) is join("auto") is None


def test_layouts_without_divided_experts() -> None:
    pytest.importorskip("transformers.distributed.expert_parallel")
    distributed = importlib.import_module("transformers.distributed")
    with pytest.raises(InvalidArgument, match="ep_size is 1"):
        join(distributed.DistributedConfig(tp_size=2, tp_plan="auto"))


def two(**changes: Any) -> Ranks:
    config = SimpleNamespace(tp_size=2, ep_size=2, ep_plan=None, tp_plan="auto")
    return dataclasses.replace(Ranks(1, 2, 1, 2, 2, config), **changes)


def test_what_a_part_cannot_have(monkeypatch: pytest.MonkeyPatch) -> None:
    home = sys.modules["prophet_moe.models.load"]  # the package's name of it is the function
    monkeypatch.setattr(home, "join", lambda wanted: two())
    with pytest.raises(InvalidArgument, match="round in another order"):
        prophet_moe.load("reference-moe", expert_parallel=2, exact=True)
    with pytest.raises(InvalidArgument, match="prophet was trained on the routing to all experts"):
        prophet_moe.load("reference-moe", expert_parallel=2, system="prophet")


def test_parts_are_contiguous_and_complete() -> None:
    for parts in (2, 4, 16):
        owned = [two(part=part, parts=parts).experts(EXPERTS) for part in range(parts)]
        assert [expert for own in owned for expert in own] == list(range(EXPERTS))
    info = inspect("reference-moe")
    mine = two(part=0, parts=16).own(info)
    assert (mine.experts_per_layer, mine.top_k, mine.experts_total) == (2, 2, 24)


def test_families_without_a_plan(tmp_path: Path) -> None:
    build("qwen3_moe").save_pretrained(tmp_path)
    blueprint = make_blueprint(tmp_path)
    planned(blueprint, two())
    blueprint.info.config.base_model_ep_plan = None
    with pytest.raises(UnsupportedModelError, match="no expert-parallel plan for qwen3_moe"):
        planned(blueprint, two())


def test_a_library_that_divides_nothing_is_told() -> None:
    """It would give right tokens while one rank reads everything."""
    module = SimpleNamespace(num_experts=16, _is_expert_parallel=True, forward=lambda *_: None)
    require_divided([module], two(), 16)
    for name, value in (("num_experts", 32), ("_is_expert_parallel", False)):
        wrong = SimpleNamespace(**{**vars(module), name: value})
        with pytest.raises(UnsupportedModelError, match="did not divide"):
            require_divided([wrong], two(), 16)
    del module.forward
    with pytest.raises(UnsupportedModelError, match="did not divide"):
        require_divided([module], two(), 16)


def test_processes_share_what_is_free() -> None:
    free = machine.Memory(total=100, available=80, limit=None, used=None)
    assert share_of(free, 4).available == 20
    limited = share_of(machine.Memory(total=100, available=80, limit=60, used=20), 2)
    assert limited.limit == 40, "half of the 40 that are left, beside the 20 that are used"


def test_transformers_that_is_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    @dataclasses.dataclass
    class Older:
        tp_size: int = 1

    monkeypatch.setattr("transformers.distributed.DistributedConfig", Older)
    with pytest.raises(UnsupportedModelError, match="does not bring tokens to ranks"):
        join(2)


def test_a_part_of_a_tensor_is_read_and_kept_alone(tmp_path: Path) -> None:
    """Rows are read alone; columns are cut out of what was read."""
    whole = torch.arange(1200.0).view(40, 30)
    save_file({"k": whole}, tmp_path / "model.safetensors")
    with TensorReader(open_checkpoint(tmp_path)) as reader:
        tensor = Unread("k", (40, 30), lambda key, rows: reader.read(key, rows=rows))
        assert tensor.get_shape() == [40, 30]
        for place, count in (
            (..., 1200),
            ((slice(0, 40), slice(0, 30)), 1200),
            ((slice(20, 40), slice(0, 30)), 600),
            ((slice(1, 2), slice(0, 30)), 30),
            ((slice(0, 40), slice(0, 20)), 1200),
            ((slice(10, 30), slice(10, 30)), 600),
            ((slice(40, 40), slice(0, 30)), 0),
        ):
            before = reader.bytes_read
            part = tensor[place]
            assert torch.equal(part, whole[place])
            assert part.untyped_storage().nbytes() <= part.numel() * 4 + 64
            assert reader.bytes_read - before == count * 4
