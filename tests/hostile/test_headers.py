"""Safetensors files that lie, or end too early, are refused before one of their offsets is believed."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import prophet_moe
from prophet_moe import CheckpointError, ProphetError, UnsupportedModelError

NAME = "model.safetensors"
TENSOR = "model.layers.1.mlp.experts.3.up_proj.weight"
WAY_OUT = "get it again"

Alter = Callable[[Path, Callable[[dict[str, Any]], Any]], None]


def with_header(text: bytes, length: int | None = None) -> Callable[[bytes], bytes]:
    return lambda _: (len(text) if length is None else length).to_bytes(8, "little") + text


def with_length(length: int) -> Callable[[bytes], bytes]:
    return lambda raw: length.to_bytes(8, "little") + raw[8:]


RAW: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda raw: b"",
    "seven bytes": lambda raw: raw[:7],
    "a length alone": lambda raw: raw[:8],
    "half a header": lambda raw: raw[:500],
    "a header alone": lambda raw: raw[: 8 + int.from_bytes(raw[:8], "little")],
    "last byte missing": lambda raw: raw[:-1],
    "a byte too many": lambda raw: raw + b"\0",
    "zeros": lambda raw: bytes(len(raw)),
    "length zero": with_length(0),
    "length past the end": lambda raw: with_length(len(raw))(raw),
    "length of 2^63": with_length(1 << 63),
    "length of 2^64 - 1": with_length((1 << 64) - 1),
    "length that wraps": with_length((1 << 64) - 8),
    "not JSON": with_header(b"{'single': quotes}"),
    "not text": with_header(b'{"\xff\xfe": 1}'),
    "cut JSON": with_header(b'{"a": {"dtype": "F32"'),
    "an array": with_header(b"[1, 2]"),
    "null": with_header(b"null"),
    "a number": with_header(b"12"),
    "nested without end": with_header(b"[" * 100_000),
    "nested objects": with_header(b'{"a":' * 50_000 + b"1" + b"}" * 50_000),
    "a page of HTML": lambda raw: b"<!DOCTYPE html><html><body>503</body></html>" * 100,
    "a Git LFS pointer": lambda raw: b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n",
}


@pytest.mark.parametrize("case", list(RAW))
def test_broken_files(model_dir: Path, refused: Callable[..., str], case: str) -> None:
    path = model_dir / NAME
    path.write_bytes(RAW[case](path.read_bytes()))
    refused(CheckpointError, model_dir, str(path), WAY_OUT)


def entry(**changes: Any) -> Callable[[dict[str, Any]], None]:
    def change(header: dict[str, Any]) -> None:
        header[TENSOR] |= changes

    return change


def moved(begin: int, end: int) -> Callable[[dict[str, Any]], None]:
    """Offsets of one tensor, moved by so many bytes."""

    def change(header: dict[str, Any]) -> None:
        at = header[TENSOR]["data_offsets"]
        header[TENSOR]["data_offsets"] = [at[0] + begin, at[1] + end]

    return change


def without(field: str) -> Callable[[dict[str, Any]], None]:
    return lambda header: header[TENSOR].pop(field)


LIES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "negative offset": entry(data_offsets=[-4, 12_284]),
    "offsets reversed": lambda h: h[TENSOR]["data_offsets"].reverse(),
    "past the end": moved(1 << 40, 1 << 40),
    "offsets of 2^63": entry(data_offsets=[(1 << 63) - 12_288, 1 << 63]),
    "offsets of 2^70": entry(data_offsets=[1 << 70, (1 << 70) + 12_288]),
    "overlap": moved(-64, -64),
    "a hole": moved(64, 64),
    "one tensor twice": lambda h: h.update({"twin": h[TENSOR]}),
    "offsets of floats": entry(data_offsets=[0.5, 12_288.5]),
    "offsets of text": entry(data_offsets=["0", "12288"]),
    "one offset": entry(data_offsets=[0]),
    "three offsets": entry(data_offsets=[0, 6_144, 12_288]),
    "no offsets": without("data_offsets"),
    "no shape": without("shape"),
    "no element type": without("dtype"),
    "unknown element type": entry(dtype="F31"),
    "element type half as wide": entry(dtype="BF16"),
    "element type twice as wide": entry(dtype="F64"),
    "negative shape": entry(shape=[-48, -64]),
    "shape too large": entry(shape=[48, 65]),
    "shape that overflows": entry(shape=[1 << 62, 1 << 62]),
    "shape of text": entry(shape="48x64"),
    "an entry that is null": lambda h: h.update({TENSOR: None}),
    "metadata of numbers": lambda h: h.update({"__metadata__": {"format": 1}}),
    "metadata that is a list": lambda h: h.update({"__metadata__": ["pt"]}),
}


@pytest.mark.parametrize("case", list(LIES))
def test_lying_headers(model_dir: Path, alter: Alter, refused: Callable[..., str], case: str) -> None:
    alter(model_dir / NAME, LIES[case])
    refused(CheckpointError, model_dir, str(model_dir / NAME), WAY_OUT)


def test_a_tensor_named_twice(model_dir: Path, refused: Callable[..., str]) -> None:
    """JSON parsers differ in which of two they keep."""
    path = model_dir / NAME
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    twice = json.dumps({TENSOR: header[TENSOR]})[1:-1]
    text = raw[8 : 8 + length].strip()[:-1] + b"," + twice.encode() + b"}"
    path.write_bytes(len(text).to_bytes(8, "little") + text + raw[8 + length :])
    refused(CheckpointError, model_dir, str(path), WAY_OUT)


def test_every_cut_is_refused(model_dir: Path) -> None:
    """A download that stopped: at any of 25 places."""
    path = model_dir / NAME
    size = path.stat().st_size
    for kept in range(size - 1, 0, -(size // 25)):
        os.truncate(path, kept)
        with pytest.raises(CheckpointError, match=WAY_OUT):
            prophet_moe.inspect(model_dir)


@pytest.mark.parametrize(
    ("tensor", "dtype", "shape", "kind", "parts"),
    [
        (TENSOR, "I32", [48, 64], UnsupportedModelError, ("['F32', 'I32']", "all F32")),
        (
            TENSOR,
            "F8_E4M3",
            [192, 64],
            CheckpointError,
            (TENSOR, "[192, 64]", "[48, 64]", "different models"),
        ),
        (
            "model.norm.weight",
            "C64",
            [32],
            CheckpointError,
            ("model.norm.weight", "[32]", "different models"),
        ),
    ],
)
def test_elements_that_are_no_weights(
    model_dir: Path,
    alter: Alter,
    refused: Callable[..., str],
    tensor: str,
    dtype: str,
    shape: list[int],
    kind: type[ProphetError],
    parts: tuple[str, ...],
) -> None:
    """Sound files whose tensors are of another kind than the model's."""
    alter(model_dir / NAME, lambda header: header[tensor].update(dtype=dtype, shape=shape))
    refused(kind, model_dir, str(model_dir), *parts)


def test_a_resident_tensor_that_is_no_weight(model_dir: Path, alter: Alter) -> None:
    """Same shape and size, an element type that the library cannot put into a model."""
    name = "model.layers.0.self_attn.q_proj.weight"

    def change(header: dict[str, Any]) -> None:
        begin, end = header[name]["data_offsets"]
        header[name] |= {"dtype": "F8_E5M2", "data_offsets": [begin, begin + (end - begin) // 4]}
        header["rest"] = {
            "dtype": "U8",
            "shape": [(end - begin) * 3 // 4],
            "data_offsets": [begin + (end - begin) // 4, end],
        }

    alter(model_dir / NAME, change)
    with pytest.raises(UnsupportedModelError) as raised:
        prophet_moe.load(model_dir, slots=4)
    assert all(part in str(raised.value) for part in (NAME, name, "F8_E5M2", "unquantised"))
