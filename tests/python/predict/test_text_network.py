"""The network on the text: what it learns, the arithmetic of the runtime, its file, whose ids it reads."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.numpy import save_file

from prophet_moe.errors import InvalidArgument
from prophet_moe.formats.trace import Split, TraceReader, TraceWriter
from prophet_moe.predict import rivals
from prophet_moe.predict.export import PredictorError
from prophet_moe.predict.text_network import (
    Network,
    TextNetwork,
    load,
    save,
    train,
)

LAYERS, EXPERTS, TOP_K, TOKENS = 3, 9, 2, 12
SPLIT = Split((0, 1, 2, 3), (4,), (5,), ())


def routes(ids: NDArray[Any]) -> NDArray[Any]:
    """Each token and the one before it name the experts of every layer."""
    before = np.concatenate([[0], ids[:-1]])
    first = np.stack([(ids + 2 * layer) % EXPERTS for layer in range(LAYERS)], 1)
    second = np.stack([(before + layer) % EXPERTS for layer in range(LAYERS)], 1)
    second = np.where(second == first, (second + 1) % EXPERTS, second)
    return np.stack([first, second], 2)


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> TraceReader:
    random = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("trace") / "routes.safetensors"
    shape = {"layers": LAYERS, "experts_per_layer": EXPERTS, "top_k": TOP_K}
    with TraceWriter(path, model="made", gate_probs=False, phase=False, **shape) as writer:
        for _ in range(6):
            ids = random.integers(0, TOKENS, 300)
            writer.append(routes(ids), token_id=ids)
            writer.end_sequence(label="one")
    return TraceReader(path)


@pytest.fixture(scope="module")
def trained(trace: TraceReader) -> TextNetwork:
    return train(trace, SPLIT, steps=250, embedding=16, width=32)


def tell(predictor: Any, ids: list[int]) -> NDArray[Any]:
    """[L, E] said before layer 0 of a pass that feeds these tokens; the routers then speak."""
    assert predictor.approach(0, len(ids), ids=np.array(ids, np.int32))
    said = np.asarray(predictor.forecast(LAYERS - 1))
    for layer in range(LAYERS):
        predictor.observe(layer, np.zeros((1, TOP_K), np.int32))
    return said


def test_it_learns_what_follows_from_the_text(trace: TraceReader, trained: TextNetwork) -> None:
    predictor, right = trained.native(), 0
    part = trace.sequence(5)
    assert part.token_id is not None
    for token, chosen in zip(part.token_id.tolist(), np.asarray(part.experts), strict=True):
        best = np.argsort(-tell(predictor, [token]), axis=1)[:, :TOP_K]
        right += sum(len(set(a) & set(b)) for a, b in zip(best.tolist(), chosen.tolist(), strict=True))
    assert right > 0.95 * len(part) * LAYERS * TOP_K


def test_the_runtime_computes_what_torch_does(trained: TextNetwork) -> None:
    """Of known, unknown and impossible tokens, one after another."""
    t = {name: torch.from_numpy(array) for name, array in trained.tensors.items()}
    net = Network(trained.vocabulary, trained.embedding, trained.width, LAYERS * EXPERTS).eval()
    net.load_state_dict(
        {
            "embed.weight": t["embed.weight"],
            "cell.weight_ih_l0": t["input.weight"].T,
            "cell.weight_hh_l0": t["recur.weight"].T,
            "cell.bias_ih_l0": t["input.bias"],
            "cell.bias_hh_l0": t["recur.bias"],
            "leave.weight": t["leave.weight"].T,
            "leave.bias": t["leave.bias"],
        }
    )
    ids = [1, 5, -1, 5, 11, 999_999, 0, 3] * 20
    rows = torch.tensor([i if 0 <= i < trained.vocabulary else trained.vocabulary for i in ids])
    with torch.no_grad():
        meant = torch.sigmoid(net(rows[None])[0]).reshape(-1, LAYERS, EXPERTS).numpy()
    predictor = trained.native()
    for token, p in zip(ids, meant, strict=True):
        said = tell(predictor, [token])
        shown = np.where(p >= 0.01, p, 0)
        assert (np.isclose(said, shown, atol=1e-5) | (np.abs(p - 0.01) < 1e-5)).all()


def test_tokens_seen_seldom_are_unknown(tmp_path: Path) -> None:
    ids = np.concatenate([np.tile(np.arange(4), 30), [9, 9]])
    with TraceWriter(
        tmp_path / "t", model="m", layers=LAYERS, experts_per_layer=EXPERTS, top_k=TOP_K,
        gate_probs=False, phase=False,
    ) as writer:  # fmt: skip
        for _ in range(3):
            writer.append(routes(ids), token_id=ids)
            writer.end_sequence()
    made = train(TraceReader(tmp_path / "t"), Split((0,), (1,), (2,), ()), steps=2, embedding=4, width=4)
    embed = made.tensors["embed.weight"]
    assert made.vocabulary == 10
    for token in (4, 5, 8, 9):
        np.testing.assert_array_equal(embed[token], embed[10])
    assert not np.array_equal(embed[3], embed[10])


def test_training_is_reproducible(trace: TraceReader) -> None:
    one, two = (train(trace, SPLIT, steps=5, embedding=8, width=8) for _ in range(2))
    for name, array in one.tensors.items():
        np.testing.assert_array_equal(array, two.tensors[name])


def test_a_trace_without_tokens_is_refused(tmp_path: Path) -> None:
    for name, tokens in (("none", None), ("unknown", np.full(40, -1))):
        with TraceWriter(
            tmp_path / name, model="m", layers=LAYERS, experts_per_layer=EXPERTS, top_k=TOP_K,
            gate_probs=False, phase=False, token_id=tokens is not None,
        ) as writer:  # fmt: skip
            writer.append(routes(np.zeros(40, int)), token_id=tokens)
            writer.end_sequence()
        with pytest.raises(InvalidArgument, match=f"{name} has no token ids"):
            train(TraceReader(tmp_path / name), Split((0,), (0,), (0,), ()), steps=1)


def local(trace: TraceReader, folder: Path, strings: list[str] | None) -> TraceReader:
    """The same routes with ids that are places in a list of the trace's own."""
    folder.mkdir()
    tensors = {name: np.array(trace.map(name)) for name in ("experts", "token_id")}
    about = {"layers": str(LAYERS), "experts": str(EXPERTS), "top_k": str(TOP_K)}
    tensors["token_local_id"] = tensors.pop("token_id")
    save_file(tensors | {"sequence_start": trace.sequence_start}, folder / "routes.safetensors", about)
    if strings is not None:
        (folder / "token_strings.json").write_text(json.dumps(strings))
    return TraceReader(folder / "routes.safetensors")


def test_whose_ids_a_trace_has(trace: TraceReader, tmp_path: Path) -> None:
    words = [f"w{i}" for i in range(TOKENS)]
    one, again = local(trace, tmp_path / "a", words), local(trace, tmp_path / "b", words)
    other, none = local(trace, tmp_path / "c", words[::-1]), local(trace, tmp_path / "d", None)
    assert trace.numbering == "model"
    assert one.numbering == again.numbering
    assert len({t.numbering for t in (trace, one, other, none)}) == 4
    made = train(one, SPLIT, steps=1, embedding=4, width=4)
    rivals.save(made, tmp_path / "made")
    assert rivals.native(tmp_path / "made", "expertflow", again.numbering).reads_tokens
    for numbering in ("model", other.numbering):
        with pytest.raises(PredictorError, match="numbered otherwise"):
            rivals.native(tmp_path / "made", "expertflow", numbering)


def test_a_file_is_the_same_again(trained: TextNetwork, tmp_path: Path) -> None:
    path = tmp_path / "expertflow.safetensors"
    rivals.save(trained, path, split={"test": "1"})
    again = rivals.load(path)
    assert isinstance(again, TextNetwork)
    assert again.training == {**trained.training, "split": {"test": "1"}}
    assert replace(again, tensors={}, training={}) == replace(trained, tensors={}, training={})
    for name, array in trained.tensors.items():
        np.testing.assert_array_equal(again.tensors[name], array)
    assert rivals.native(path, "expertflow").reads_tokens
    with pytest.raises(PredictorError, match=r"for expertflow, not for promoe: prophet train --kind promoe"):
        rivals.native(path, "promoe")


Damage = Callable[[dict[str, NDArray[Any]], dict[str, Any]], object]


@pytest.mark.parametrize(
    "damage",
    [
        lambda tensors, _about: tensors.pop("recur.weight"),
        lambda tensors, _about: tensors.update({"embed.weight": tensors["embed.weight"][:-1].copy()}),
        lambda tensors, _about: tensors.update({"leave.bias": tensors["leave.bias"] * np.nan}),
        lambda _tensors, about: about.update(vocabulary=1 << 30),
        lambda _tensors, about: about.update(layers=-1),
        lambda _tensors, about: about.update(width="wide"),
        lambda _tensors, about: about.pop("numbering"),
        lambda _tensors, about: about.update(secret=1),
    ],
)
def test_files_that_are_not_whole_are_refused(trained: TextNetwork, tmp_path: Path, damage: Damage) -> None:
    path = tmp_path / "bad.safetensors"
    about = {k: v for k, v in trained.__dict__.items() if k != "tensors"}
    tensors = dict(trained.tensors)
    damage(tensors, about)
    metadata = {"format": "prophet-text-network", "version": "1", "about": json.dumps(about)}
    save_file(tensors, path, metadata)
    with pytest.raises(PredictorError, match="train it again"):
        rivals.load(path)


def test_files_that_are_none_are_refused(trained: TextNetwork, tmp_path: Path) -> None:
    path = tmp_path / "file"
    save(trained, path)
    whole = path.read_bytes()
    for cut in (0, 7, 100, len(whole) - 1):
        path.write_bytes(whole[:cut])
        assert rivals.load(path) is None
        with pytest.raises(PredictorError, match="train it again"):
            load(path)
    save_file({"x": np.zeros(1, np.float32)}, path)
    with pytest.raises(PredictorError, match="no network on the text"):
        load(path)
    assert rivals.load(tmp_path / "absent") is None
