"""Files that change, shrink or vanish under a model: an error or the right token, never a wrong one."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import prophet_ext
import prophet_moe
from prophet_moe import CheckpointError, ReadError
from prophet_moe.models.offload import offload_of

SINGLE = "model.safetensors"
Greedy = Callable[..., list[int]]
Copy = Callable[[Path], Path]
WAYS = [(False, "auto"), (False, "pread"), (True, "auto"), (True, "pread")]


class AtToken:
    """A streamer that keeps the tokens and does something after the n-th."""

    def __init__(self, n: int, act: Callable[[], Any]) -> None:
        self.tokens: list[int] = []
        self._n, self._act, self._prompt = n, act, True

    def put(self, value: torch.Tensor) -> None:
        if self._prompt:
            self._prompt = False
            return
        self.tokens += value.reshape(-1).tolist()
        if len(self.tokens) == self._n:
            self._act()

    def end(self) -> None:
        pass


@pytest.fixture(params=WAYS, ids=lambda way: f"{'exact' if way[0] else 'native'}-{way[1]}")
def model(request: pytest.FixtureRequest, model_dir: Path) -> Iterator[Any]:
    """A model that reads experts at every token: nothing is kept."""
    exact, io = request.param
    loaded = prophet_moe.load(model_dir, slots=4, system="on-demand", exact=exact, io=io)
    yield loaded
    prophet_moe.close(loaded)


def overwrite(path: Path) -> None:
    """Other bytes, same size."""
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(os.urandom(path.stat().st_size - 4096))


def lengthen(path: Path) -> None:
    os.truncate(path, path.stat().st_size + 4096)


CHANGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "cut": (lambda path: os.truncate(path, 100_000), "its size was"),
    "emptied": (lambda path: os.truncate(path, 0), "and is 0"),
    "lengthened": (lengthen, "its size was"),
    "overwritten": (overwrite, "it was written to"),
    "touched": (os.utime, "it was written to"),
}


@pytest.mark.parametrize("change", list(CHANGES))
def test_a_change_in_the_middle_of_generation(
    model: Any, model_dir: Path, expected: list[int], greedy: Greedy, change: str
) -> None:
    path = model_dir / SINGLE
    act, what = CHANGES[change]
    raw, status = path.read_bytes(), path.stat()
    streamer = AtToken(4, lambda: act(path))
    with pytest.raises(ReadError) as raised:
        greedy(model, streamer=streamer)
    assert streamer.tokens == expected[:4]
    for part in (str(path), "changed while in use", what, "reload the model"):
        assert part in str(raised.value)
    with pytest.raises(ReadError):  # it does not forget
        greedy(model)

    path.write_bytes(raw)
    with pytest.raises(ReadError, match="reload the model"):  # nobody can know that these are the same bytes
        greedy(model)
    again = prophet_moe.load(model_dir, slots=4, exact=True)
    assert greedy(again) == expected
    prophet_moe.close(again)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert greedy(model) == expected
    counted = offload_of(model).engine.counters()
    assert counted["reads_failed"] > 0
    outcomes = ("demand", "prefetch_used", "prefetch_late", "prefetch_wasted", "prefetch_unused", "cancelled")
    assert counted["bytes_moved"] == sum(counted[f"bytes_{outcome}"] for outcome in outcomes)


def test_a_change_between_load_and_use(model: Any, model_dir: Path, greedy: Greedy) -> None:
    os.truncate(model_dir / SINGLE, 5000)
    with pytest.raises(ReadError, match=r"model\.safetensors changed while in use .* reload the model"):
        greedy(model)


def test_a_file_that_is_replaced_or_deleted_goes_on(
    model: Any, model_dir: Path, expected: list[int], greedy: Greedy
) -> None:
    """The opened file lives until the model is closed: a new download beside it does no harm."""
    new = model_dir / "new"
    new.write_bytes(os.urandom(100_000))
    streamer = AtToken(3, lambda: os.replace(new, model_dir / SINGLE))
    assert greedy(model, streamer=streamer) == expected
    (model_dir / SINGLE).unlink()
    assert greedy(model) == expected


def test_nothing_is_read_when_all_is_resident(model_dir: Path, expected: list[int], greedy: Greedy) -> None:
    model = prophet_moe.load(model_dir, slots="100%", exact=True)
    model(torch.arange(100)[None])  # long enough to touch every expert
    engine = offload_of(model).engine
    assert {engine.state(layer, expert) for layer in range(2) for expert in range(8)} == {"resident"}
    os.truncate(model_dir / SINGLE, 0)
    assert greedy(model) == expected
    prophet_moe.close(model)


def test_the_packed_file_in_use(packed: Path, copy: Copy, expected: list[int], greedy: Greedy) -> None:
    folder = copy(packed)
    model = prophet_moe.load(folder, slots=4, system="on-demand")
    streamer = AtToken(2, lambda: os.truncate(folder / "experts.safetensors", 8192))
    with pytest.raises(ReadError, match=r"experts\.safetensors changed while in use"):
        greedy(model, streamer=streamer)
    assert streamer.tokens == expected[:2]
    (folder / "dense.safetensors").unlink()  # was read at load and is not needed any more
    prophet_moe.close(model)


def test_a_failed_lease(model: Any, model_dir: Path) -> None:
    engine = offload_of(model).engine
    status = (model_dir / SINGLE).stat()
    os.utime(model_dir / SINGLE)
    with engine.lease(1, [3, 5]) as lease, pytest.raises(ReadError, match="reload the model"):
        lease.wait(3)
    assert engine.state(1, 3) == "absent"
    os.utime(model_dir / SINGLE, ns=(status.st_atime_ns, status.st_mtime_ns))
    with engine.lease(1, [3]) as lease:
        assert lease.wait(3)


# While it is being loaded: resident weights have been read, or are about to be.


@pytest.mark.parametrize(
    ("act", "parts"),
    [
        (os.utime, ("changed while the checkpoint was read", "try again")),
        (overwrite, ("changed while the checkpoint was read", "try again")),
        (lambda path: os.truncate(path, 9000), ("ends before byte", "get it again")),
        (os.unlink, ("could not be read", "No such file")),
    ],
)
def test_a_change_while_loading(model_dir: Path, act: Callable[[Path], Any], parts: tuple[str, ...]) -> None:
    path, done = model_dir / SINGLE, False

    def once(*_: int) -> None:
        nonlocal done
        if not done:
            done = True
            act(path)

    with pytest.raises(CheckpointError) as raised:
        prophet_moe.load(model_dir, slots=4, progress=once)
    assert all(part in str(raised.value) for part in (str(path), *parts)), raised.value


def test_a_shard_that_is_replaced_while_loading(sound: Path, copy: Copy) -> None:
    """Even one that holds nothing but experts, of which the load reads no byte."""
    folder = copy(sound)
    for path in folder.glob("*.safetensors*"):
        path.unlink()
    tensors = load_file(sound / SINGLE)
    experts = {name: tensors.pop(name) for name in list(tensors) if ".experts." in name}
    experts_only = folder / "experts-00001-of-00001.safetensors"
    save_file(tensors, folder / "others-00001-of-00001.safetensors")
    save_file(experts, experts_only)

    def replace(*_: int) -> None:
        (folder / "new").write_bytes(b"another model")
        os.replace(folder / "new", experts_only)

    with pytest.raises(CheckpointError) as raised:
        prophet_moe.load(folder, slots=4, progress=replace)
    assert str(experts_only) in str(raised.value)


def test_refused_loads_leave_no_file_open(model_dir: Path) -> None:
    def descriptors() -> int:
        return len(os.listdir("/proc/self/fd"))

    def fail(*_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):  # once for what the libraries open for good
        prophet_moe.load(model_dir, slots=4, progress=fail)
    before = descriptors()
    for _ in range(5):
        with pytest.raises(KeyboardInterrupt):
            prophet_moe.load(model_dir, slots=4, progress=fail)
    os.truncate(model_dir / SINGLE, 9000)
    for _ in range(5):
        with pytest.raises(CheckpointError):
            prophet_moe.load(model_dir, slots=4)
    assert descriptors() <= before


# The native engine, given tables of nonsense.


def table(*piece: int) -> Any:
    return torch.tensor(piece, dtype=torch.uint64).reshape(1, 1, 1, 3).numpy()


@pytest.mark.parametrize(
    ("piece", "part"),
    [
        ((0, 0, 0), "is empty"),
        ((0, 0, 1 << 40), "ends at"),
        ((0, 1 << 40, 16), "ends at"),
        ((0, (1 << 64) - 8, 16), "ends at"),
        ((0, 16, (1 << 64) - 8), "ends at"),
        ((1, 0, 16), "file number 1"),
        ((1 << 32, 0, 16), "file number"),
        ((1 << 31, 0, 16), "file number"),
    ],
)
def test_extents_of_nonsense(model_dir: Path, piece: tuple[int, ...], part: str) -> None:
    with pytest.raises(ReadError, match=part):
        prophet_ext.Engine(files=[str(model_dir / SINGLE)], pieces=table(*piece), top_k=1, slots=1)


@pytest.mark.parametrize("name", ["absent", ".", "", "a\0b", "/dev/null", "/proc/self/mem"])
def test_files_of_nonsense(model_dir: Path, name: str) -> None:
    path = str(model_dir / name) if name else ""
    with pytest.raises(ReadError, match=r"cannot read|truncated"):
        prophet_ext.Engine(files=[path], pieces=table(0, 0, 16), top_k=1, slots=1)
