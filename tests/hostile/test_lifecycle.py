"""Use after close, two models, Ctrl-C: each ends in a sentence, and the next thing works."""

import contextlib
import copy as copying
import gc
import os
import pickle
import resource
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import prophet_moe
from prophet_moe import ProphetError, StateError
from prophet_moe.cli import app
from prophet_moe.models.offload import offload_of

Greedy = Callable[..., list[int]]


class Each:
    """A streamer that calls `act` with the number of tokens so far."""

    def __init__(self, act: Callable[[int], Any]) -> None:
        self.count, self._act = -1, act  # the prompt comes first

    def put(self, _: Any) -> None:
        self.count += 1
        self._act(self.count)

    def end(self) -> None:
        pass


@pytest.fixture
def model(sound: Path) -> Any:
    return prophet_moe.load(sound, slots=4, exact=True)


@pytest.mark.parametrize("exact", [False, True])
def test_use_after_close(sound: Path, greedy: Greedy, exact: bool) -> None:
    model = prophet_moe.load(sound, slots=4, exact=exact)
    greedy(model)
    engine, arena = offload_of(model).engine, offload_of(model).engine.arena()
    lease = engine.lease(0, [1])
    lease.wait(1)
    lease.release()
    prophet_moe.close(model)
    prophet_moe.close(model)
    uses: list[Callable[[], Any]] = [
        lambda: greedy(model),
        lambda: model(torch.tensor([[1]])),
        lambda: model(torch.arange(100)[None]),
        lambda: prophet_moe.report(model),
        lambda: engine.lease(0, [1]),
        lambda: engine.counters(),
        lambda: engine.arena(),
        lambda: engine.state(0, 0),
        lambda: engine.slots,
    ]
    for use in uses:
        with pytest.raises(StateError, match=r"closed.*load"):
            use()
    lease.release()
    sum(arena[:: len(arena) // 64])  # stale, but still memory
    engine.close()


def test_a_lease_that_outlives_its_engine(model: Any) -> None:
    engine = offload_of(model).engine
    lease = engine.lease(0, [1, 2])
    prophet_moe.close(model)
    with contextlib.suppress(ProphetError):
        lease.wait(1)
    lease.release()


@pytest.mark.parametrize("exact", [False, True])
def test_close_in_the_middle_of_generation(sound: Path, greedy: Greedy, exact: bool) -> None:
    model = prophet_moe.load(sound, slots=4, exact=exact)
    with pytest.raises(StateError, match=r"closed.*load"):
        greedy(model, streamer=Each(lambda n: n == 3 and prophet_moe.close(model)))


@pytest.mark.parametrize("exact", [False, True])
def test_close_from_another_thread(sound: Path, greedy: Greedy, exact: bool) -> None:
    """At any moment of a layer; generation goes on until it meets the closed engine."""
    model = prophet_moe.load(sound, slots=4, exact=exact)
    closer = threading.Thread(target=prophet_moe.close, args=(model,))
    with pytest.raises(StateError, match="closed"):
        model.generate(
            torch.tensor([[1, 2]]),
            max_new_tokens=2000,
            do_sample=False,
            streamer=Each(lambda n: n == 2 and closer.start()),
        )
    closer.join(timeout=20)
    assert not closer.is_alive()


def test_dropping_the_model_closes_the_engine(sound: Path) -> None:
    model = prophet_moe.load(sound, slots=4)
    engine = offload_of(model).engine
    del model
    gc.collect()
    with pytest.raises(StateError):
        engine.counters()


def test_what_a_model_without_experts_cannot_do(model: Any, tmp_path: Path) -> None:
    with pytest.raises(ProphetError, match=r"without its experts.*prophet_moe\.pack"):
        model.save_pretrained(tmp_path)
    assert not list(tmp_path.iterdir())
    with pytest.raises(ProphetError, match=r"cannot be copied.*load it a second time"):
        copying.deepcopy(model)
    with pytest.raises((ProphetError, pickle.PicklingError)):
        pickle.dumps(model)
    prophet_moe.close(model)


def test_models_that_load_did_not_make() -> None:
    for stranger in (torch.nn.Linear(2, 2), None, 3):
        for use in (prophet_moe.close, prophet_moe.report):
            with pytest.raises(StateError, match=r"was not loaded by prophet_moe\.load"):
                use(stranger)


def test_two_models(
    sound: Path, tmp_path: Path, small_model: Any, expected: list[int], greedy: Greedy
) -> None:
    """Token by token in turns, then at once; closing one leaves the other."""
    stock = small_model(1)
    stock.set_experts_implementation("eager")
    stock.save_pretrained(tmp_path / "other")
    others = greedy(stock)
    assert others != expected
    first = prophet_moe.load(sound, slots=4, exact=True)
    second = prophet_moe.load(tmp_path / "other", slots=5, exact=True, system="lru")
    third = prophet_moe.load(sound, slots=16)

    inner: list[list[int]] = []
    assert greedy(first, streamer=Each(lambda n: inner.append(greedy(second)))) == expected
    assert inner == [others] * len(inner)

    results: dict[str, list[list[int]]] = {}

    def work(name: str, model: Any) -> None:
        results[name] = [greedy(model) for _ in range(3)]

    threads = [threading.Thread(target=work, args=pair) for pair in (("first", first), ("second", second))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
    assert results == {"first": [expected] * 3, "second": [others] * 3}

    prophet_moe.close(first)
    assert greedy(second) == others
    assert greedy(third) == expected
    with pytest.raises(StateError):
        greedy(first)
    prophet_moe.close(second)
    prophet_moe.close(third)


@pytest.mark.parametrize("exact", [False, True])
def test_ctrl_c_during_generation(sound: Path, expected: list[int], greedy: Greedy, exact: bool) -> None:
    model = prophet_moe.load(sound, slots=4, exact=exact)
    with pytest.raises(KeyboardInterrupt):
        greedy(model, streamer=Each(lambda n: n == 3 and signal.raise_signal(signal.SIGINT)))
    assert greedy(model) == expected
    prophet_moe.close(model)


# The same through the command line: one line on stderr, exit code 2.


def sentence(*words: str) -> str:
    done = CliRunner().invoke(app, list(words), env={"COLUMNS": "200", "NO_COLOR": "1"})
    assert done.exit_code == 2, done.output
    assert done.stdout == ""
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("error: ")
    return line


@pytest.mark.parametrize("verb", ["run", "plan", "bench", "pack"])
def test_a_damaged_checkpoint_on_the_command_line(model_dir: Path, tmp_path: Path, verb: str) -> None:
    os.truncate(model_dir / "model.safetensors", 100_000)
    words = {"run": ["--prompt-ids", "1,2"], "pack": [str(tmp_path / "out")]}.get(verb, [])
    said = sentence(verb, "-q", str(model_dir), *words)
    assert str(model_dir / "model.safetensors") in said
    assert "get it again" in said
    assert not (tmp_path / "out").exists()


def test_a_full_disk_on_the_command_line(model_dir: Path, tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))
    try:
        said = sentence("pack", "-q", str(model_dir), str(tmp_path / "out"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "out could not be written" in said
    assert "free some space" in said
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
