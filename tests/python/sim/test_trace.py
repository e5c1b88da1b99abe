"""Routing traces: what is written is read, what is damaged is refused by a sentence."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import save_file

from prophet_moe.formats.trace import TraceError, TraceReader, TraceWriter, split_domains, split_sequences

MakeTrace = Callable[..., TraceReader]
GEOMETRY = {"model": "m", "layers": 2, "experts_per_layer": 6, "top_k": 2}


def arrays(tokens: int = 8) -> dict[str, NDArray[Any]]:
    experts = np.array([[[0, 1], [4, 5]], [[2, 3], [1, 0]]], np.uint8)
    return {
        "experts": np.resize(experts, (tokens, 2, 2)),
        "sequence_start": np.array([0, 3, tokens], np.int64),
        "gate_probs": np.full((tokens, 2, 2), 0.5, np.float16),
        "token_id": np.arange(tokens, dtype=np.int32),
        "phase": np.ones(tokens, np.uint8),
    }


def metadata() -> dict[str, str]:
    return {
        "format": "prophet-trace",
        "version": "1",
        "model": "m",
        "layers": "2",
        "experts": "6",
        "top_k": "2",
    }


def save(path: Path, change: dict[str, Any] | None = None, about: dict[str, str] | None = None) -> Path:
    """A trace by the stock library; None in `change` removes an array, "" in `about` removes an entry."""
    tensors = {name: array for name, array in (arrays() | (change or {})).items() if array is not None}
    notes = {key: text for key, text in (metadata() | (about or {})).items() if text}
    save_file(tensors, path, notes)
    return path


def test_what_is_written_is_read_also_by_the_stock_library(tmp_path: Path) -> None:
    path = tmp_path / "t.safetensors"
    random = np.random.default_rng(0)
    rows = {
        "experts": np.argsort(random.random((7, 2, 300)), axis=2)[:, :, :3],
        "gate_probs": random.random((7, 2, 3)),
        "token_id": random.integers(0, 1000, 7),
        "phase": np.array([0, 0, 0, 1, 1, 1, 1]),
        "gate_input": random.standard_normal((7, 2, 5)),
        "entering": random.standard_normal((7, 2, 4)),
    }
    settings = GEOMETRY | {"experts_per_layer": 300, "top_k": 3, "hidden": 5, "entering": 4}
    with TraceWriter(path, **settings) as writer:  # type: ignore[arg-type]
        for first, last in ((0, 2), (2, 4), (4, 7)):
            writer.append(**{name: array[first:last] for name, array in rows.items()})
            if last > 2:
                writer.end_sequence(label=f"to {last}", prompt="ünïcode")
    trace = TraceReader(path)
    trace.check_ids()
    assert (trace.tokens, trace.layers, trace.experts_per_layer, trace.top_k) == (7, 2, 300, 3)
    assert (trace.model, trace.sequences, trace.labels) == ("m", 2, ("to 4", "to 7"))
    assert trace.notes[0]["prompt"] == "ünïcode"
    second = trace.sequence(1)
    assert (second.first, len(second)) == (4, 3)
    np.testing.assert_array_equal(second.experts, rows["experts"][4:])
    assert second.gate_input is not None
    np.testing.assert_array_equal(second.gate_input, rows["gate_input"][4:].astype(np.float16))
    assert second.entering is not None
    np.testing.assert_array_equal(second.entering, rows["entering"][4:].astype(np.float16))
    with safe_open(path, "np") as stock:
        assert stock.metadata()["format"] == "prophet-trace"
        for name, array in rows.items():
            np.testing.assert_array_equal(stock.get_tensor(name), array.astype(stock.get_tensor(name).dtype))
            np.testing.assert_array_equal(trace.map(name), stock.get_tensor(name))
        np.testing.assert_array_equal(stock.get_tensor("sequence_start"), [0, 4, 7])
    assert os.listdir(tmp_path) == ["t.safetensors"]


def test_a_trace_of_the_stock_library_is_read(tmp_path: Path) -> None:
    trace = TraceReader(save(tmp_path / "t.safetensors"))
    trace.check_ids()
    assert trace.sequences == 2
    assert trace.labels == ("", "")
    parts = list(trace.chunks(2))
    assert [(number, part.first, len(part)) for number, part in parts] == [
        (0, 0, 2),
        (0, 2, 1),
        (1, 3, 2),
        (1, 5, 2),
        (1, 7, 1),
    ]
    assert [part.first for _, part in trace.chunks(9, [1, 0])] == [3, 0]


def test_labels_may_lie_beside(tmp_path: Path) -> None:
    bare = {"format": "", "version": "", "layers": ""}
    path = save(
        tmp_path / "t.safetensors", {"token_id": None, "token_local_id": np.arange(8, dtype=np.int32)}, bare
    )
    (tmp_path / "sequences.json").write_text(json.dumps([{"category": "law"}, {"label": "code"}]))
    trace = TraceReader(path)
    assert trace.labels == ("law", "code")
    np.testing.assert_array_equal(trace.map("token_id"), np.arange(8))
    (tmp_path / "sequences.json").write_text("[{}]")
    with pytest.raises(TraceError, match="describes 1 sequences"):
        _ = TraceReader(path).labels


def test_bfloat16_inputs_are_widened(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file as save_torch

    values = torch.randn(8, 2, 4).to(torch.bfloat16)
    tensors = {name: torch.from_numpy(array) for name, array in arrays().items()} | {"gate_input": values}
    save_torch(tensors, tmp_path / "t.safetensors", metadata())
    part = TraceReader(tmp_path / "t.safetensors").slice(2, 7)
    np.testing.assert_array_equal(part.gate_input, values[2:7].float().numpy())


@pytest.mark.parametrize(
    ("change", "about", "words"),
    [
        ({"experts": None}, {}, "no tensor 'experts'"),
        ({"sequence_start": None}, {}, "no tensor 'sequence_start'"),
        ({"experts": np.zeros((8, 2, 2), np.float32)}, {}, "experts is F32"),
        ({"experts": np.zeros((8, 4), np.uint8)}, {}, r"\[tokens, layers, top_k\]"),
        ({"gate_probs": np.zeros((8, 2, 3), np.float16)}, {}, r"gate_probs is \[8, 2, 3\]"),
        ({"gate_probs": np.zeros((8, 2, 2), np.int64)}, {}, "gate_probs is I64"),
        ({"token_id": np.zeros(7, np.int32)}, {}, r"token_id is \[7\]"),
        ({"phase": np.zeros((8, 1), np.uint8)}, {}, r"phase is \[8, 1\]"),
        ({"gate_input": np.zeros((8, 3, 4), np.float16)}, {}, r"gate_input is \[8, 3, 4\]"),
        ({"entering": np.zeros((8, 2), np.float16)}, {}, r"entering is \[8, 2\]"),
        ({"entering": np.zeros((8, 2, 4), np.int32)}, {}, "entering is I32"),
        ({"sequence_start": np.array([0, 3, 3, 8])}, {}, "sequence 1 has no tokens"),
        ({"sequence_start": np.array([0, 5, 3, 8])}, {}, "sequence 1 has no tokens"),
        ({"sequence_start": np.array([0, 3, 9])}, {}, "from 0 to 8"),
        ({"sequence_start": np.array([1, 8])}, {}, "from 0 to 8"),
        ({"sequence_start": np.array([0])}, {}, "from 0 to 8"),
        ({"sequence_start": np.zeros((2, 2), np.int64)}, {}, "from 0 to 8"),
        ({"sequence_start": np.array([0, 8], np.int32)}, {}, "sequence_start is I32"),
        ({}, {"experts": ""}, "must say 'experts'"),
        ({}, {"experts": "many"}, "not 'many'"),
        ({}, {"experts": "1"}, "of 1 per layer"),
        ({}, {"layers": "3"}, "says 3 layers"),
        ({}, {"top_k": "1"}, "says 1 top_k"),
        ({}, {"format": "prophet-packed"}, "is a prophet-packed file"),
        ({}, {"version": "9"}, "trace version 9"),
    ],
)
def test_contradictions_are_refused(
    tmp_path: Path, change: dict[str, Any], about: dict[str, str], words: str
) -> None:
    path = save(tmp_path / "t.safetensors", change, about)
    with pytest.raises(TraceError, match=words) as error:
        TraceReader(path)
    assert "t.safetensors" in str(error.value)


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    whole = save(tmp_path / "whole.safetensors").read_bytes()
    path = tmp_path / "t.safetensors"
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        with pytest.raises(TraceError, match=r"cut short|does not begin"):
            TraceReader(path)
    path.write_bytes(whole)
    TraceReader(path)


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b"\xff" * 64,
        (1 << 62).to_bytes(8, "little") + b"{}",
        (2).to_bytes(8, "little") + b"[]",
        (4).to_bytes(8, "little") + b"null",
        (13).to_bytes(8, "little") + b'{"experts":1}',
        (14).to_bytes(8, "little") + b'{"experts":{}}',
    ],
)
def test_files_that_are_no_trace_are_refused(tmp_path: Path, damage: bytes) -> None:
    (tmp_path / "t.safetensors").write_bytes(damage)
    with pytest.raises(TraceError, match=r"not a routing trace"):
        TraceReader(tmp_path / "t.safetensors")


@pytest.mark.parametrize("offsets", [[0, 7], [-8, 0], [8, 0], [0, 1 << 60]])
def test_lying_headers_are_refused(tmp_path: Path, offsets: list[int]) -> None:
    head = json.dumps({"experts": {"dtype": "U8", "shape": [2, 2, 2], "data_offsets": offsets}}).encode()
    (tmp_path / "t.safetensors").write_bytes(len(head).to_bytes(8, "little") + head + bytes(64))
    with pytest.raises(TraceError, match=r"damaged"):
        TraceReader(tmp_path / "t.safetensors")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match=r"nothing\.safetensors cannot be read"):
        TraceReader(tmp_path / "nothing.safetensors")


@pytest.mark.parametrize(("ids", "words"), [([0, 6], "does not exist"), ([3, 3], "twice")])
def test_ids_are_checked(tmp_path: Path, ids: list[int], words: str) -> None:
    experts = arrays()["experts"]
    experts[5, 1] = ids
    trace = TraceReader(save(tmp_path / "t.safetensors", {"experts": experts}))
    with pytest.raises(TraceError, match=f"token 5 names .*{words}.* layer 1"):
        trace.check_ids()


def test_negative_ids_are_found(tmp_path: Path) -> None:
    experts = arrays()["experts"].astype(np.int16)
    experts[0, 0, 0] = -1
    with pytest.raises(TraceError, match="token 0"):
        TraceReader(save(tmp_path / "t.safetensors", {"experts": experts})).check_ids()


def test_what_was_not_recorded_is_named(tmp_path: Path) -> None:
    trace = TraceReader(save(tmp_path / "t.safetensors", {"gate_probs": None}))
    assert trace.slice(0, 2).gate_probs is None
    with pytest.raises(TraceError, match=r"no gate_probs: record"):
        trace.map("gate_probs")


# splits


def test_a_split_parts_sequences_and_is_repeatable(write_trace: MakeTrace) -> None:
    trace = write_trace([30] * 20)
    split = split_sequences(trace, test=5, val=3, seed=1)
    assert split == split_sequences(trace, test=5, val=3, seed=1)
    assert split != split_sequences(trace, test=5, val=3, seed=2)
    assert sorted(split.train + split.val + split.test + split.dropped) == list(range(20))
    assert (len(split.test), len(split.val), split.dropped) == (5, 3, ())


def test_copies_of_held_out_sequences_are_dropped(tmp_path: Path) -> None:
    random = np.random.default_rng(3)

    def fresh(tokens: int) -> NDArray[np.int64]:
        return np.argsort(random.random((tokens, 2, 32)), axis=2)[:, :, :4]

    texts = [fresh(60) for _ in range(12)]
    same_opening = np.concatenate([texts[0][:20], fresh(60)])
    shuffled_ids = texts[0][:, :, ::-1]  # the same sets in another order, shifted by a token
    shares_runs = np.concatenate([fresh(25), texts[0][22:60]])  # about half of its runs
    unlike = np.concatenate([fresh(60), texts[0][30:45]])  # a tenth of its runs
    texts += [same_opening, np.concatenate([fresh(1), shuffled_ids]), shares_runs, unlike]
    with TraceWriter(
        tmp_path / "t.safetensors", model="m", layers=2, experts_per_layer=32, top_k=4, gate_probs=False,
        token_id=False, phase=False,
    ) as writer:  # fmt: skip
        for text in texts:
            writer.append(text)
            writer.end_sequence()
    trace = TraceReader(tmp_path / "t.safetensors")
    tried = 0
    for seed in range(60):
        split = split_sequences(trace, test=1, val=0, seed=seed)
        if split.test == (0,):
            tried += 1
            assert set(split.dropped) == {12, 13, 14}
        elif split.test[0] in range(1, 12):
            assert split.dropped == ()
    assert tried > 0


def test_splits_that_cannot_be_are_refused(write_trace: MakeTrace) -> None:
    trace = write_trace([10] * 4)
    with pytest.raises(TraceError, match="none to train on"):
        split_sequences(trace, test=3, val=1)
    with pytest.raises(TraceError, match="none to train on"):
        split_sequences(trace, test=-1, val=1)
    with pytest.raises(TraceError, match=r"no domain law; it has even, odd"):
        split_domains(trace, ["law"])
    with pytest.raises(TraceError, match="0 sequences left"):
        split_domains(trace, ["even", "odd"])


def test_a_split_by_domain(write_trace: MakeTrace) -> None:
    split = split_domains(write_trace([10] * 6), ["odd"], val=1)
    assert set(split.test) == {1, 3, 5}
    assert set(split.train + split.val) == {0, 2, 4}
    assert len(split.val) == 1


# writing


def row(count: int = 2) -> dict[str, Any]:
    experts = np.tile(np.array([[0, 1], [4, 5]]), (count, 1, 1))
    return {
        "experts": experts,
        "gate_probs": np.full((count, 2, 2), 0.5),
        "token_id": np.arange(count),
        "phase": np.ones(count),
    }


def test_an_interrupted_recording_goes_on_from_its_last_sequence(tmp_path: Path) -> None:
    path = tmp_path / "t.safetensors"

    def interrupted() -> None:
        with TraceWriter(path, **GEOMETRY) as writer:  # type: ignore[arg-type]
            writer.append(**row(3))
            writer.end_sequence("a")
            writer.append(**row(5))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not path.exists()
    with pytest.raises(TraceError, match="interrupted recording"):
        TraceWriter(path, **GEOMETRY)  # type: ignore[arg-type]
    with pytest.raises(TraceError, match="other settings"):
        TraceWriter(path, **GEOMETRY | {"top_k": 1}, resume=True)  # type: ignore[arg-type]
    with TraceWriter(path, **GEOMETRY, resume=True) as writer:  # type: ignore[arg-type]
        assert writer.sequences == 1
        writer.append(**row(4))
        writer.end_sequence("b")
    trace = TraceReader(path)
    assert trace.sequence_start.tolist() == [0, 3, 7]
    assert trace.labels == ("a", "b")
    np.testing.assert_array_equal(trace.map("token_id"), [0, 1, 2, 0, 1, 2, 3])
    with pytest.raises(TraceError, match="exists already"):
        TraceWriter(path, **GEOMETRY, resume=True)  # type: ignore[arg-type]


def test_parts_that_are_too_short_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.safetensors"
    writer = TraceWriter(path, **GEOMETRY)  # type: ignore[arg-type]
    writer.append(**row(3))
    writer.end_sequence()
    writer.keep_parts()
    part = tmp_path / "t.safetensors.partial" / "experts"
    os.truncate(part, 5)
    with pytest.raises(TraceError, match="shorter than the journal"):
        TraceWriter(path, **GEOMETRY, resume=True)  # type: ignore[arg-type]
    (part.parent / "journal.json").write_text("{")
    with pytest.raises(TraceError, match="damaged"):
        TraceWriter(path, **GEOMETRY, resume=True)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"experts": [[[0, 6], [1, 2]]] * 2}, "from 0 to 5"),
        ({"experts": [[[0, -1], [1, 2]]] * 2}, "from -1 to"),
        ({"experts": [[[0.5, 1], [1, 2]]] * 2}, "whole numbers"),
        ({"experts": [[0, 1]] * 2}, r"experts is \[2, 2\]"),
        ({"gate_probs": [[[0.5, float("nan")]] * 2] * 2}, "not finite"),
        ({"gate_probs": None}, "was given"),
        ({"gate_input": np.zeros((2, 2, 4))}, "was given"),
        ({"token_id": [1]}, r"token_id is \[1\]"),
        ({"phase": [1, 7]}, "0 for prefill"),
    ],
)
def test_rows_that_do_not_fit_are_refused_and_leave_no_trace(
    tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    path = tmp_path / "t.safetensors"
    with TraceWriter(path, **GEOMETRY) as writer:  # type: ignore[arg-type]
        with pytest.raises(TraceError, match=words):
            writer.append(**row() | change)
        writer.append(**row())
        writer.end_sequence()
    trace = TraceReader(path)
    trace.check_ids()
    assert trace.tokens == 2


def test_sequences_are_ended_once_and_traces_have_some(tmp_path: Path) -> None:
    path = tmp_path / "t.safetensors"
    writer = TraceWriter(path, **GEOMETRY)  # type: ignore[arg-type]
    with pytest.raises(TraceError, match="at least one token"):
        writer.end_sequence()
    with pytest.raises(TraceError, match="at least one sequence"):
        writer.close()
    writer.append(**row())
    with pytest.raises(TraceError, match="under way"):
        writer.close()
    writer.end_sequence()
    with pytest.raises(TraceError, match="at least one token"):
        writer.end_sequence()
    writer.close()
    writer.close()
    assert TraceReader(path).sequences == 1


@pytest.mark.parametrize(
    "change",
    [
        {"layers": 0},
        {"top_k": 7},
        {"top_k": 0},
        {"hidden": -1},
        {"entering": -1},
        {"hidden": 4, "hidden_dtype": "F64"},
    ],
)
def test_geometries_that_cannot_be_are_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    with pytest.raises(TraceError):
        TraceWriter(tmp_path / "t.safetensors", **GEOMETRY | change)  # type: ignore[arg-type]
    assert os.listdir(tmp_path) == []


def test_a_full_disk_leaves_the_parts_and_no_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "t.safetensors"
    writer = TraceWriter(path, **GEOMETRY)  # type: ignore[arg-type]
    writer.append(**row(3))
    writer.end_sequence()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copyfileobj", full)
    with pytest.raises(OSError, match="No space"):
        writer.close()
    assert not path.exists()
    monkeypatch.undo()
    writer.close()
    assert TraceReader(path).tokens == 3
