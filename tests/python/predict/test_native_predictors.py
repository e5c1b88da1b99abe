"""Training-free predictors as Python makes them, and predictors inside a replay."""

import numpy as np
import pytest

import prophet_ext

GEOMETRY = {"layers": 4, "experts_per_layer": 12, "top_k": 2}


def make(name: str) -> prophet_ext.Predictor:
    rng = np.random.default_rng(0)
    router = rng.normal(size=(4, 12, 20)).astype(np.float32) if name == "next-gate" else None
    return prophet_ext.make_predictor(name, **GEOMETRY, router=router)


def routes(tokens: int) -> np.ndarray:
    """[tokens, layers, top_k] int32: every layer's choice is a function of the first one's."""
    rng = np.random.default_rng(1)
    first = rng.integers(0, 6, tokens)
    return np.stack(
        [np.stack([(first + layer) % 6, 6 + (first + layer) % 6], -1) for layer in range(4)], 1
    ).astype(np.int32)


@pytest.mark.parametrize("name", prophet_ext.predictor_names())
def test_each_says_what_it_is_and_what_comes(name: str) -> None:
    predictor = make(name)
    assert predictor.name == name
    assert (predictor.layers, predictor.experts_per_layer, predictor.top_k) == (4, 12, 2)
    assert predictor.hidden_width == (20 if name == "next-gate" else 0)
    hidden = np.ones(20, np.float32) if name == "next-gate" else None
    for row in routes(20):
        for layer in range(4):
            predictor.observe(layer, row[layer][None], hidden=hidden)
            gaps, p = predictor.next_use(layer), predictor.forecast(layer)
            assert gaps is None or (gaps.shape == (12,) and (gaps >= 1).all())
            assert p.shape[1] == 12
            assert ((p == 0) | ((p >= 0.01) & (p <= 1))).all()
    predictor.observe(0, routes(1)[0][:1], hidden=hidden)
    before = predictor.forecast(0)
    assert before.shape == (3, 12)
    predictor.reset()
    with pytest.raises(prophet_ext.StateError):
        predictor.forecast(0)


def test_markov_reads_the_coming_layer_off_the_present_one() -> None:
    predictor = make("markov")
    right = total = 0
    for token, row in enumerate(routes(300)):
        for layer in range(4):
            predictor.observe(layer, row[layer][None])
            if token < 100 or layer == 3:
                continue
            p = predictor.forecast(layer)
            for horizon in range(3 - layer):
                right += len(set(np.argsort(-p[horizon])[:2]) & set(row[layer + horizon + 1]))
                total += 2
    assert right == total


def test_next_gate_is_the_later_router() -> None:
    rng = np.random.default_rng(2)
    router = rng.normal(size=(4, 12, 20)).astype(np.float32)
    bias = rng.normal(size=(4, 12)).astype(np.float32)
    norm = rng.uniform(0.5, 2, size=(4, 20)).astype(np.float32)
    inputs = {"router_bias": bias, "norm": norm}
    single = prophet_ext.make_predictor("next-gate", **GEOMETRY, router=router, **inputs)
    half = prophet_ext.make_predictor("next-gate", **GEOMETRY, router=router.astype(np.float16), **inputs)
    for _ in range(30):
        state = rng.normal(size=20).astype(np.float32)
        for layer in range(3):
            logits = router.astype(np.float64) @ (state * norm).T.astype(np.float64)
            order = np.argsort(-(logits[layer + 1, :, layer + 1] + bias[layer + 1]))
            own = np.argsort(-(logits[layer, :, layer] + bias[layer]))[:2].astype(np.int32)
            for predictor in (single, half):
                predictor.observe(layer, own[None], hidden=state * norm[layer])
            assert set(np.argsort(-single.forecast(layer)[0])[:2]) == set(order[:2])
            np.testing.assert_allclose(half.forecast(layer), single.forecast(layer), atol=0.02)


@pytest.mark.parametrize("name", ["popularity", "markov"])
def test_a_replay_takes_them(name: str) -> None:
    replay = prophet_ext.Replay(
        **GEOMETRY,
        slots=12,
        expert_bytes=1 << 20,
        policy="expected-next-use",
        bytes_per_second=1e9,
        predictor=make(name),
    )
    replay.decode(routes(50))
    assert replay.result()["tokens"] == 50


@pytest.mark.parametrize(
    ("name", "inputs", "words"),
    [
        ("crystal-ball", {}, "choose one of popularity"),
        ("next-gate", {}, "router weights"),
        ("next-gate", {"router": np.zeros((4, 11, 20), np.float32)}, r"router is \[4, 12, hidden\]"),
        ("next-gate", {"router": np.zeros((4, 12, 20), np.int16)}, "not float"),
        ("next-gate", {"router": np.full((4, 12, 20), np.nan, np.float32)}, "not finite"),
        (
            "next-gate",
            {"router": np.zeros((4, 12, 20), np.float32), "norm": np.zeros((4, 12), np.float32)},
            r"norm is \[4, 20\]",
        ),
    ],
)
def test_what_cannot_be_is_refused(name: str, inputs: dict[str, np.ndarray], words: str) -> None:
    with pytest.raises(prophet_ext.InvalidArgument, match=words):
        prophet_ext.make_predictor(name, **GEOMETRY, **inputs)


def test_hidden_states_of_another_width_are_refused() -> None:
    with pytest.raises(prophet_ext.InvalidArgument, match=r"hidden is \[20\]"):
        make("next-gate").observe(0, np.zeros((1, 2), np.int32), hidden=np.zeros(19, np.float32))
