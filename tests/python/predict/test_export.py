"""The file: an independent float64 reading of the specification, the native runtime, and hostile files."""

import json

import numpy as np
import pytest
from predict_networks import AHEAD, bank, paper, predictor
from predict_routes import EXPERTS, LAYERS, TOP_K, stream
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from prophet_moe.predict.export import PredictorError, load, native, read, save
from prophet_moe.predict.features import Rows
from prophet_moe.predict.outputs import outputs

VARIANTS = {
    "bank": {},
    "no middle": {"mid": False},
    "no pairs": {"pairs": 0, "recent": ((1, "gate"),)},
    "pairs of one layer": {"pairs": 1},
    "one latent": {"latents": 1, "bank": ()},
    "hidden and history": {"hidden": 6},
    "hidden alone": {"hidden": 6, "history": False},
}


def hardswish(v):
    return v * np.clip(v + 3, 0, 6) / 6


def sigmoid(v):
    return 1 / (1 + np.exp(-v))


class Specification:
    """prophet_moe.predict.export, read again: incremental, float64, one turn at a time."""

    def __init__(self, path):
        tensors, _, about = read(path)
        self.t = {name: a.astype(np.float64) for name, a in tensors.items()}
        self.c = about["config"]
        history = self.c["history"]
        self.decays = np.array(self.c["decays"] if history else [])
        self.bank, self.recent = (self.c["bank"], self.c["recent"]) if history else ([], [])
        chance = TOP_K / EXPERTS
        self.e = np.full((LAYERS, len(self.decays), EXPERTS), chance)
        self.u = np.zeros((LAYERS, len(self.bank), self.c["rank"]))
        for b in range(len(self.bank)):
            self.u[:, b] = chance * self.t["enter.bank"][b].sum(1)
        self.share = self.u.sum(1)
        self.z = np.full((LAYERS, EXPERTS), np.log(chance / (1 - chance)))
        self.rows = [[] for _ in range(LAYERS)]
        self.deep = None

    def turn(self, layer, experts, weights, hidden):
        gates = TOP_K * weights / weights.sum()
        self.rows[layer].insert(0, (experts, gates))
        one = np.zeros(EXPERTS)
        one[experts] = 1
        for d, decay in enumerate(self.decays):
            self.e[layer, d] = decay * self.e[layer, d] + (1 - decay) * one
        for b, d in enumerate(self.bank):
            entering = self.t["enter.bank"][b, layer, experts].sum(0)
            self.u[layer, b] = self.decays[d] * self.u[layer, b] + (1 - self.decays[d]) * entering
        self.share[layer] = self.u[layer].sum(0)
        for block, (lag, kind) in enumerate(self.recent):
            if lag < len(self.rows[layer]):
                ids, g = self.rows[layer][lag]
                many = (g if kind == "gate" else np.ones(len(ids)))[:, None]
                self.share[layer] += (self.t["enter.recent"][block, layer, ids] * many).sum(0)
        s = self.t["enter.bias"] + self.share.sum(0)
        if self.c["hidden"]:
            x = hidden / np.sqrt((hidden * hidden).mean() + 1e-6)
            s = s + x @ self.t["enter.hidden"][layer]
        y = (s - s.mean()) / np.sqrt(s.var() + 1e-5) * self.t["norm.gain"][layer] + self.t["norm.bias"][layer]
        c = hardswish(y)
        if self.c["mid"]:
            c = c + hardswish(self.t["mid.weight"] @ c + self.t["mid.bias"])
        self.deep = c

    def next_use(self, layer, limit):
        o = np.einsum("mer,r->me", self.t["leave.weight"][layer], self.deep) + self.t["leave.bias"][layer]
        logit = self.t["own.bias"][layer] + self.t["leave.mix"] @ o
        if self.c["history"]:
            ids, gates = self.rows[layer][0]
            now, before = np.zeros((2, EXPERTS))
            now[ids] = gates
            if len(self.rows[layer]) > 1:
                before[self.rows[layer][1][0]] = 1
            f = np.concatenate([np.log(self.e[layer] + 0.004), [now, before]])
            logit = logit + self.t["own.weight"][layer] @ f
        idle = 1 - sigmoid(self.t["next.scale"][layer][:, None] * logit)
        self.z[layer] = logit[0]
        weight = self.t["gap.weight"][self.c["limits"].index(limit)]
        return np.maximum(1, weight[0] + weight[1:] @ idle)

    def ahead(self, layer, f):
        j = layer + f
        logit = self.t["ahead.prior"][f - 1, j] * self.z[j] + self.t["ahead.bias"][f - 1, j]
        logit = logit + self.t["ahead.weight"][f - 1, j] @ self.deep
        for back in range(min(self.c["pairs"], layer + 1)):
            logit = logit + self.t["ahead.pair"][back, f - 1, j, self.rows[layer - back][0][0]].sum(0)
        return sigmoid(self.t["ahead.scale"][f - 1, j] * logit)


@pytest.fixture(params=VARIANTS)
def written(request, tmp_path):
    path = tmp_path / "toy.safetensors"
    save(predictor(bank(**VARIANTS[request.param])), path)
    return path, stream(40, hidden=6)


def test_torch_says_what_the_specification_says(written):
    path, s = written
    made, spec = load(path), Specification(path)
    said = outputs(made.net, Rows(s, made.net.config.decays, exact=True), exact=True)
    gap, ahead = made.calibration.gap(said.use, 8.0), made.calibration.look_ahead(said.ahead)
    for t in range(len(s)):
        for layer in range(LAYERS):
            spec.turn(
                layer, s.experts[t, layer], s.gate[t, layer].astype(float), s.hidden[t, layer].astype(float)
            )
            np.testing.assert_allclose(gap[t, layer], spec.next_use(layer, 8.0), rtol=1e-5, atol=1e-5)
            for f in range(1, min(AHEAD, LAYERS - 1 - layer) + 1):
                if t:
                    np.testing.assert_allclose(ahead[f - 1, t, layer + f], spec.ahead(layer, f), atol=1e-5)


def test_the_runtime_says_what_the_specification_says(written):
    path, s = written
    runtime, spec = native(path, 0.25), Specification(path)
    for t in range(len(s)):
        for layer in range(LAYERS):
            ids, gates, read_by = s.experts[t, layer], s.gate[t, layer], s.hidden[t, layer].astype(np.float32)
            spec.turn(layer, ids, gates.astype(float), read_by.astype(float))
            hidden = read_by if spec.c["hidden"] else None
            runtime.observe(layer, ids[None].astype(np.int32), gates[None], hidden)
            np.testing.assert_allclose(
                runtime.next_use(layer), spec.next_use(layer, 8.0), rtol=1e-5, atol=1e-5
            )
            said = np.asarray(runtime.forecast(layer))
            for f in range(1, min(AHEAD, LAYERS - 1 - layer) + 1):
                np.testing.assert_allclose(said[f - 1], spec.ahead(layer, f), atol=1e-5)


@pytest.mark.parametrize("net", [bank(), paper()], ids=["bank", "transformer"])
def test_what_is_saved_is_loaded(net, tmp_path):
    made, path = predictor(net), tmp_path / "p.safetensors"
    save(made, path)
    again, rows = load(path), Rows(stream(30), net.config.decays)
    before, after = outputs(net, rows, exact=True), outputs(again.net, rows, exact=True)
    p, q = made.calibration.next_use(before.use), again.calibration.next_use(after.use)
    np.testing.assert_allclose(p, q, atol=2e-3)
    p, q = made.calibration.look_ahead(before.ahead), again.calibration.look_ahead(after.ahead)
    np.testing.assert_allclose(p, q, atol=2e-3)
    assert (again.model, again.training, again.scores) == (made.model, made.training, made.scores)
    assert (again.limit(0.3), again.limit(0.9), again.net.config) == (8.0, 24.0, net.config)


@pytest.mark.parametrize("net", [bank(), paper()], ids=["bank", "transformer"])
def test_int8_halves_the_file_and_hardly_moves_a_forecast(net, tmp_path):
    made, whole, path = predictor(net), tmp_path / "whole", tmp_path / "int8"
    save(made, whole)
    made.int8 = True
    save(made, path)
    assert load(path).int8
    assert not load(whole).int8
    stored = load_file(path)
    for name, array in load_file(whole).items():
        if array.dtype != np.float16:  # enter.bias takes up what enter.bank is rounded to
            np.testing.assert_allclose(stored[name], array, atol=0.05 if name == "enter.bias" else 0)
            continue
        assert stored[name].dtype == np.int8
        wide, scale = array.astype(np.float64), stored[name + ".scale"][..., None]
        assert (np.abs(stored[name] * scale - wide) <= 0.5001 * scale + 1e-7).all()
        assert (np.abs(read(path)[0][name] - wide) <= 0.51 * scale + 1e-3 * np.abs(wide)).all()
    rows = Rows(stream(30), net.config.decays)
    before, after = outputs(net, rows, exact=True), outputs(load(path).net, rows, exact=True)
    np.testing.assert_allclose(
        made.calibration.next_use(before.use), load(path).calibration.next_use(after.use), atol=0.03
    )
    again = tmp_path / "again"
    save(load(path), again)
    for name, array in read(path)[0].items():
        np.testing.assert_allclose(read(again)[0][name], array, rtol=2e-3, atol=2e-5)


def test_int8_without_fitting_scales_is_refused(tmp_path):
    path, bad = tmp_path / "p", tmp_path / "bad"
    made = predictor(bank())
    made.int8 = True
    save(made, path)
    with safe_open(path, "np") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    for scale in (None, tensors["leave.weight.scale"][:1], tensors["leave.weight.scale"].astype(np.float16)):
        others = {k: v for k, v in tensors.items() if k != "leave.weight.scale"}
        save_file(others if scale is None else others | {"leave.weight.scale": scale}, bad, metadata)
        with pytest.raises(PredictorError, match=r"leave\.weight is stored as int8 without a scale"):
            load(bad)
    huge = tensors["leave.weight.scale"].copy()
    huge[0, 0] = np.inf
    save_file(tensors | {"leave.weight.scale": huge}, bad, metadata)
    with pytest.raises(PredictorError, match=r"leave\.weight has values that are not finite"):
        load(bad)


@pytest.mark.parametrize("pair", [True, False])
def test_files_of_version_1_are_read(pair, tmp_path):
    path, former = tmp_path / "p", tmp_path / "former"
    save(predictor(bank(pairs=int(pair))), path)
    with safe_open(path, "np") as file:
        metadata = file.metadata()
    about = json.loads(metadata["prophet"])
    about["config"]["pair"] = bool(about["config"].pop("pairs"))
    tensors = load_file(path)
    if pair:
        tensors["ahead.pair"] = tensors["ahead.pair"][0]
    save_file(tensors, former, metadata | {"version": "1", "prophet": json.dumps(about)})
    now, then = load(path), load(former)
    assert now.net.config == then.net.config
    for name, weight in now.net.state_dict().items():
        assert weight.equal(then.net.state_dict()[name])
    ids = np.arange(TOP_K)[None]
    for layer in range(LAYERS):
        for one in (a := native(path, 0.5)), (b := native(former, 0.5)):
            one.observe(layer, ids)
        np.testing.assert_array_equal(a.forecast(layer), b.forecast(layer))


def test_refuses_a_model_of_another_geometry(tmp_path):
    save(predictor(bank()), tmp_path / "p")
    with pytest.raises(PredictorError, match=r"4 layers x 8 experts.*the model has 24 x 32"):
        load(tmp_path / "p").require(24, 32, 4)


def test_refuses_files_that_are_no_predictor(tmp_path):
    good, bad = tmp_path / "good", tmp_path / "bad"
    save(predictor(bank()), good)
    metadata = {"format": "prophet-predictor", "version": "1", "kind": "bank", "prophet": "{}"}

    def damaged(match, tensors=None, **other):
        save_file(tensors or load_file(good), bad, {k: v for k, v in (metadata | other).items() if v})
        with pytest.raises(PredictorError, match=match):
            load(bad)

    damaged("not a predictor file", format="")
    damaged("version 9", version="9")
    damaged("kind 'oracle'", kind="oracle")
    damaged("does not hold what its metadata says")
    damaged("cannot be read", prophet="{")
    tensors, _, about = read(good)
    damaged(
        "does not hold", {k: v for k, v in tensors.items() if k != "leave.mix"}, prophet=json.dumps(about)
    )
    damaged("does not hold", tensors | {"own.bias": tensors["own.bias"][:1]}, prophet=json.dumps(about))
    broken = tensors["norm.gain"].copy()
    broken[0] = np.nan
    damaged("norm.gain has values that are not finite", tensors | {"norm.gain": broken})
    bad.write_bytes(good.read_bytes()[:-100])
    with pytest.raises(PredictorError, match="may be truncated"):
        load(bad)
    with pytest.raises(PredictorError, match="there is no predictor"):
        load(tmp_path / "absent")


def test_refuses_to_write_weights_that_are_not_finite(tmp_path):
    net = bank()
    net.enter_bias.data[0] = float("inf")
    with pytest.raises(PredictorError, match=r"enter\.bias has values that are not finite"):
        save(predictor(net), tmp_path / "p")
    assert not list(tmp_path.iterdir())
