"""Several workers record what one records, byte for byte; who dies is told by name, and nothing is lost."""

import json
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import active_children
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_models import build

from prophet_moe.errors import InvalidArgument, ProphetError
from prophet_moe.formats.trace import TraceError, TraceReader, TraceWriter
from prophet_moe.record import Order, Prompt, collect, merge_traces, processes, record, shards
from prophet_moe.record.shards import News, Part, as_text, divide, of_text, shards_of

IDS = [[5 + i, 6, 7 + i] for i in range(9)]
PROMPTS = [Prompt("even" if i % 2 == 0 else "odd", f"p:{i}", ids=tuple(IDS[i])) for i in range(9)]
SETTINGS = {"tokens": 5, "feed": "greedy", "phase": "decode", "hidden": "F32", "entering": "F32"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    build("qwen3_moe").save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def order(folder: Path) -> Order:
    return Order(str(folder), {"slots": "50%", "context": 32, "threads": 1}, "tiny", SETTINGS)


@pytest.fixture(scope="module")
def alone(order: Order, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The trace of one worker alone."""
    model = shards.load_model(order)
    path = tmp_path_factory.mktemp("alone") / "t.safetensors"
    return record(model, PROMPTS, IDS, path, name="tiny", **SETTINGS).path.read_bytes()


class Here:
    """A runner without processes, which a test can stop where it likes."""

    def __init__(self, stop_after: int | None = None, lost: str = "") -> None:
        self.did: list[int] = []
        self._stop_after, self._lost = stop_after, lost

    def __call__(self, order: Order, parts: Sequence[Part], place: Callable[[Part], Path]) -> Iterator[News]:
        model = shards.load_model(order)
        for part in parts:
            if len(self.did) == self._stop_after:
                if not self._lost:
                    raise KeyboardInterrupt
                yield News(lost=self._lost)
                return
            part.record(model, order, place(part))
            self.did.append(part.number)
            yield News(part, len(part.prompts), 10)


# Processes.


def test_two_processes_record_what_one_does(order: Order, alone: bytes, tmp_path: Path) -> None:
    told: list[tuple[int, int, int]] = []
    found = collect(
        order, PROMPTS, IDS, tmp_path / "t", run=processes(2), progress=lambda *now: told.append(now)
    )
    assert found.path.read_bytes() == alone
    assert os.listdir(tmp_path) == ["t"]
    assert told[0] == (0, 9, 0)
    assert told[-1] == (9, 9, found.tokens)
    assert sorted(now[0] for now in told) == [now[0] for now in told]
    assert not active_children()


def test_others_do_the_work_of_a_worker_that_is_killed(order: Order, alone: bytes, tmp_path: Path) -> None:
    killed: list[str] = []
    warned: list[str] = []

    def progress(done: int, *_: int) -> None:
        if done and not killed:
            victim = active_children()[0]
            assert victim.pid is not None
            killed.append(f"{victim.name} (process {victim.pid}) was killed by SIGKILL")
            os.kill(victim.pid, signal.SIGKILL)

    run = processes(2)
    found = collect(order, PROMPTS, IDS, tmp_path / "t", run=run, progress=progress, warn=warned.append)
    assert found.path.read_bytes() == alone
    assert len(warned) == 1
    assert warned[0].startswith(killed[0])
    assert warned[0].endswith("; others did its work.")


def test_when_all_are_killed_what_is_complete_is_kept(order: Order, alone: bytes, tmp_path: Path) -> None:
    def progress(done: int, *_: int) -> None:
        if done >= 2:
            for worker in active_children():
                worker.kill()

    with pytest.raises(ProphetError) as lost:
        collect(order, PROMPTS, IDS, tmp_path / "t", run=processes(2), progress=progress)
    said = str(lost.value)
    assert "worker-0 (process" in said
    assert "worker-1 (process" in said
    assert "was killed by SIGKILL" in said
    assert "of 9 sequences are complete in" in said
    assert os.listdir(tmp_path) == ["t.shards"]
    told: list[int] = []
    found = collect(
        order, PROMPTS, IDS, tmp_path / "t", run=Here(), resume=True, progress=lambda n, *_: told.append(n)
    )
    assert found.path.read_bytes() == alone
    assert told[0] >= 2, "what was complete is not recorded again"


# Parts, resumption, refusals.


def test_parts_are_all_prompts_in_order() -> None:
    for count in (1, 9, 63, 64, 65, 200):
        prompts = [Prompt("d", f"p:{i}") for i in range(count)]
        ids = [[i] for i in range(count)]
        parts = divide(prompts, ids)
        assert [prompt for part in parts for prompt in part.prompts] == prompts
        assert [list(row) for part in parts for row in part.ids] == ids
        assert [part.number for part in parts] == list(range(len(parts)))
        assert len(parts) <= 2 * shards.PARTS
        assert [part.first for part in parts] == np.cumsum([0, *[len(p.ids) for p in parts]])[:-1].tolist()
    assert of_text(as_text(divide(PROMPTS, IDS)[3])) == divide(PROMPTS, IDS)[3]


def test_ctrl_c_in_the_middle_of_a_part(
    order: Order, alone: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Parts of three sequences; the second is cut after one of them."""
    monkeypatch.setattr(shards, "PARTS", 3)
    finish = TraceWriter.end_sequence
    left = [4]

    def end_sequence(self: TraceWriter, *arguments: Any, **note: Any) -> None:
        finish(self, *arguments, **note)
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt

    monkeypatch.setattr(TraceWriter, "end_sequence", end_sequence)
    with pytest.raises(KeyboardInterrupt):
        collect(order, PROMPTS, IDS, tmp_path / "t", run=Here())
    monkeypatch.setattr(TraceWriter, "end_sequence", finish)
    told: list[int] = []
    rest = Here()
    found = collect(
        order, PROMPTS, IDS, tmp_path / "t", run=rest, resume=True, progress=lambda n, *_: told.append(n)
    )
    assert told[0] == 4, "one part of three and one sequence more"
    assert rest.did == [1, 2]
    assert found.path.read_bytes() == alone


def test_a_merge_that_was_cut_short_is_done_again(order: Order, alone: bytes, tmp_path: Path) -> None:
    path = tmp_path / "t"
    with pytest.raises(KeyboardInterrupt):
        collect(order, PROMPTS, IDS, path, run=Here(stop_after=8))
    half = TraceWriter(
        shards_of(path) / "whole.safetensors", model="m", layers=1, experts_per_layer=4, top_k=2
    )
    half.keep_parts()
    assert collect(order, PROMPTS, IDS, path, run=Here(), resume=True).path.read_bytes() == alone
    assert os.listdir(tmp_path) == ["t"]


def test_other_settings_are_refused(order: Order, tmp_path: Path) -> None:
    path = tmp_path / "t"
    with pytest.raises(ProphetError, match=r"^gone\. 2 of 9 sequences are complete in .*t\.shards"):
        collect(order, PROMPTS, IDS, path, run=Here(2, "gone"))
    with pytest.raises(TraceError, match="holds an interrupted recording: resume it"):
        collect(order, PROMPTS, IDS, path, run=Here())
    other = Order(order.model, order.load, order.name, SETTINGS | {"tokens": 6})
    with pytest.raises(TraceError, match=r"other settings \(prompts, tokens\)|other settings \(tokens\)"):
        collect(other, PROMPTS, IDS, path, run=Here(), resume=True)
    with pytest.raises(TraceError, match=r"other settings \(prompts\)"):
        collect(order, PROMPTS[:-1], IDS[:-1], path, run=Here(), resume=True)
    (shards_of(path) / "plan.json").write_text("{")
    with pytest.raises(TraceError, match="is damaged: remove"):
        collect(order, PROMPTS, IDS, path, run=Here(), resume=True)
    path.write_text("kept")
    with pytest.raises(TraceError, match="exists already"):
        collect(order, PROMPTS, IDS, path, run=Here(), resume=True)


# Merging traces that were recorded apart.


def trace(path: Path, seed: int, model: str = "m", layers: int = 2, hidden: int = 0) -> TraceReader:
    dice = np.random.default_rng(seed)
    with TraceWriter(
        path,
        model=model,
        layers=layers,
        experts_per_layer=8,
        top_k=2,
        hidden=hidden,
        entering=hidden,
        about={"seed": str(seed)},
    ) as writer:
        for sequence in range(2):
            writer.append(
                np.stack([dice.permutation(8)[:2] for _ in range(3 * layers)]).reshape(3, layers, 2),
                gate_probs=dice.random((3, layers, 2)),
                token_id=dice.integers(0, 9, 3),
                phase=[0, 1, 1],
                gate_input=dice.random((3, layers, hidden)) if hidden else None,
                entering=dice.random((3, layers, hidden)) if hidden else None,
            )
            writer.end_sequence(f"d{sequence}", source=f"{path.name}:{sequence}")
    return TraceReader(path)


def test_merged_traces_hold_all_sequences(tmp_path: Path) -> None:
    parts = [trace(tmp_path / name, seed, hidden=4) for seed, name in enumerate("abc")]
    merged = merge_traces(parts, tmp_path / "out")
    assert merged.labels == ("d0", "d1") * 3
    assert [note["source"] for note in merged.notes] == [f"{n}:{i}" for n in "abc" for i in range(2)]
    for name in ("experts", "gate_probs", "token_id", "phase", "gate_input", "entering"):
        np.testing.assert_array_equal(merged.map(name), np.concatenate([p.map(name) for p in parts]))
    assert merged.metadata["merged"] == "3 traces"
    assert "seed" not in merged.metadata, "they differ in it"
    assert sorted(os.listdir(tmp_path)) == ["a", "b", "c", "out"]


@pytest.mark.parametrize(
    ("other", "what"),
    [({"model": "n"}, "model"), ({"layers": 3}, "layers, arrays"), ({"hidden": 4}, "arrays")],
)
def test_traces_that_do_not_belong_together(tmp_path: Path, other: dict[str, Any], what: str) -> None:
    one, two = trace(tmp_path / "a", 0), trace(tmp_path / "b", 1, **other)
    with pytest.raises(TraceError, match=f"differ in {what}: "):
        merge_traces([one, two], tmp_path / "out")
    with pytest.raises(TraceError, match="no traces to merge"):
        merge_traces([], tmp_path / "out")
    assert sorted(os.listdir(tmp_path)) == ["a", "b"]


# Ray.


def test_ray_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    from prophet_moe.record.with_ray import on_ray

    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(InvalidArgument, match=r"pip install 'prophet-moe\[ray\]'"):
        on_ray(2)


@pytest.mark.slow
def test_two_actors_of_ray_record_what_one_process_does(order: Order, alone: bytes, tmp_path: Path) -> None:
    from prophet_moe.record.with_ray import on_ray

    told: list[tuple[int, int, int]] = []
    found = collect(
        order, PROMPTS, IDS, tmp_path / "t", run=on_ray(2, "local"), progress=lambda *now: told.append(now)
    )
    assert found.path.read_bytes() == alone
    assert told[-1] == (9, 9, found.tokens)
    assert json.loads(found.metadata["sequences"])[0]["source"] == "p:0"
