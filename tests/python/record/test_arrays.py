"""Imported, divided, described: against the arrays that went in."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from prophet_moe.formats.trace import TraceError, TraceReader, TraceWriter
from prophet_moe.record import divide
from prophet_moe.record.arrays import import_arrays
from prophet_moe.record.describe import describe

LABELS = ["code", "math", "code", "novel"]


def arrays(lengths: list[int], layers: int = 3, experts: int = 7, top_k: int = 2) -> dict[str, NDArray[Any]]:
    random = np.random.default_rng(sum(lengths))
    n = sum(lengths)
    return {
        "ids": random.random((n, layers, experts)).argsort(axis=2)[:, :, :top_k],
        "gates": random.random((n, layers, top_k)).astype(np.float32),
        "tokens": random.integers(0, 1000, n),
        "starts": np.cumsum([0, *lengths]),
        "gate_inputs": random.random((n, layers, 5)),
        "entering": random.random((n, layers, 4)),
    }


def saved(folder: Path, given: dict[str, Any]) -> dict[str, Path]:
    for name, array in given.items():
        np.save(folder / f"{name}.npy", array, allow_pickle=True)
    return {name: folder / f"{name}.npy" for name in given}


@pytest.fixture
def trace(tmp_path: Path) -> TraceReader:
    """Four sequences in three domains, with inputs and phases."""
    rows = arrays([6, 30, 9, 25])
    with TraceWriter(
        tmp_path / "whole",
        model="m",
        layers=3,
        experts_per_layer=7,
        top_k=2,
        hidden=2,
        entering=4,
        about={"feed": "f"},
    ) as writer:
        for number, label in enumerate(LABELS):
            part = slice(rows["starts"][number], rows["starts"][number + 1])
            count = part.stop - part.start
            writer.append(
                rows["ids"][part],
                gate_probs=rows["gates"][part],
                token_id=rows["tokens"][part],
                phase=np.arange(count) > 3,
                gate_input=np.full((count, 3, 2), number),
                entering=np.full((count, 3, 4), number),
            )
            writer.end_sequence(label, source=f"s{number}")
    return TraceReader(tmp_path / "whole")


@settings(max_examples=30, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=5),
    layers=st.integers(1, 4),
    experts=st.sampled_from([2, 7, 300]),
    gates=st.booleans(),
    tokens=st.booleans(),
    states=st.booleans(),
)
def test_what_is_imported_is_read(
    tmp_path_factory: Any,
    lengths: list[int],
    layers: int,
    experts: int,
    gates: bool,
    tokens: bool,
    states: bool,
) -> None:
    folder = tmp_path_factory.mktemp("import")
    given = arrays(lengths, layers, experts)
    paths = saved(folder, given)
    labels = folder / "labels.json"
    labels.write_text(json.dumps([{"label": f"d{n}", "n": n} for n in range(len(lengths))]))
    made = import_arrays(
        paths["ids"],
        folder / "t",
        experts_per_layer=experts,
        gates=paths["gates"] if gates else None,
        tokens=paths["tokens"] if tokens else None,
        starts=paths["starts"],
        gate_inputs=paths["gate_inputs"] if states else None,
        entering=paths["entering"] if states else None,
        labels=labels,
        model="m",
    )
    made.check_ids()
    np.testing.assert_array_equal(made.map("experts"), given["ids"])
    np.testing.assert_array_equal(made.sequence_start, given["starts"])
    assert (made.has("gate_probs"), made.has("token_id"), made.has("phase")) == (gates, tokens, False)
    if gates:
        np.testing.assert_array_equal(made.map("gate_probs"), given["gates"].astype(np.float16))
    if tokens:
        np.testing.assert_array_equal(made.map("token_id"), given["tokens"])
    for array, file in (("gate_input", "gate_inputs"), ("entering", "entering")):
        assert made.has(array) == states
        if states:
            np.testing.assert_array_equal(made.map(array), given[file].astype(np.float16))
    assert made.labels == tuple(f"d{n}" for n in range(len(lengths)))
    assert (made.model, made.metadata["feed"]) == ("m", "imported")


def test_without_starts_all_is_one_sequence(tmp_path: Path) -> None:
    paths = saved(tmp_path, arrays([5, 4]))
    made = import_arrays(paths["ids"], tmp_path / "t", experts_per_layer=7)
    assert made.sequence_start.tolist() == [0, 9]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"ids": np.zeros((9, 2), int)}, r"ids is \[9, 2\]"),
        ({"ids": np.zeros((0, 3, 2), int)}, "not empty"),
        ({"ids": np.zeros((9, 3, 2))}, "whole numbers, not float64"),
        ({"ids": np.zeros((9, 3, 2), int)}, "token 0 names one expert twice in layer 0"),
        ({"ids": np.array([[[1, -1]] * 3] * 9)}, "go from -1 to 1"),
        ({"ids": np.array([[[1, 7]] * 3] * 9)}, "from 0 to 6"),
        ({"gates": np.zeros((9, 3, 3), np.float32)}, r"gates is \[9, 3, 3\]; it must be \[9, 3, 2\]"),
        ({"gates": np.zeros((9, 3, 2), int)}, "floating-point numbers, not int64"),
        ({"gates": np.full((9, 3, 2), np.nan)}, "not finite"),
        ({"tokens": np.zeros(8, int)}, r"tokens is \[8\]"),
        ({"gate_inputs": np.zeros((9, 6))}, r"it must be \[tokens, layers, hidden\]"),
        ({"entering": np.zeros((9, 2, 5))}, r"these ids ask for \[9, 3, hidden\]"),
        ({"entering": np.full((9, 3, 5), np.inf)}, "not finite"),
        ({"starts": np.array([0, 5])}, "the last place must be 9"),
        ({"starts": np.array([0, 5, 5, 9])}, "rising places"),
        ({"starts": np.array([0, 7, 5, 9], np.uint64)}, "rising places"),
        ({"starts": np.array([1, 9])}, "rising places from 0"),
        ({"ids": np.array([[{}]], object)}, "not a .npy file of numbers"),
    ],
)
def test_arrays_that_are_no_trace_are_refused(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    paths = saved(tmp_path, arrays([5, 4]) | change)
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(TraceError, match=words):
        import_arrays(
            paths["ids"],
            tmp_path / "t",
            experts_per_layer=7,
            gates=paths["gates"],
            tokens=paths["tokens"],
            starts=paths["starts"],
            gate_inputs=paths["gate_inputs"],
            entering=paths["entering"],
        )
    assert sorted(os.listdir(tmp_path)) == before


def test_files_that_hold_no_array_are_refused(tmp_path: Path) -> None:
    paths = saved(tmp_path, arrays([5, 4]))
    (tmp_path / "text").write_text("no array")
    (tmp_path / "empty").write_bytes(b"")
    np.savez(tmp_path / "several.npz", **arrays([5, 4]))
    for name, words in (("text", "not a .npy"), ("empty", "not a .npy"), ("several.npz", "several arrays")):
        with pytest.raises(TraceError, match=words):
            import_arrays(tmp_path / name, tmp_path / "t", experts_per_layer=7)
    with pytest.raises(OSError, match="No such file"):
        import_arrays(tmp_path / "absent.npy", tmp_path / "t", experts_per_layer=7)
    for text, words in (
        ("{", "is not JSON"),
        ('["a"]', "list of 2, one per sequence; this is 1 entries"),
        ('{"a": 1}', "no list"),
        ('["a", 3]', "a label is a text"),
        ('["a", {"label": 3}]', "a label is a text"),
    ):
        (tmp_path / "labels.json").write_text(text)
        with pytest.raises(TraceError, match=words):
            import_arrays(
                paths["ids"],
                tmp_path / "t",
                experts_per_layer=7,
                starts=paths["starts"],
                labels=tmp_path / "labels.json",
            )


# Dividing.


def test_parts_hold_their_sequences_whole(trace: TraceReader, tmp_path: Path) -> None:
    parts = divide.by_sequence(trace, test=1, val=1, seed=3)
    assert parts == divide.by_sequence(trace, test=1, val=1, seed=3)
    assert sorted(n for part in parts.values() for n in part) == [0, 1, 2, 3]
    written = divide.write_parts(trace, parts, tmp_path / "out")
    assert sorted(os.listdir(tmp_path / "out")) == [
        "test.safetensors",
        "train.safetensors",
        "val.safetensors",
    ]
    for name, part in written.items():
        assert {n: kind for n, (kind, _) in part.arrays.items()} == {
            n: kind for n, (kind, _) in trace.arrays.items()
        }
        assert (part.model, part.experts_per_layer) == ("m", 7)
        assert part.metadata["feed"] == "f"
        assert part.metadata["part"] == f"{name} of whole"
        for mine, theirs in enumerate(parts[name]):
            assert part.notes[mine] == {"label": LABELS[theirs], "sequence": theirs, "source": f"s{theirs}"}
            for array in ("experts", "gate_probs", "token_id", "phase", "gate_input", "entering"):
                np.testing.assert_array_equal(
                    part.map(array)[part.rows(mine)], trace.map(array)[trace.rows(theirs)]
                )


def test_domains(trace: TraceReader, tmp_path: Path) -> None:
    assert divide.each_domain(trace) == {"code": (0, 2), "math": (1,), "novel": (3,)}
    held = divide.by_held_out_domain(trace, ["code"], 1, 0)
    assert sorted(held["test"]) == [0, 2]
    assert sorted(held["train"] + held["val"]) == [1, 3]
    again = divide.copy_sequences(TraceReader(trace.path), [3, 1], tmp_path / "a", "two")
    once_more = divide.copy_sequences(again, [0], tmp_path / "b", "one")
    assert once_more.notes[0]["sequence"] == 3  # in the whole, not in the part


def test_what_cannot_be_divided_is_refused(trace: TraceReader, tmp_path: Path) -> None:
    assert (divide.share("50%", 7, "--test"), divide.share("3", 7, "--test")) == (3, 3)
    for wrong in ("", "-1", "x%", "101%", "%", "2.5", "²"):
        with pytest.raises(TraceError, match="--test is a number of sequences or a share"):
            divide.share(wrong, 7, "--test")
    with pytest.raises(TraceError, match="leave none to train on"):
        divide.by_sequence(trace, test=4, val=0, seed=0)
    with pytest.raises(TraceError, match="no domain law"):
        divide.by_held_out_domain(trace, ["law"], 0, 0)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "math.safetensors").write_text("kept")
    with pytest.raises(TraceError, match="exists already"):
        divide.write_parts(trace, divide.each_domain(trace), tmp_path / "out")
    assert os.listdir(tmp_path / "out") == ["math.safetensors"]
    paths = saved(tmp_path, arrays([5, 4]))
    refused = (["a", ""], "1 of 2 sequences have no label"), (["a", "../b"], "cannot be the name of a file")
    for number, (labels, words) in enumerate(refused):
        (tmp_path / "labels.json").write_text(json.dumps(labels))
        made = import_arrays(
            paths["ids"],
            tmp_path / str(number),
            experts_per_layer=7,
            starts=paths["starts"],
            labels=tmp_path / "labels.json",
        )
        with pytest.raises(TraceError, match=words):
            divide.each_domain(made)


# A look.


def test_a_look_counts(trace: TraceReader) -> None:
    found = describe(trace)
    rows = arrays([6, 30, 9, 25])
    assert json.loads(json.dumps(found)) == found
    assert (found["tokens"], found["prefill_tokens"], found["decode_tokens"]) == (70, 16, 54)
    assert (found["shortest_sequence"], found["longest_sequence"], found["sequences"]) == (6, 30, 4)
    assert found["domains"]["code"] == {"sequences": 2, "tokens": 15}
    unused = sum(len(set(range(7)) - set(rows["ids"][:, layer].reshape(-1).tolist())) for layer in range(3))
    assert found["experts_never_used"] == unused
    assert found["arrays"]["gate_input"] == {"type": "F16", "shape": [70, 3, 2]}
    assert found["about"] == {"feed": "f"}
