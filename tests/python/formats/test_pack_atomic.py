"""`pack` writes all of a folder or nothing: whatever goes wrong, the target is as it was before."""

import errno
import os
import resource
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_models import build

import prophet_moe
from prophet_moe import CheckpointError, InvalidArgument, WriteError


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source")
    build("qwen3_moe").save_pretrained(folder)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_nothing_under_the_final_name_until_the_end(source: Path, tmp_path: Path) -> None:
    """What a power cut would leave, at any moment: one hidden folder."""
    seen = set()

    def progress(done: int, total: int) -> None:
        seen.add(tuple(path.name[: len(".out.packing-")] for path in tmp_path.iterdir()))

    prophet_moe.pack(source, tmp_path / "out", progress=progress)
    assert seen == {(".out.packing-",)}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_ctrl_c(source: Path, tmp_path: Path) -> None:
    def progress(done: int, total: int) -> None:
        if done > total // 2:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        prophet_moe.pack(source, tmp_path / "out", progress=progress)
    assert not list(tmp_path.iterdir())


def test_a_file_size_limit(source: Path, tmp_path: Path) -> None:
    """The kernel refuses the write, as a full disk does."""
    largest = max(path.stat().st_size for path in source.iterdir())
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest // 2, hard))
    try:
        with pytest.raises(WriteError) as raised:
            prophet_moe.pack(source, tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert str(tmp_path / "out") in str(raised.value)
    assert "free some space" in str(raised.value)
    assert not list(tmp_path.iterdir())


def failing(monkeypatch: pytest.MonkeyPatch, call: str, at: int, code: int) -> None:
    """The `at`-th os.`call` fails, as on a disk that is full or dying; later ones work."""
    real, count = getattr(os, call), 0

    def fake(*args: Any, **kwargs: Any) -> Any:
        nonlocal count
        count += 1
        if count == at:
            raise OSError(code, os.strerror(code))
        return real(*args, **kwargs)

    monkeypatch.setattr(os, call, fake)


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize(
    ("call", "at"),
    [
        ("write", 1),
        ("write", 4),
        ("write", 40),
        *[("fsync", n) for n in range(1, 6)],
        ("rename", 1),
        ("rename", 2),
    ],
)
def test_failures_of_the_disk(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, at: int, overwrite: bool
) -> None:
    if call == "rename" and at == 2 and not overwrite:
        at = 1  # one rename is all there is
    out = tmp_path / "out"
    if overwrite:
        prophet_moe.pack("reference-moe", out)
    before = contents(tmp_path)
    with monkeypatch.context() as patch:
        failing(patch, call, at, errno.ENOSPC if call == "write" else errno.EIO)
        with pytest.raises(WriteError) as raised:
            prophet_moe.pack(source, out, overwrite=overwrite)
    said = str(raised.value)
    assert str(out) in said
    assert "is as before" in said
    assert ("free some space" if call == "write" else "check its permissions and the disk") in said
    assert contents(tmp_path) == before
    prophet_moe.pack(source, out, overwrite=overwrite)
    assert prophet_moe.inspect(out).experts_total == 16


def test_writes_may_be_short(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = prophet_moe.pack(source, tmp_path / "whole")
    real = os.write
    monkeypatch.setattr(os, "write", lambda to, data: real(to, data[: max(1, len(data) // 3)]))
    assert contents(prophet_moe.pack(source, tmp_path / "parts")) == contents(whole)


def test_overwrite_replaces_the_whole_folder(source: Path, tmp_path: Path) -> None:
    out = prophet_moe.pack("reference-moe", tmp_path / "out")
    assert (out / "tokenizer.json").exists()
    prophet_moe.pack(source, out, overwrite=True)
    assert not (out / "tokenizer.json").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_empty_folder_may_be_overwritten(source: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(InvalidArgument, match="exists: name a new folder"):
        prophet_moe.pack(source, tmp_path / "out")
    prophet_moe.pack(source, tmp_path / "out", overwrite=True)
    assert prophet_moe.inspect(tmp_path / "out").packed


def _file(place: Path) -> None:
    place.write_text("mine")


def _folder(place: Path) -> None:
    place.mkdir()
    (place / "thesis.txt").write_text("mine")


def _lookalike(place: Path) -> None:
    _folder(place)
    (place / "experts.safetensors").write_bytes(b"\xff" * 100)


@pytest.mark.parametrize("make", [_file, _folder, _lookalike])
def test_what_pack_did_not_write_is_never_overwritten(
    source: Path, tmp_path: Path, make: Callable[[Path], None]
) -> None:
    make(tmp_path / "out")
    before = contents(tmp_path)
    with pytest.raises(InvalidArgument, match=r"out is no packed checkpoint.*name a new folder"):
        prophet_moe.pack(source, tmp_path / "out", overwrite=True)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("overwrite", [False, True])
def test_never_over_its_own_source(tmp_path: Path, overwrite: bool) -> None:
    packed = prophet_moe.pack("reference-moe", tmp_path / "inner" / ".." / "packed")
    (tmp_path / "link").symlink_to(packed)
    before = contents(tmp_path)
    for target in (packed, tmp_path / "link", tmp_path):
        with pytest.raises(InvalidArgument, match="holds the model to be packed: name another folder"):
            prophet_moe.pack(packed, target, overwrite=overwrite)
    assert contents(tmp_path) == before


def test_a_missing_parent(source: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match=r"absent is not a folder: make it"):
        prophet_moe.pack(source, tmp_path / "absent" / "out")


def test_a_source_that_changes(tmp_path: Path) -> None:
    """Half of the old and half of the new weights are no model."""
    source = tmp_path / "source"
    build("qwen3_moe").save_pretrained(source)

    def progress(done: int, total: int) -> None:
        os.utime(source / "model.safetensors")

    with pytest.raises(CheckpointError, match=r"model.safetensors changed while .* try again"):
        prophet_moe.pack(source, tmp_path / "out", progress=progress)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_a_source_that_is_cut(tmp_path: Path) -> None:
    source = tmp_path / "source"
    build("qwen3_moe").save_pretrained(source)

    def progress(done: int, total: int) -> None:
        os.truncate(source / "model.safetensors", 20_000)

    with pytest.raises(CheckpointError, match=r"model.safetensors ends before byte .* get it again"):
        prophet_moe.pack(source, tmp_path / "out", progress=progress)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]
