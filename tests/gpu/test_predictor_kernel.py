"""The forecaster's launch against its specification (prophet_moe/predict/export.py) in float64."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import cuda_tables as cuda
import emulated_cuda
import numpy as np
import pytest
from cuda_tables import BF16, F32, Array, Device

TILE, PARTS, ROW = 8, 8, 32
I32, U8, P = ctypes.c_int32, ctypes.c_uint8, ctypes.c_void_p
SIZES = (
    "layers", "experts", "top_k", "rank", "columns", "lanes", "decays", "banks", "recents", "lags", "heads",
    "latents", "ahead", "hidden", "pairs",
)  # fmt: skip
HALVES = ("entries", "hidden_rows", "middle", "leave", "ahead_rows", "pair")
FLOATS = (
    "enter_bias", "norm_gain", "norm_bias", "mid_bias", "own_weight", "own_bias", "leave_mix", "next_scale",
    "gap_weight", "ahead_bias", "ahead_prior", "ahead_scale",
)  # fmt: skip
STATE = ("averages", "shares", "raw", "row_ids", "row_gates", "entered", "arrived")


class Bank(ctypes.Structure):
    _fields_ = (
        *((name, I32) for name in SIZES),
        ("has_middle", U8),
        ("bank", I32 * PARTS),
        ("recent_lag", I32 * PARTS),
        ("recent_gate", U8 * PARTS),
        ("decay", ctypes.c_float * PARTS),
        *((name, P) for name in (*HALVES, *FLOATS)),
    )


class State(ctypes.Structure):
    _fields_ = tuple((name, P) for name in STATE)


class Call(ctypes.Structure):
    _fields_ = (
        ("layer", I32),
        ("tokens", I32),
        ("top_k", I32),
        ("routing_type", U8),
        ("hidden_type", U8),
        *((name, P) for name in ("ids", "routing", "hidden", "gaps", "next", "probabilities")),
    )


@pytest.fixture
def device(gpu: emulated_cuda.EmulatedCuda | None) -> Iterator[Device]:
    with cuda.device(gpu.library if gpu else None) as made:
        yield made


def sigmoid(v: Array) -> Array:
    made: Array = 1 / (1 + np.exp(-v))
    return made


def hardswish(v: Array) -> Array:
    made: Array = v * np.clip(v + 3, 0, 6) / 6
    return made


@dataclass
class Network:
    """Random weights under the names of export.py; those in float16 there hold what float16 can."""

    layers: int = 3
    experts: int = 11
    top_k: int = 3
    rank: int = 20
    decays: tuple[float, ...] = (0.5, 0.9, 0.98)
    bank: tuple[int, ...] = (1, 2)
    recent: tuple[tuple[int, bool], ...] = ((0, False), (0, True), (1, False), (2, False))
    heads: int = 4
    latents: int = 2
    ahead: int = 2
    pairs: int = 2
    hidden: int = 7
    middle: bool = True
    w: dict[str, Array] = field(init=False)

    def __post_init__(self) -> None:
        rng = np.random.default_rng(7)
        L, E, R, N, F = self.layers, self.experts, self.rank, self.heads, self.ahead

        def half(*shape: int) -> Array:
            return (rng.standard_normal(shape) * 0.25).astype(np.float16)

        def real(*shape: int, mean: float = 0.0) -> Array:
            return (rng.standard_normal(shape) * 0.2 + mean).astype(np.float32)

        self.w = {
            "enter.bank": half(len(self.bank), L, E, R), "enter.recent": half(len(self.recent), L, E, R),
            "enter.bias": real(R), "enter.hidden": half(L, self.hidden, R),
            "norm.gain": real(L, R, mean=1), "norm.bias": real(L, R),
            "mid.weight": half(R, R), "mid.bias": real(R),
            "leave.weight": half(L, self.latents, E, R), "leave.bias": real(L, self.latents, E),
            "leave.mix": real(N, self.latents), "own.weight": real(L, N, len(self.decays) + 2),
            "own.bias": real(L, N, E), "next.scale": real(L, N, mean=1), "gap.weight": real(1 + N, mean=1.5),
            "ahead.weight": half(F, L, E, R), "ahead.bias": real(F, L, E),
            "ahead.prior": real(F, L, mean=0.5), "ahead.pair": half(self.pairs, F, L, E, E),
            "ahead.scale": real(F, L, mean=1),
        }  # fmt: skip

    @property
    def lags(self) -> int:
        return max([1, *(lag for lag, _ in self.recent)]) + 1


@dataclass
class Step:
    layer: int
    ids: Array  # [tokens, top_k]
    gates: Array | None
    hidden: Array | None


class Specification:
    """export.py, word by word, in float64."""

    def __init__(self, net: Network) -> None:
        self.net, self.w = net, {k: v.astype(np.float64) for k, v in net.w.items()}
        L, E, chance = net.layers, net.experts, net.top_k / net.experts
        self.e = np.full((L, len(net.decays), E), chance)
        self.u = np.stack([chance * self.w["enter.bank"][:, layer].sum(1) for layer in range(L)])
        self.share = self.u.sum(1)
        self.rows: list[list[dict[int, float]]] = [[{} for _ in range(net.lags)] for _ in range(L)]
        self.z = np.full((L, E), math.log(chance / (1 - chance)))

    def row(self, ids: Array, gates: Array | None) -> dict[int, float]:
        kept: dict[int, float] = {}
        for k, i in enumerate(ids):
            if 0 <= i < self.net.experts and int(i) not in kept:
                kept[int(i)] = 0.0 if gates is None else float(gates[k])
        total = sum(kept.values())
        if total > 0 and math.isfinite(total):
            return {i: self.net.top_k * g / total for i, g in kept.items()}
        return dict.fromkeys(kept, 1.0)

    def take(self, step: Step) -> tuple[Array, Array, Array]:
        """gaps [E], next [E], probabilities [ahead, E] (NaN past the last layer)."""
        net, w, at = self.net, self.w, step.layer
        decays = np.array(net.decays, np.float32).astype(np.float64)
        for t in range(len(step.ids)):
            row = self.row(step.ids[t], None if step.gates is None else step.gates[t])
            chosen = np.isin(np.arange(net.experts), list(row)).astype(np.float64)
            self.e[at] = decays[:, None] * self.e[at] + (1 - decays)[:, None] * chosen
            for b, d in enumerate(net.bank):
                gain = chosen @ w["enter.bank"][b, at]
                self.u[at, b] = decays[d] * self.u[at, b] + (1 - decays[d]) * gain
            self.rows[at] = [row, *self.rows[at][:-1]]
        self.share[at] = self.u[at].sum(0)
        for c, (lag, gate) in enumerate(net.recent):
            for i, own in self.rows[at][lag].items():
                self.share[at] += w["enter.recent"][c, at, i] * (own if gate else 1)
        s = w["enter.bias"] + self.share.sum(0)
        if step.hidden is not None and net.hidden and np.isfinite(step.hidden).all():
            s = s + step.hidden / np.sqrt((step.hidden**2).mean() + 1e-6) @ w["enter.hidden"][at]
        y = (s - s.mean()) / np.sqrt(s.var() + 1e-5) * w["norm.gain"][at] + w["norm.bias"][at]
        c0 = hardswish(y)
        c1 = c0 + hardswish(w["mid.weight"] @ c0 + w["mid.bias"]) if net.middle else c0
        newest, before = self.rows[at][0], self.rows[at][1]
        gates = np.array([newest.get(i, 0.0) for i in range(net.experts)])
        again = np.isin(np.arange(net.experts), list(before)).astype(np.float64)
        o = w["leave.weight"][at] @ c1 + w["leave.bias"][at]
        logit = w["own.bias"][at] + w["leave.mix"] @ o
        if net.decays:
            own_features = np.vstack([np.log(self.e[at] + 0.004), gates, again])
            logit = logit + w["own.weight"][at] @ own_features
        survival = 1 - sigmoid(w["next.scale"][at][:, None] * logit)
        gaps = np.maximum(1, w["gap.weight"][0] + w["gap.weight"][1:] @ survival)
        self.z[at] = logit[0]
        p = np.full((net.ahead, net.experts), np.nan)
        for f in range(min(net.ahead, net.layers - 1 - at)):
            j = at + 1 + f
            v = w["ahead.prior"][f, j] * self.z[j] + w["ahead.bias"][f, j] + w["ahead.weight"][f, j] @ c1
            for back in range(min(net.pairs, at + 1)):
                v = v + sum(
                    (w["ahead.pair"][back, f, j, i] for i in self.rows[at - back][0]), np.zeros(net.experts)
                )
            p[f] = sigmoid(w["ahead.scale"][f, j] * v)
        return gaps, sigmoid(w["next.scale"][at, 0] * logit[0]), p


def whole_tiles(n: int) -> int:
    return -(-n // TILE) * TILE


def padded(a: Array, axis: int, to: int) -> Array:
    widths = [(0, 0)] * a.ndim
    widths[axis] = (0, to - a.shape[axis])
    return np.pad(a, widths)


class OnDevice:
    """The network and its state, laid out as cuda_kernels.h says."""

    def __init__(self, net: Network, device: Device) -> None:
        self.net, self.device, w = net, device, net.w
        C, lanes = whole_tiles(net.rank), whole_tiles(net.experts)

        def tiles(matrix: Array) -> Array:  # [..., outputs, columns]
            full = padded(padded(matrix, -1, C), -2, whole_tiles(matrix.shape[-2]))
            cut = full.reshape(*full.shape[:-2], full.shape[-2] // TILE, TILE, C)
            return np.ascontiguousarray(np.swapaxes(cut, -1, -2))

        entries = np.concatenate([w["enter.bank"], w["enter.recent"]])  # [blocks, L, E, R]
        own_bias = w["own.bias"] + np.einsum("nm,lme->lne", w["leave.mix"], w["leave.bias"])
        places = {
            "entries": padded(np.moveaxis(entries, 0, 2), -1, C),
            "hidden_rows": padded(w["enter.hidden"], -1, C), "middle": tiles(w["mid.weight"]),
            "leave": tiles(w["leave.weight"]), "ahead_rows": tiles(w["ahead.weight"]),
            "pair": padded(w["ahead.pair"], -1, lanes),
            "enter_bias": padded(w["enter.bias"], -1, C), "norm_gain": padded(w["norm.gain"], -1, C),
            "norm_bias": padded(w["norm.bias"], -1, C), "mid_bias": padded(w["mid.bias"], -1, C),
            "own_weight": w["own.weight"], "own_bias": padded(own_bias, -1, lanes),
            "leave_mix": w["leave.mix"], "next_scale": w["next.scale"], "gap_weight": w["gap.weight"],
            "ahead_bias": padded(w["ahead.bias"], -1, lanes), "ahead_prior": w["ahead.prior"],
            "ahead_scale": w["ahead.scale"],
        }  # fmt: skip
        sizes = (
            net.layers, net.experts, net.top_k, net.rank, C, lanes, len(net.decays), len(net.bank),
            len(net.recent), net.lags, net.heads, net.latents, net.ahead, net.hidden,
            net.pairs,
        )  # fmt: skip
        self.bank = Bank(*sizes, net.middle)
        for name, values in places.items():
            setattr(self.bank, name, device.put(values))
        self.bank.bank[: len(net.bank)] = net.bank
        self.bank.decay[: len(net.decays)] = net.decays
        for c, (lag, gate) in enumerate(net.recent):
            self.bank.recent_lag[c], self.bank.recent_gate[c] = lag, gate

        chance, spec = net.top_k / net.experts, Specification(net)
        shares = np.concatenate([spec.u, spec.share[:, None]], 1)
        state: dict[str, Array] = {
            "averages": np.full((net.layers, len(net.decays), lanes), chance, np.float32),
            "shares": padded(shares, -1, C).astype(np.float32),
            "raw": np.full((net.layers, lanes), math.log(chance / (1 - chance)), np.float32),
            "row_ids": np.full((net.layers, net.lags, ROW), -1, np.int32),
            "row_gates": np.zeros((net.layers, net.lags, ROW), np.float32),
            "entered": padded(w["enter.bias"] + spec.share.sum(0), -1, C).astype(np.float32),
            "arrived": np.zeros(1, np.uint32),
        }
        self.state = State(*(device.put(state[name]) for name in STATE))

    def take(self, step: Step, gates_as: int = F32, hidden_as: int = F32) -> tuple[Array, Array, Array]:
        net, device = self.net, self.device
        out = [device.put(np.full((n, net.experts), np.nan, np.float32)) for n in (1, 1, max(net.ahead, 1))]

        def as_floats(values: Array | None, kind: int) -> int | None:
            return None if values is None else device.put(cuda.stored(values, kind))

        call: Any = Call(
            step.layer, *step.ids.shape, gates_as, hidden_as, device.put(step.ids.astype(np.int64)),
            as_floats(step.gates, gates_as), as_floats(step.hidden, hidden_as), *out,
        )  # fmt: skip
        device.launch("predict", call, self.bank, self.state)
        gaps, following, p = (
            device.get(at, np.float32, n, net.experts)
            for at, n in zip(out, (1, 1, max(net.ahead, 1)), strict=True)
        )
        return gaps[0], following[0], p[: net.ahead]


def steps(net: Network, count: int, tokens: int, seed: int) -> Iterator[Step]:
    rng = np.random.default_rng(seed)
    for n in range(count):
        ids = np.stack([rng.permutation(net.experts)[: net.top_k] for _ in range(tokens)])
        hidden = rng.standard_normal(net.hidden).astype(np.float32) if net.hidden else None
        yield Step(n % net.layers, ids, rng.uniform(0.1, 1, ids.shape).astype(np.float32), hidden)


NETWORKS = {
    "all of it": Network(),
    "no middle, no hidden state": Network(middle=False, hidden=0),
    "no pairs": Network(pairs=0),
    "pairs of all layers before": Network(layers=5, pairs=6),
    "wide": Network(layers=2, rank=72, experts=40, top_k=5, ahead=1, heads=6),
    "one layer": Network(layers=1, ahead=3),
    "no history": Network(decays=(), bank=(), recent=()),
}


def same(got: tuple[Array, ...], want: tuple[Array, ...]) -> None:
    for have, wish in zip(got, want, strict=True):
        np.testing.assert_allclose(have, wish, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("net", NETWORKS.values(), ids=NETWORKS.keys())
@pytest.mark.parametrize("tokens", [1, 5])
def test_steps_agree_with_the_specification(device: Device, net: Network, tokens: int) -> None:
    spec, kernel = Specification(net), OnDevice(net, device)
    for step in steps(net, 3 * net.layers, tokens, seed=tokens):
        same(kernel.take(step), spec.take(step))


def test_rows_that_are_odd(device: Device) -> None:
    net = Network()
    spec, kernel = Specification(net), OnDevice(net, device)
    turns = list(steps(net, 6, 2, seed=3))
    turns[0].ids[1] = [4, 4, -1]  # repeated, absent
    turns[1].ids[:] = [[net.experts, -5, 2**40]] * 2  # of other ranks
    turns[2].gates = None
    assert turns[3].gates is not None
    turns[3].gates[:] = 0
    turns[4].hidden = None
    assert turns[5].hidden is not None
    turns[5].hidden[2] = np.inf
    for step in turns:
        same(kernel.take(step), spec.take(step))


def test_rows_in_bfloat16(device: Device) -> None:
    net = Network()
    spec, kernel = Specification(net), OnDevice(net, device)
    for step in steps(net, 4, 1, seed=9):
        assert step.gates is not None
        assert step.hidden is not None
        rough = Step(
            step.layer,
            step.ids,
            cuda.floats(cuda.stored(step.gates, BF16), BF16),
            cuda.floats(cuda.stored(step.hidden, BF16), BF16),
        )
        same(kernel.take(step, BF16, BF16), spec.take(rough))


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_no_schedule_changes_a_bit(device: Device, emulated: emulated_cuda.EmulatedCuda, seed: int) -> None:
    net = Network()
    first, second = OnDevice(net, device), OnDevice(net, device)
    for step in steps(net, 5, 2, seed=4):
        emulated.machine()
        want = first.take(step)
        emulated.machine(SEED=seed)
        for have, wish in zip(second.take(step), want, strict=True):
            np.testing.assert_array_equal(have, wish)


def test_networks_that_cannot_be(device: Device) -> None:
    kernel = OnDevice(Network(), device)
    step = next(steps(kernel.net, 1, 1, seed=0))
    for name, value in {"lags": 1, "decays": 9, "columns": 21, "experts": 0, "rank": 4096}.items():
        kept = getattr(kernel.bank, name)
        setattr(kernel.bank, name, value)
        with pytest.raises(cuda.Failed, match="returned 1"):
            kernel.take(step)
        setattr(kernel.bank, name, kept)
    with pytest.raises(cuda.Failed, match="returned 1"):
        kernel.take(Step(3, step.ids, None, None))
