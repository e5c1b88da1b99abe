"""A small sound checkpoint to damage, and the one way in which damage is asserted."""

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

import prophet_moe
from prophet_moe import ProphetError

PROMPT = torch.tensor([[5, 17, 42, 99]])


def _small_model(seed: int) -> Any:
    """Random Qwen3-MoE in float32: 2 layers of 8 experts of 36 KiB, top-2."""
    torch.manual_seed(seed)
    config = Qwen3MoeConfig(
        vocab_size=128,
        hidden_size=64,
        intermediate_size=64,
        moe_intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        num_experts=8,
        num_experts_per_tok=2,
        max_position_embeddings=128,
        eos_token_id=None,
        pad_token_id=0,
    )
    model = Qwen3MoeForCausalLM(config).eval()
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if name.endswith("gate.weight"):
                tensor.normal_(std=1.0)  # tokens choose different experts
    return model


def _greedy(model: Any, **settings: Any) -> list[int]:
    """Ten tokens after PROMPT."""
    return model.generate(PROMPT, max_new_tokens=10, do_sample=False, **settings)[0, 4:].tolist()


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    """Models of this size gain nothing from a second one, and lose much where processors are shared."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def greedy() -> Callable[..., list[int]]:
    """greedy(model, **settings of generate) -> ten tokens."""
    return _greedy


@pytest.fixture(scope="session")
def small_model() -> Callable[[int], Any]:
    """small_model(seed) -> a stock model; the sound checkpoint is that of seed 0."""
    return _small_model


@pytest.fixture(scope="session")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with config.json and model.safetensors; never damage this one."""
    folder = tmp_path_factory.mktemp("sound")
    _small_model(0).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model in several shards with an index; never damage this one."""
    folder = tmp_path_factory.mktemp("sharded")
    _small_model(0).save_pretrained(folder, max_shard_size="200KB")
    return folder


@pytest.fixture(scope="session")
def packed(sound: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model packed; never damage this one."""
    return prophet_moe.pack(sound, tmp_path_factory.mktemp("packed") / "packed")


@pytest.fixture(scope="session")
def expected() -> list[int]:
    """What the stock library generates."""
    model = _small_model(0)
    model.set_experts_implementation("eager")
    return _greedy(model)


@pytest.fixture
def copy(tmp_path: Path) -> Callable[[Path], Path]:
    """copy(folder) -> a folder that a test may damage."""
    return lambda folder: Path(shutil.copytree(folder, tmp_path / "model"))


@pytest.fixture
def model_dir(sound: Path, copy: Callable[[Path], Path]) -> Path:
    """A copy of the sound checkpoint."""
    return copy(sound)


@pytest.fixture
def alter() -> Callable[[Path, Callable[[dict[str, Any]], Any]], None]:
    """alter(path, change): rewrites the header of a safetensors file, the data stays where it is."""

    def rewrite(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
        raw = path.read_bytes()
        length = int.from_bytes(raw[:8], "little")
        header = json.loads(raw[8 : 8 + length])
        change(header)
        text = json.dumps(header).encode()
        path.write_bytes(len(text).to_bytes(8, "little") + text + raw[8 + length :])

    return rewrite


@pytest.fixture
def refused() -> Callable[..., str]:
    """refused(kind, folder, *parts): every door refuses with exactly `kind`, in one line with all `parts`."""

    def check(kind: type[ProphetError], folder: Path, *parts: str, **options: Any) -> str:
        doors: list[Callable[[], Any]] = [lambda: prophet_moe.load(folder, **({"slots": 4} | options))]
        if not options:
            doors += [
                lambda: prophet_moe.inspect(folder),
                lambda: prophet_moe.pack(folder, folder.parent / "never"),
            ]
        said = ""
        for door in doors:
            with pytest.raises(ProphetError) as raised:
                door()
            said = str(raised.value)
            assert type(raised.value) is kind, said
            assert "\n" not in said
            for part in parts:
                assert part in said, said
        assert not (folder.parent / "never").exists()
        return said

    return check


@pytest.fixture
def readable_by_owner_only(sound: Path) -> Iterator[Callable[[str], Path]]:
    """A copy of the sound checkpoint one file of which this process may not read, root or not."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(shutil.copytree(sound, Path(place) / "model"))
        Path(place).chmod(0o755)
        folder.chmod(0o755)

        def forbid(name: str) -> Path:
            for path in folder.iterdir():
                path.chmod(0o644)
            (folder / name).chmod(0)
            if os.geteuid() == 0:
                os.seteuid(65534)  # nobody
            return folder

        root = os.geteuid() == 0
        try:
            yield forbid
        finally:
            if root:
                os.seteuid(0)
