"""The next-gate baseline: exact on a model whose hidden state does not change, and the routers it reads."""

import numpy as np
import pytest
from predict_routes import record
from safetensors.numpy import save_file

from prophet_moe.errors import InvalidArgument
from prophet_moe.models.locate import locate
from prophet_moe.predict.evaluate import evaluate
from prophet_moe.predict.features import Stream
from prophet_moe.predict.fit import fit
from prophet_moe.predict.held_out import HeldOut
from prophet_moe.predict.next_gate import next_gate, router_weights
from prophet_moe.predict.score import score_ahead
from prophet_moe.predict.train import Recipe

L, E, K, H = 4, 8, 2, 6


def still(tokens, routers, seed, noise=0.0):
    """Routes of a model whose routers all read nearly the same vector."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(tokens, 1, H)) + noise * rng.normal(size=(tokens, L, H))
    x = x.astype(np.float16)
    logits = np.einsum("nlh,leh->nle", x.astype(np.float32), routers)
    experts = np.argsort(-logits, 2)[:, :, :K]
    gate = np.full(experts.shape, 1 / K, np.float32)
    return Stream(experts, gate, np.array([0, tokens]), E, ["a"], x)


def test_it_is_certain_where_the_hidden_state_stays_and_less_so_where_it_moves():
    routers = np.random.default_rng(0).normal(size=(L, E, H)).astype(np.float32)
    recalls = []
    for noise in (0.0, 0.5, 2.0):
        learn, test = still(300, routers, 1, noise), still(200, routers, 2, noise)
        p = next_gate(learn, test, routers, 2)
        assert p.shape == (2, 200, L, E)
        out = score_ahead(test, p)
        recalls.append(out["1"]["all"]["recall_k"])
        assert out["1"]["all"]["ece"] < 0.1
    assert recalls[0] == 1.0
    assert recalls[0] > recalls[1] > recalls[2]


def test_it_needs_hidden_states_and_routers_of_their_width():
    routers = np.zeros((L, E, H), np.float32)
    s = still(20, routers, 0)
    with pytest.raises(InvalidArgument, match="record hidden states"):
        next_gate(Stream(s.experts, s.gate, s.starts, E), s, routers, 1)
    with pytest.raises(InvalidArgument, match="this trace asks for"):
        next_gate(s, s, routers[:, :, :3], 1)


def test_the_routers_of_the_reference_model_are_found():
    import torch
    from safetensors import safe_open

    found = router_weights(locate("reference-moe"), 12, 32, 192)
    assert found.shape == (12, 32, 192)
    with safe_open(locate("reference-moe") / "model.safetensors", "pt") as file:
        for layer in (0, 7, 11):
            want = file.get_tensor(f"model.layers.{layer}.mlp.gate.weight").to(torch.float32).numpy()
            np.testing.assert_array_equal(found[layer], want)


def test_layers_are_taken_in_their_order_and_doubt_is_refused(tmp_path):
    gates = {f"m.{i}.router.weight": np.full((E, H), i, np.float32) for i in range(12)}
    save_file(gates, tmp_path / "model.safetensors")
    assert (router_weights(tmp_path, 12, E, H)[:, 0, 0] == np.arange(12)).all()
    with pytest.raises(InvalidArgument, match="name the model that the trace is of"):
        router_weights(tmp_path, 11, E, H)
    twins = gates | {f"m.{i}.other_gate.weight": gates["m.0.router.weight"] for i in range(12)}
    save_file(twins, tmp_path / "model.safetensors")
    with pytest.raises(InvalidArgument, match="has 2 kinds"):
        router_weights(tmp_path, 12, E, H)


def test_it_is_scored_beside_the_others(tmp_path):
    trace = record(tmp_path / "t.safetensors", hidden=H)
    split = HeldOut("2", "2").split(trace)
    options = {"rank": 8, "heads": (1, 3, 8), "ahead": 1}
    made = fit(trace, split, Recipe(steps=2, windows=2, tokens=4, head_weights=(1, 1, 1)), options=options)
    routers = np.random.default_rng(0).normal(size=(L, E, H)).astype(np.float32)
    report = evaluate(made, trace, split, routers=routers)
    assert 0 <= report["ahead"]["next gate"]["1"]["all"]["recall_k"] <= 1
