"""Networks per layer of rivals: what they learn, the arithmetic of the runtime, their file."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save_file

from prophet_moe.errors import InvalidArgument
from prophet_moe.formats.trace import Split, TraceReader, TraceWriter
from prophet_moe.predict import rivals
from prophet_moe.predict.export import PredictorError
from prophet_moe.predict.layer_mlp import KINDS, LayerMlp, _Rows, follows, load, save, train

LAYERS, EXPERTS, TOP_K = 5, 10, 2
SPLIT = Split((0, 1, 2, 3), (4,), (5,), ())


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> TraceReader:
    """Each layer's experts are the last one's plus one; six sequences."""
    random = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("trace") / "routes.safetensors"
    with TraceWriter(
        path,
        model="made",
        layers=LAYERS,
        experts_per_layer=EXPERTS,
        top_k=TOP_K,
        gate_probs=False,
        token_id=False,
        phase=False,
    ) as writer:
        for _ in range(6):
            first = random.permuted(np.tile(np.arange(EXPERTS), (120, 1)), axis=1)[:, :TOP_K]
            chosen = np.stack([(first + layer) % EXPERTS for layer in range(LAYERS)], 1)
            writer.append(chosen)
            writer.end_sequence(label="one")
    return TraceReader(path)


@pytest.fixture(scope="module")
def trained(trace: TraceReader) -> LayerMlp:
    return train(trace, SPLIT, "duoserve", steps=150, width=24)


def by_hand(made: LayerMlp, path: list[NDArray[Any]], layer: int) -> NDArray[Any]:
    """P of every expert of the target, in float64, from the experts of layers 0 to `layer`."""
    x = []
    for back in range(made.context):
        ones = np.zeros(EXPERTS)
        if back <= layer:
            ones[path[layer - back]] = 1
        x.append(ones)
    tensors = {name: array.astype(np.float64) for name, array in made.tensors.items()}
    x.append(tensors["affinity"][layer][path[layer]].mean(0))
    h = np.maximum(np.concatenate(x) @ tensors["enter.weight"][layer] + tensors["enter.bias"][layer], 0)
    out = h @ tensors["leave.weight"][layer] + tensors["leave.bias"][layer]
    return np.asarray(1 / (1 + np.exp(-out)))


def test_it_learns_what_follows_what(trace: TraceReader, trained: LayerMlp) -> None:
    chosen = np.asarray(trace.sequence(5).experts)
    predictor, right = trained.native(), 0
    for token in chosen:
        for layer in range(LAYERS - 1):
            predictor.observe(layer, token[layer][None].astype(np.int32))
            p = predictor.forecast(layer)
            assert p.shape[0] == trained.stride
            right += len(set(np.argsort(-p[-1])[:TOP_K]) & set(token[layer + 1].tolist()))
        predictor.observe(LAYERS - 1, token[-1][None].astype(np.int32))
        assert predictor.forecast(LAYERS - 1).size == 0, "beyond the last layer it says nothing"
    assert right > 0.98 * len(chosen) * (LAYERS - 1) * TOP_K


def test_the_runtime_computes_what_the_file_means(trace: TraceReader, trained: LayerMlp) -> None:
    predictor = trained.native()
    for token in np.asarray(trace.sequence(5).experts)[:20]:
        for layer in range(LAYERS - 1):
            predictor.observe(layer, token[layer][None].astype(np.int32))
            said = predictor.forecast(layer)[-1]
            meant = by_hand(trained, list(token), layer)
            shown = np.where(meant >= 0.01, meant, 0)
            close = np.isclose(said, shown, atol=1e-5) | (np.abs(meant - 0.01) < 1e-5)
            assert close.all()


def test_affinity_is_counted() -> None:
    chosen = np.array([[[0, 1], [2, 3]], [[0, 2], [2, 1]]])
    table = follows(chosen, 1, 4)
    assert table.shape == (1, 4, 4)
    np.testing.assert_allclose(table[0, 0], [0, 0.5, 1, 0.5])
    np.testing.assert_allclose(table[0, 1], [0, 0, 1, 1])
    np.testing.assert_allclose(table[0, 3], 0)


def test_a_file_is_the_same_again(trained: LayerMlp, tmp_path: Path) -> None:
    path = tmp_path / "duoserve.safetensors"
    save(trained, path)
    again = rivals.load(path)
    assert isinstance(again, LayerMlp)
    assert again.training == trained.training
    for name, array in trained.tensors.items():
        np.testing.assert_array_equal(again.tensors[name], array)
    assert rivals.native(path, "duoserve").name == "duoserve"


def test_files_that_are_none_are_refused(trained: LayerMlp, tmp_path: Path) -> None:
    path = tmp_path / "bad.safetensors"
    assert rivals.load(tmp_path / "absent") is None
    path.write_bytes(b"nonsense")
    with pytest.raises(PredictorError, match="train it again"):
        load(path)
    save_file({"x": np.zeros(1, np.float32)}, path)
    with pytest.raises(PredictorError, match="no networks per layer"):
        load(path)
    for name, array in trained.tensors.items():
        cut = {**trained.tensors, name: np.ascontiguousarray(array[:-1])}
        save(LayerMlp(**{**trained.__dict__, "tensors": cut}), path)
        with pytest.raises(PredictorError, match="train it again"):
            load(path)
    holed = {**trained.tensors, "enter.bias": trained.tensors["enter.bias"] * np.nan}
    save(LayerMlp(**{**trained.__dict__, "tensors": holed}), path)
    with pytest.raises(PredictorError, match="not finite"):
        load(path)


@pytest.mark.parametrize("system", ["promoe", "prescope", "floe"])
def test_hidden_states_are_read_where_a_trace_has_them(tmp_path: Path, system: str) -> None:
    """Routes that nothing but the state foretells: it holds ones at the experts of the target layer."""
    random, stride = np.random.default_rng(1), KINDS[system].stride
    path = tmp_path / "routes.safetensors"
    with TraceWriter(
        path, model="made", layers=LAYERS, experts_per_layer=EXPERTS, top_k=TOP_K, hidden=EXPERTS,
        gate_probs=False, token_id=False, phase=False,
    ) as writer:  # fmt: skip
        for _ in range(6):
            chosen = random.permuted(np.tile(np.arange(EXPERTS), (150, LAYERS, 1)), axis=2)[..., :TOP_K]
            states = np.zeros((150, LAYERS, EXPERTS), np.float16)
            np.put_along_axis(states[:, : LAYERS - stride], chosen[:, stride:], 1, 2)
            writer.append(chosen, gate_input=states)
            writer.end_sequence(label="one")
    trace = TraceReader(path)
    predictor = train(trace, SPLIT, system, steps=600, width=24).native()
    assert predictor.hidden_width == EXPERTS
    part, right = trace.sequence(5), 0
    assert part.gate_input is not None
    for token, states in zip(np.asarray(part.experts), np.asarray(part.gate_input, np.float32), strict=True):
        for layer in range(LAYERS - stride):
            predictor.observe(layer, token[layer][None].astype(np.int32), hidden=states[layer])
            best = np.argsort(-predictor.forecast(layer)[-1])[:TOP_K]
            right += len(set(best) & set(token[layer + stride].tolist()))
    assert right > 0.95 * 150 * (LAYERS - stride) * TOP_K


@pytest.fixture(scope="module")
def entered(tmp_path_factory: pytest.TempPathFactory) -> TraceReader:
    """Routes that nothing but what enters the layer foretells: ones at its experts, of any length."""
    random = np.random.default_rng(1)
    path = tmp_path_factory.mktemp("entered") / "routes.safetensors"
    with TraceWriter(
        path, model="made", layers=LAYERS, experts_per_layer=EXPERTS, top_k=TOP_K, entering=EXPERTS,
        token_id=False, phase=False,
    ) as writer:  # fmt: skip
        for _ in range(6):
            chosen = random.permuted(np.tile(np.arange(EXPERTS), (150, LAYERS, 1)), axis=2)[..., :TOP_K]
            states = np.zeros((150, LAYERS, EXPERTS), np.float16)
            np.put_along_axis(states, chosen, 1, 2)
            states *= random.uniform(0.1, 90, (150, LAYERS, 1)).astype(np.float16)
            gates = random.dirichlet(np.ones(TOP_K), (150, LAYERS))
            writer.append(chosen, gate_probs=gates, entering=states)
            writer.end_sequence(label="one")
    return TraceReader(path)


def test_before_attention_it_names_the_experts_of_the_same_layer(entered: TraceReader) -> None:
    made = train(entered, SPLIT, "pre-attention", steps=600, width=24)
    predictor = made.native()
    assert (predictor.entering_width, predictor.hidden_width) == (EXPERTS, 0)
    part, right = entered.sequence(5), 0
    assert part.entering is not None
    t = {name: array.astype(np.float64) for name, array in made.tensors.items()}
    for token, states in zip(np.asarray(part.experts), np.asarray(part.entering, np.float32), strict=True):
        for layer in range(LAYERS):
            assert predictor.approach(layer, 1, entering=states[layer])
            p = predictor.forecast((layer - 1) % LAYERS)[0]
            x = states[layer] / np.sqrt(np.mean(np.square(states[layer], dtype=np.float64)) + 1e-6)
            h = np.maximum(x @ t["enter.weight"][layer] + t["enter.bias"][layer], 0)
            meant = 1 / (1 + np.exp(-(h @ t["leave.weight"][layer] + t["leave.bias"][layer])))
            assert (np.isclose(p, np.where(meant >= 0.01, meant, 0), atol=1e-5) | (meant < 0.0101)).all()
            right += len(set(np.argsort(-p)[:TOP_K]) & set(token[layer].tolist()))
            predictor.observe(layer, token[layer][None].astype(np.int32))
    assert right > 0.95 * 150 * LAYERS * TOP_K


def test_its_loss_minds_ranks(entered: TraceReader) -> None:
    rows = _Rows(entered, KINDS["pre-attention"], None)
    some = np.array([3, 700])
    _, y = rows(some)
    weights = rows.weights(some, y).numpy()
    for n, token in enumerate(some):
        part = entered.slice(token, token + 1)
        assert part.gate_probs is not None
        for layer in range(LAYERS):
            heavy = part.experts[0, layer, part.gate_probs[0, layer].argmax()]
            for expert in range(EXPERTS):
                chosen = expert in part.experts[0, layer]
                assert weights[layer, n, expert] == (3 if expert == heavy else 1.5 if chosen else 0.5)


@pytest.mark.parametrize("system", [name for name, kind in KINDS.items() if kind.hidden])
def test_one_that_reads_hidden_states_says_that_there_are_none(trace: TraceReader, system: str) -> None:
    flag = "--hidden" if KINDS[system].stride else "--entering"
    with pytest.raises(InvalidArgument, match=f"{system} reads hidden states .*{flag}"):
        train(trace, SPLIT, system, steps=1)


def test_a_system_without_a_network_is_refused(trace: TraceReader) -> None:
    with pytest.raises(InvalidArgument, match="promoe, prescope, duoserve, floe, pre-attention"):
        train(trace, SPLIT, "lru", steps=1)


def test_training_is_reproducible(trace: TraceReader) -> None:
    one, two = (train(trace, SPLIT, "duoserve", steps=5, width=8) for _ in range(2))
    for name, array in one.tensors.items():
        np.testing.assert_array_equal(array, two.tensors[name])
