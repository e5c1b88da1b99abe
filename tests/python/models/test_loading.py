"""What load() reads, holds and leaves behind."""

import gc
import itertools
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
import transformers

import prophet_moe
from prophet_moe.errors import CheckpointError
from prophet_moe.models import offload_of
from prophet_moe.models.checkpoint import TensorReader, open_checkpoint
from prophet_moe.models.inspect import make_blueprint
from prophet_moe.models.locate import locate

Load = Callable[..., Any]
FAMILIES = ["qwen3_moe", "deepseek_v3", "granitemoe", "gpt_oss", "nemotron_h"]


@pytest.mark.parametrize("family", FAMILIES)
def test_no_expert_byte_is_read_or_held_and_dense_tensors_once(
    family: str, tmp_path: Path, load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = tiny_models.build(family)
    whole.save_pretrained(tmp_path)
    read: list[tuple[int, int]] = []
    original = TensorReader.read_into

    def noted(self: TensorReader, place: Any, target: memoryview) -> None:
        read.append((place.offset, place.offset + place.bytes))
        original(self, place, target)

    monkeypatch.setattr(TensorReader, "read_into", noted)
    told: list[tuple[int, int]] = []
    model = load(tmp_path, slots=5, progress=lambda done, total: told.append((done, total)))
    index = make_blueprint(tmp_path).index
    experts = [(int(at), int(at + size)) for _, at, size in index.table.reshape(-1, 3)]
    runs = sorted(read + experts)
    assert all(end <= begin for (_, end), (begin, _) in itertools.pairwise(runs)), "read twice"
    report = prophet_moe.report(model)
    assert report["bytes"]["demand"] == 0
    assert report["hits"] == {"resident": 0, "in_flight": 0, "miss": 0}
    dense = sum(end - begin for begin, end in read)
    assert offload_of(model).dense_bytes_read == dense
    assert told[-1] == (dense, dense)
    assert [done for done, _ in told] == sorted({done for done, _ in told})
    held = sum(p.numel() for p in model.parameters())
    all_experts = index.layers * index.experts_per_layer * index.expert_bytes // 4
    assert held == sum(p.numel() for p in whole.parameters()) - all_experts
    assert all(not p.is_meta for p in model.parameters())
    with torch.no_grad():
        model(torch.tensor([[5, 6, 7]]))
    assert prophet_moe.report(model)["bytes"]["demand"] > 0


def test_tensors_that_the_class_does_not_build_are_never_read(tmp_path: Path, load: Load) -> None:
    """Layers for multi-token prediction come with a full set of experts in some releases."""
    from safetensors.torch import load_file, save_file

    tiny_models.build("deepseek_v3").save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    extra = {
        key.replace("layers.1.", "layers.2."): value.clone()
        for key, value in weights.items()
        if ".layers.1." in key
    }
    before = offload_of(load(tmp_path, slots=5)).dense_bytes_read
    save_file(weights | extra, tmp_path / "model.safetensors", metadata={"format": "pt"})
    model = load(tmp_path, slots=5)
    assert offload_of(model).dense_bytes_read == before
    assert offload_of(model).info.layers == 1


def test_tied_and_sharded_checkpoints(tmp_path: Path, load: Load) -> None:
    whole = tiny_models.build("qwen3_moe", tie_word_embeddings=True)
    whole.save_pretrained(tmp_path, max_shard_size="300KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 3
    model = load(tmp_path, slots=5, exact=True)
    stock = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, experts_implementation="eager").eval()
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        assert torch.equal(model(ids).logits, stock(ids).logits)
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_the_process_is_left_as_it_was(load: Load) -> None:
    from transformers.models.qwen3_moe import modeling_qwen3_moe as modeling

    experts, forward = modeling.Qwen3MoeExperts, modeling.Qwen3MoeExperts.forward
    torch.manual_seed(11)
    expected = torch.rand(1)
    torch.manual_seed(11)
    before = (
        torch.get_num_threads(),
        torch.get_default_dtype(),
        torch.get_default_device(),
        torch.is_grad_enabled(),
        transformers.logging.get_verbosity(),
        transformers.logging.is_progress_bar_enabled(),
    )
    load("reference-moe", slots=24)
    with pytest.raises(ValueError, match="not a size"):
        load("reference-moe", budget="a lot")
    assert before == (
        torch.get_num_threads(),
        torch.get_default_dtype(),
        torch.get_default_device(),
        torch.is_grad_enabled(),
        transformers.logging.get_verbosity(),
        transformers.logging.is_progress_bar_enabled(),
    )
    assert modeling.Qwen3MoeExperts is experts
    assert modeling.Qwen3MoeExperts.forward is forward
    assert torch.equal(torch.rand(1), expected), "the random state moved"
    tiny_models.build("qwen3_moe")(torch.tensor([[5, 6]]))  # others still get whole experts


def test_a_load_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    from transformers.models.qwen3_moe import modeling_qwen3_moe as modeling

    tiny_models.build("qwen3_moe").save_pretrained(tmp_path)
    (tmp_path / "generation_config.json").write_text("{")
    experts = modeling.Qwen3MoeExperts
    descriptors = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(3):
        with pytest.raises(CheckpointError, match=r"generation_config\.json is not readable"):
            prophet_moe.load(tmp_path, slots=5)
    gc.collect()
    assert modeling.Qwen3MoeExperts is experts
    assert len(list(Path("/proc/self/fd").iterdir())) == descriptors


def test_a_failed_read_ends_the_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library notes errors of single tensors and goes on with random weights in their place."""
    tiny_models.build("qwen3_moe").save_pretrained(tmp_path)
    original = os.preadv

    def failing(descriptor: int, buffers: Any, offset: int) -> int:
        if offset > 100_000:
            raise OSError(5, "Input/output error")
        return original(descriptor, buffers, offset)

    monkeypatch.setattr(os, "preadv", failing)
    with pytest.raises(CheckpointError, match=r"model\.safetensors could not be read \(Input/output error\)"):
        prophet_moe.load(tmp_path, slots=5)


def test_an_error_in_progress_ends_the_load(tmp_path: Path) -> None:
    tiny_models.build("qwen3_moe").save_pretrained(tmp_path)

    def impatient(done: int, total: int) -> None:
        raise TimeoutError(f"{done} of {total}")

    with pytest.raises(TimeoutError):
        prophet_moe.load(tmp_path, slots=5, progress=impatient)


def test_compilation_is_switched_off_and_the_generation_configuration_read(load: Load) -> None:
    model = load("reference-moe", slots=24)
    shipped = transformers.GenerationConfig.from_pretrained(locate("reference-moe"))
    assert model.generation_config.disable_compile is True
    assert model.generation_config.eos_token_id == shipped.eos_token_id
    assert not model.training


PEAK = """
import sys, torch
sys.path.insert(0, {tests!r})
import prophet_moe
from pathlib import Path
from prophet_moe.models.inspect import make_blueprint
torch.set_num_threads(1)
def status(key):
    line = next(l for l in Path("/proc/self/status").read_text().splitlines() if l.startswith(key))
    return int(line.split()[1]) * 1024
info = make_blueprint({folder!r}, dtype={dtype}).info
make_blueprint({folder!r})
before = status("VmRSS")
model = prophet_moe.load({folder!r}, slots=8, dtype={dtype})
print(info.dense_bytes, status("VmHWM") - before)
"""


@pytest.mark.parametrize("dtype", ["torch.float32", "torch.bfloat16"])
def test_the_peak_of_a_load_is_what_stays(dtype: str, tmp_path: Path) -> None:
    """Also when every weight changes its type: no second copy of all of them at any moment."""
    tiny_models.build("qwen3_moe", vocab_size=65536, hidden_size=256).save_pretrained(tmp_path)
    script = PEAK.format(folder=str(tmp_path), dtype=dtype, tests=str(Path(tiny_models.__file__).parent))
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    stays, peak = map(int, done.stdout.split())
    largest = 65536 * 256 * 4  # one tensor, as stored, while it is being cast
    allowance = 24 << 20  # code pages touched for the first time, the engine
    assert peak <= stays + largest + allowance


def test_a_reader_of_odd_places(tmp_path: Path) -> None:
    """as_mapped moves the beginning within a cache line and nothing else."""
    tiny_models.build("qwen3_moe").save_pretrained(tmp_path)
    checkpoint = open_checkpoint(tmp_path)
    with TensorReader(checkpoint) as reader:
        for name, place in checkpoint.tensors.items():
            plain, mapped = reader.read(name), reader.read(name, as_mapped=True)
            assert torch.equal(plain, mapped)
            assert plain.data_ptr() % 64 == 0
            assert mapped.data_ptr() % 64 == place.offset % 64
