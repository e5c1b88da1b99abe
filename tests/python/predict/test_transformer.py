"""The transformer's file: an independent float64 reading of its specification, torch, the native runtime."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from predict_networks import paper, predictor, shaken
from predict_routes import EXPERTS, LAYERS, TOP_K, record, stream
from safetensors.numpy import save_file

import prophet_ext
from prophet_moe.errors import InvalidArgument
from prophet_moe.models import close, offload_of
from prophet_moe.models import load as load_model
from prophet_moe.predict.calibrate import LIMITS, Calibration
from prophet_moe.predict.export import Predictor, PredictorError, load, native, read, save
from prophet_moe.predict.features import Rows
from prophet_moe.predict.outputs import outputs
from prophet_moe.predict.paper import Paper, PaperConfig
from prophet_moe.sim.machine import Machine
from prophet_moe.sim.replay import replay
from prophet_moe.systems import SYSTEMS, make_predictor

VARIANTS = {
    "three layers": {},
    "one layer": {"context": 1},
    "more layers than the model has": {"context": 6, "depth": 1},
    "odd sizes": {"width": 42, "attention_heads": 3, "depth": 3},
    "as wide as the small one": {"width": 128, "attention_heads": 4},
    "hidden and history": {"hidden": 6},
    "hidden alone": {"hidden": 6, "history": False},
    "no horizons": {"ahead": 0},
    "no averages": {"decays": ()},
}


erf = np.vectorize(math.erf)


def sigmoid(v):
    return 1 / (1 + np.exp(-v))


class Specification:
    """prophet_moe.predict.paper_file, read again: float64, one token at a time."""

    def __init__(self, path):
        tensors, _, about = read(path)
        self.t = {name: a.astype(np.float64) for name, a in tensors.items()}
        self.c = about["config"]
        self.e = np.full((LAYERS, len(self.c["decays"]), EXPERTS), TOP_K / EXPERTS)
        self.newest = [np.zeros(EXPERTS) for _ in range(LAYERS)]
        self.before = [np.zeros(EXPERTS) for _ in range(LAYERS)]
        self.sets = {}

    def norm(self, x, name, b=slice(None)):
        away = x - x.mean(-1, keepdims=True)
        scaled = away / np.sqrt((away**2).mean(-1, keepdims=True) + 1e-5)
        return scaled * self.t[f"{name}.gain"][b] + self.t[f"{name}.bias"][b]

    def turn(self, layer, experts, weights, hidden):
        t, c = self.t, self.c
        if layer == 0:
            self.sets = {}
        g = np.zeros(EXPERTS)
        g[experts] = TOP_K * weights / weights.sum()
        self.before[layer], self.newest[layer] = (self.newest[layer] > 0) * 1.0, g
        for d, decay in enumerate(c["decays"]):
            self.e[layer, d] = decay * self.e[layer, d] + (1 - decay) * (g > 0)
        self.sets[layer] = t["layer"][layer] + g / TOP_K @ t["expert"][layer]
        x = []
        if c["history"]:
            for back in range(c["context"] - 1, -1, -1):
                x.append(t["place"][back] + self.sets.get(layer - back, t["pad"][back]))
        if c["hidden"]:
            normed = hidden / np.sqrt((hidden * hidden).mean() + 1e-6)
            x.append(t["project.weight"] @ normed + t["project.bias"] + t["layer"][layer] + t["place"][-1])
        x = np.stack(x)
        for b in range(c["depth"]):
            thirds = np.split(self.norm(x, "enter", b) @ t["read.weight"][b].T + t["read.bias"][b], 3, axis=1)
            heads, split = [], [np.split(third, c["attention_heads"], axis=1) for third in thirds]
            for q1, k1, v1 in zip(*split, strict=True):
                score = np.exp(q1 @ k1.T / np.sqrt(q1.shape[1]))
                heads.append(score / score.sum(1, keepdims=True) @ v1)
            x = x + np.concatenate(heads, 1) @ t["merge.weight"][b].T + t["merge.bias"][b]
            up = self.norm(x, "middle", b) @ t["up.weight"][b].T + t["up.bias"][b]
            x = x + up * (1 + erf(up / np.sqrt(2))) / 2 @ t["down.weight"][b].T + t["down.bias"][b]
        self.z = self.norm(x, "norm")[-1]

    def next_use(self, layer, limit):
        t = self.t
        logit = t["own.bias"][layer] + t["use.weight"][layer] @ self.z
        if self.c["decays"]:
            now = [self.newest[layer], self.before[layer]]
            logit = logit + t["own.weight"][layer] @ np.concatenate([np.log(self.e[layer] + 0.004), now])
        idle = 1 - sigmoid(t["next.scale"][layer][:, None] * logit)
        weight = t["gap.weight"][self.c["limits"].index(limit)]
        return np.maximum(1, weight[0] + weight[1:] @ idle)

    def ahead(self, layer, f):
        t, j = self.t, layer + f
        logit = t["ahead.weight"][j] @ (t["horizon.weight"][f - 1] @ self.z) + t["ahead.bias"][f - 1, j]
        return sigmoid(t["ahead.scale"][f - 1, j] * logit)


@pytest.fixture(params=VARIANTS)
def written(request, tmp_path):
    path = tmp_path / "toy.safetensors"
    made = predictor(paper(**VARIANTS[request.param]))
    ahead, fit = made.net.config.ahead, made.calibration
    made.calibration = replace(fit, ahead_scale=fit.ahead_scale[:ahead], ahead_shift=fit.ahead_shift[:ahead])
    save(made, path)
    return path, stream(40, hidden=6)


def test_torch_says_what_the_specification_says(written):
    path, s = written
    made, spec = load(path), Specification(path)
    said = outputs(made.net, Rows(s, made.net.config.decays, exact=True), exact=True)
    gap, ahead = made.calibration.gap(said.use, 8.0), made.calibration.look_ahead(said.ahead)
    for t in range(len(s)):
        for layer in range(LAYERS):
            hidden = s.hidden[t, layer].astype(float)
            spec.turn(layer, s.experts[t, layer], s.gate[t, layer].astype(float), hidden)
            np.testing.assert_allclose(gap[t, layer], spec.next_use(layer, 8.0), rtol=1e-5, atol=1e-5)
            for f in range(1, min(made.net.config.ahead, LAYERS - 1 - layer) + 1):
                if t:
                    np.testing.assert_allclose(ahead[f - 1, t, layer + f], spec.ahead(layer, f), atol=1e-5)


def test_the_runtime_says_what_the_specification_says(written):
    path, s = written
    runtime, spec = native(path, 0.25), Specification(path)
    assert runtime.name == "transformer"
    assert runtime.hidden_width == spec.c["hidden"]
    for t in range(len(s)):
        for layer in range(LAYERS):
            ids, gates, read_by = s.experts[t, layer], s.gate[t, layer], s.hidden[t, layer].astype(np.float32)
            spec.turn(layer, ids, gates.astype(float), read_by.astype(float))
            hidden = read_by if spec.c["hidden"] else None
            runtime.observe(layer, ids[None].astype(np.int32), gates[None], hidden)
            gap = spec.next_use(layer, 8.0)
            np.testing.assert_allclose(runtime.next_use(layer), gap, rtol=1e-5, atol=1e-5)
            said = np.asarray(runtime.forecast(layer))
            assert len(said) == min(spec.c["ahead"], LAYERS - 1 - layer)
            for f in range(1, len(said) + 1):
                np.testing.assert_allclose(said[f - 1], spec.ahead(layer, f), atol=1e-5)


def test_of_several_tokens_any_may_need_an_expert(tmp_path):
    save(predictor(paper()), tmp_path / "p")
    together, s = native(tmp_path / "p", 0.25), stream(30)
    alone = [native(tmp_path / "p", 0.25) for _ in range(3)]
    for layer in range(LAYERS):
        together.observe(layer, s.experts[:3, layer].astype(np.int32), s.gate[:3, layer])
        for row, one in enumerate(alone):
            one.observe(layer, s.experts[row : row + 1, layer].astype(np.int32), s.gate[row : row + 1, layer])
        nobody = np.prod([1 - np.asarray(one.forecast(layer)) for one in alone], axis=0)
        np.testing.assert_allclose(together.forecast(layer), 1 - nobody, atol=1e-5)


def test_a_layer_that_was_not_seen_is_a_pad(tmp_path):
    save(predictor(paper()), tmp_path / "p")
    fresh, used, s = native(tmp_path / "p", 0.25), native(tmp_path / "p", 0.25), stream(2)

    def observe(runtime, token, layer):
        runtime.observe(layer, s.experts[token, layer][None].astype(np.int32), s.gate[token, layer][None])

    for layer in range(LAYERS):
        observe(used, 0, layer)
    for runtime in (fresh, used):  # layers of the token before do not come in for those of this one
        observe(runtime, 1, 2)
    np.testing.assert_array_equal(fresh.forecast(2), used.forecast(2))


def test_files_of_other_sizes_are_refused(tmp_path):
    good, bad = tmp_path / "good", tmp_path / "bad"
    save(predictor(paper(hidden=6)), good)
    tensors, _, about = read(good)

    def damaged(match, changed=(), **config):
        told = json.dumps({**about, "config": about["config"] | config})
        metadata = {"format": "prophet-predictor", "version": "1", "kind": "transformer", "prophet": told}
        kept = {name: array for name, array in (tensors | dict(changed)).items() if array is not None}
        save_file(kept, bad, metadata)
        with pytest.raises(PredictorError, match=match):
            native(bad, 0.25)

    damaged("does not hold", {"read.weight": None})
    damaged("does not hold", {"read.weight": tensors["read.weight"][:1]})
    damaged("does not hold", {"use.weight": tensors["use.weight"][:, :, :-1]})
    damaged("does not hold", depth=3)
    damaged("does not hold", width=24)
    broken = tensors["up.bias"].copy()
    broken[0, 0] = np.nan
    damaged(r"up\.bias has values that are not finite", {"up.bias": broken})
    bad.write_bytes(good.read_bytes()[:-100])
    with pytest.raises(PredictorError, match="may be truncated"):
        native(bad, 0.25)


@pytest.mark.parametrize(
    ("changed", "match"),
    [
        ({"width": 17}, "does not divide into 2 attention heads"),
        ({"attention_heads": 0}, "below its least"),
        ({"context": 0}, "reads 0 layers of a token; 1 to 63 can be"),
        ({"context": 64}, "reads 64 layers"),
        ({"history": False}, "neither routing nor hidden states"),
        ({"limit": 9}, "number 9 is not among them"),
        ({"decays": [1.0]}, "not between 0 and 1"),
        ({"depth": 3}, "tensor enter_gain holds 32 numbers, its configuration asks for 48"),
        ({"experts": 9}, "export the predictor again"),
        ({"tensors": {"place": None}}, "tensor place holds 0 numbers"),
        ({"tensors": {"expert": np.zeros((LAYERS, EXPERTS, 16), np.float32)}}, "expert is not float16"),
        ({"tensors": {"norm.gain": np.full(16, np.inf, np.float32)}}, "norm_gain holds numbers that are"),
    ],
)
def test_the_runtime_refuses_what_cannot_be(tmp_path, changed, match):
    save(predictor(paper()), tmp_path / "p")
    tensors, _, about = read(tmp_path / "p")
    sizes = {k: about["geometry"][k] for k in ("layers", "experts", "top_k", "hidden")}
    names = ("width", "depth", "attention_heads", "context", "decays", "ahead", "history")
    made = sizes | {k: about["config"][k] for k in names}
    made |= {"heads": len(about["config"]["heads"]), "limits": len(about["config"]["limits"]), "limit": 0}
    prophet_ext.TransformerPredictor(**made, tensors=tensors)
    other = {k: v for k, v in (tensors | changed.pop("tensors", {})).items() if v is not None}
    with pytest.raises(InvalidArgument, match=match):
        prophet_ext.TransformerPredictor(**(made | changed), tensors=other)


def test_dropout_is_for_training_alone():
    net, rows = paper(drop=0.5), Rows(stream(20), (0.5, 0.8, 0.9, 0.95, 0.98, 0.995))
    first = torch.tensor([2])

    def say():
        with torch.no_grad():
            return net(rows, first, 4)[0]

    assert torch.equal(say(), say())
    net.train()
    assert not torch.equal(say(), say())


def test_systems_and_replays_take_it_as_they_take_a_bank(tmp_path):
    save(predictor(paper()), tmp_path / "p")
    trace, prophet = record(tmp_path / "t"), SYSTEMS["prophet"]
    shape = {"layers": LAYERS, "experts_per_layer": EXPERTS, "top_k": TOP_K, "share": 0.5}
    made = make_predictor(prophet, **shape, file=tmp_path / "p")
    done = replay(
        trace,
        Machine.of_ratio(1.0, TOP_K, 1 << 20),
        slots=LAYERS * EXPERTS // 2,
        expert_bytes=1 << 20,
        policy=prophet.policy,
        predictor=made,
        prefetch=prophet.prefetch,
        sequences=[0],
    )
    assert done.tokens == 150
    assert done.foresight is not None
    assert done.foresight.predictor == "transformer"
    assert done.foresight.steps == 150 * LAYERS
    routers = {"router": np.zeros((LAYERS, EXPERTS, 6), np.float32)}
    assert (
        make_predictor(prophet, **shape, file=tmp_path / "p", routers=routers).name == "transformer+next-gate"
    )
    deeper = {"router": np.zeros((LAYERS + 1, EXPERTS, 6), np.float32)}
    assert make_predictor(prophet, **shape, file=tmp_path / "p", routers=deeper).name == "transformer"


def test_a_model_runs_with_it_and_says_the_same(tmp_path):
    net = shaken(Paper(PaperConfig(12, 32, 4, width=16, depth=1, attention_heads=2)))
    of_heads, of_layers = np.ones((12, 6), np.float32), np.ones((3, 12), np.float32)
    gap = np.full((len(LIMITS), 7), 1.5, np.float32)
    fit = Calibration(of_heads, 0 * of_heads, of_layers, 0 * of_layers, gap)
    save(Predictor(net, fit, [(0.25, 8.0)]), tmp_path / "p")
    words = []
    for system in ("on-demand", "prophet"):
        file = tmp_path / "p" if system == "prophet" else None
        model = load_model("reference-moe", slots=96, system=system, predictor=file)
        engine = offload_of(model).engine
        try:
            out = model.generate(torch.tensor([[1, 5, 9]]), max_new_tokens=8, do_sample=False)
            engine.step(0)  # waits for the predictor
            assert (engine.counters()["foresight_steps"] > 0) == (system == "prophet")
            assert engine.foresight_failure == ""
        finally:
            close(model)
        words.append(out[0].tolist())
    assert words[0] == words[1]
