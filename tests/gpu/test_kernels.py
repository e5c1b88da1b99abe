"""Kernels against numpy in float64: experts, top-k, dequantisation."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import cuda_tables as cuda
import emulated_cuda
import numpy as np
import pytest
from cuda_tables import BF16, F16, F32, INT4, INT8, Array, Device


@pytest.fixture
def device(gpu: emulated_cuda.EmulatedCuda | None) -> Iterator[Device]:
    with cuda.device(gpu.library if gpu else None) as made:
        yield made


@dataclass
class Quantised:
    """A matrix in int8 or int4 groups; `dense` is what it means, in float64."""

    kind: int
    group: int
    values: Array
    scales: Array
    zeros: Array | None
    dense: Array = field(init=False)

    def __post_init__(self) -> None:
        columns = self.values.shape[1]
        spread = np.arange(columns) // self.group
        default = 8 if self.kind == INT4 else 0
        zeros = np.full(self.scales.shape, default) if self.zeros is None else self.zeros
        self.dense = (self.values - zeros[:, spread].astype(np.float64)) * self.scales[:, spread].astype(
            np.float64
        )

    def bytes(self) -> bytes:
        if self.kind == INT8:
            return self.values.astype(np.int8).tobytes()
        even = np.pad(self.values, ((0, 0), (0, self.values.shape[1] % 2))).astype(np.uint8)
        return (even[:, ::2] | even[:, 1::2] << 4).tobytes()

    def put(self, device: Device, offset: int = 0) -> cuda.Quantised:
        zeros = None if self.zeros is None else device.put(self.zeros)
        return cuda.Quantised(device.put(self.bytes(), offset), device.put(self.scales), zeros)


def quantised(
    rng: np.random.Generator, kind: int, rows: int, columns: int, group: int, zeros: bool
) -> Quantised:
    low, high = (0, 16) if kind == INT4 else (-128, 128)
    groups = -(-columns // group)
    scale = rng.uniform(0.5, 2.0, (rows, groups)) / (8 if kind == INT4 else 128)
    return Quantised(
        kind,
        group,
        rng.integers(low, high, (rows, columns)),
        scale.astype(np.float16),
        rng.integers(0, 16, (rows, groups)).astype(np.uint8) if zeros else None,
    )


def activated(kind: str, x: Array) -> Array:
    made: Array
    if kind == "silu":
        made = x / (1 + np.exp(-x))
    elif kind == "gelu_erf":
        made = 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))
    elif kind == "gelu_tanh":
        made = 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    else:
        made = np.maximum(x, 0) ** (1 if kind == "relu" else 2)
    return made


@dataclass
class Layer:
    """One layer's experts and a batch for them. `down`, `up`, `gate` are [experts] of float64 matrices."""

    tokens: int = 3
    top_k: int = 2
    experts: int = 5
    hidden: int = 64
    inter: int = 48
    weights: int = BF16
    io: int = BF16
    routing: int = F32
    activation: str = "silu"
    has_gate: bool = True
    offset: int = 0  # bytes behind an aligned address
    group: int = 32
    zeros: bool = False
    absent: tuple[int, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        rng = np.random.default_rng(self.seed)
        shapes = {
            "gate": (self.inter, self.hidden),
            "up": (self.inter, self.hidden),
            "down": (self.hidden, self.inter),
        }
        self.stored: dict[str, list[Array | Quantised]] = {}
        self.dense: dict[str, list[Array]] = {}
        for name, (rows, columns) in shapes.items():
            made: list[Array | Quantised] = []
            for _ in range(self.experts):
                if self.weights >= INT8:
                    made.append(quantised(rng, self.weights, rows, columns, self.group, self.zeros))
                else:
                    values = rng.standard_normal((rows, columns)) / math.sqrt(columns)
                    made.append(cuda.stored(values.astype(np.float32), self.weights))
            self.stored[name] = made
            self.dense[name] = [
                m.dense if isinstance(m, Quantised) else cuda.floats(m, self.weights) for m in made
            ]
        self.x = cuda.stored(rng.standard_normal((self.tokens, self.hidden)).astype(np.float32), self.io)
        self.ids = rng.integers(0, self.experts, (self.tokens, self.top_k))
        raw = rng.uniform(0.1, 1.0, (self.tokens, self.top_k)).astype(np.float32)
        self.gates = cuda.stored(raw, self.routing)

    def table(self, device: Device) -> int:
        entries: list[int] = []
        for e in range(self.experts):
            for name in ("gate", "up", "down"):
                matrix = self.stored[name][e]
                if isinstance(matrix, Quantised):
                    q = matrix.put(device, self.offset)
                    entries += [0, 0, 0] if e in self.absent else [q.values, q.scales, q.zeros or 0]
                elif e in self.absent:
                    entries.append(0)
                else:
                    entries.append(device.put(matrix, self.offset))
        return device.put(np.array(entries, np.uint64))

    def run(self, device: Device, table: int | None = None, rows: slice = slice(None)) -> Array:
        """Elements of `io`, [tokens, hidden]."""
        ids, tokens = self.ids[rows], len(self.ids[rows])
        out = device.allocate(tokens * self.hidden * np.dtype(cuda.ELEMENT[self.io]).itemsize)
        call = cuda.FfnCall(
            tokens, self.top_k, self.experts, self.hidden, self.inter, self.group,
            self.weights, self.io, self.routing, cuda.ACTIVATIONS.index(self.activation), self.has_gate,
            table or self.table(device), device.put(self.x[rows]), device.put(ids.astype(np.int64)),
            device.put(self.gates[rows]), out,
        )  # fmt: skip
        call.scratch_bytes = device.scratch_bytes(call)
        call.scratch = device.allocate(call.scratch_bytes)
        device.launch("expert_ffn", call)
        return device.get(out, cuda.ELEMENT[self.io], tokens, self.hidden)

    def expected(self) -> Array:
        """[tokens, hidden] in float64."""
        x, gates = cuda.floats(self.x, self.io), cuda.floats(self.gates, self.routing)
        out = np.zeros((self.tokens, self.hidden))
        for t in range(self.tokens):
            for k in range(self.top_k):
                e = self.ids[t, k]
                if not 0 <= e < self.experts or gates[t, k] == 0 or e in self.absent:
                    continue
                up = self.dense["up"][e] @ x[t]
                h = activated(self.activation, self.dense["gate"][e] @ x[t]) * up
                if not self.has_gate:
                    h = activated(self.activation, up)
                out[t] += gates[t, k] * (self.dense["down"][e] @ h)
        return out


ROUNDING = {F32: 1e-6, F16: 2**-11, BF16: 2**-8}  # of one result, relative


def check(layer: Layer, got: Array) -> None:
    """Within 1e-3 of float64, beside the one rounding of the output's own type."""
    want, have = layer.expected(), cuda.floats(got, layer.io)
    scale = np.abs(want).max() or 1.0
    assert np.all(np.isfinite(have))
    np.testing.assert_allclose(have, want, rtol=ROUNDING[layer.io], atol=1e-3 * scale * 0.05)
    if layer.io == F32:
        assert np.abs(have - want).max() < 1e-5 * scale, "float32 sums should be closer than this"


SHAPES = {
    "bf16": Layer(),
    "one token": Layer(tokens=1, top_k=4),
    "many tokens of one expert": Layer(tokens=11, top_k=2, experts=2),
    "64 tokens": Layer(tokens=64, top_k=2, experts=7, hidden=32, inter=16),
    "a pass and a token": Layer(tokens=65, top_k=1, experts=3, hidden=16, inter=8),
    "f16": Layer(weights=F16, io=F16, routing=F16),
    "f32": Layer(weights=F32, io=F32, hidden=40, inter=36),
    "f32 in, bf16 weights": Layer(io=F32, routing=BF16),
    "inter no multiple of 8": Layer(inter=37, hidden=51, io=F32),
    "one column": Layer(inter=1, hidden=1, io=F32),
    "several chunks a lane": Layer(tokens=2, experts=2, hidden=1064, inter=24, io=F32),
    "unaligned by 1": Layer(offset=1, io=F32),
    "unaligned by 2": Layer(offset=2, inter=37, hidden=51, io=F32, tokens=1),
    "unaligned by 8": Layer(offset=8, weights=F32, io=F32, inter=33, hidden=35),
    "no gate": Layer(has_gate=False, activation="relu2", io=F32),
    "gelu_erf": Layer(activation="gelu_erf", io=F32),
    "gelu_tanh": Layer(activation="gelu_tanh", io=F32),
    "relu": Layer(activation="relu", io=F32),
    "absent experts": Layer(absent=(0, 3), tokens=6, io=F32),
    "nobody is here": Layer(absent=(0, 1, 2, 3, 4), io=F32),
    "int8": Layer(weights=INT8, hidden=96, inter=64, io=F32),
    "int8, zeros, one token": Layer(
        weights=INT8, hidden=160, inter=96, group=64, zeros=True, tokens=1, io=F32
    ),
    "int8, odd and unaligned": Layer(weights=INT8, hidden=83, inter=45, offset=3, io=F32),
    "int4": Layer(weights=INT4, hidden=128, inter=64, group=64, io=F32),
    "int4, zeros, one token": Layer(weights=INT4, hidden=96, inter=96, zeros=True, tokens=1, io=F32),
    "int4, odd and unaligned": Layer(weights=INT4, hidden=83, inter=45, offset=5, zeros=True, io=F32),
}


@pytest.mark.parametrize("layer", SHAPES.values(), ids=SHAPES.keys())
def test_experts_agree_with_float64(device: Device, layer: Layer) -> None:
    check(layer, layer.run(device))


@pytest.mark.parametrize("seed", range(1, 4))
@pytest.mark.parametrize("tokens", [1, 6])
def test_no_schedule_changes_a_bit(
    device: Device, emulated: emulated_cuda.EmulatedCuda, tokens: int, seed: int
) -> None:
    layer = Layer(tokens=tokens, top_k=3, io=F32)
    table = layer.table(device)
    first = layer.run(device, table)
    emulated.machine(SEED=seed)
    np.testing.assert_array_equal(layer.run(device, table), first)


@pytest.mark.parametrize("weights", [BF16, INT4])
def test_a_token_does_not_notice_the_others(device: Device, weights: int) -> None:
    layer = Layer(tokens=9, top_k=3, experts=4, weights=weights, hidden=96, inter=64, io=F32)
    layer.ids[2, 1] = layer.ids[2, 0]  # the same expert twice
    table = layer.table(device)
    together = layer.run(device, table)
    for t in range(layer.tokens):
        alone = layer.run(device, table, slice(t, t + 1))
        np.testing.assert_array_equal(alone[0], together[t], err_msg=f"token {t}")


def test_pairs_that_add_nothing(device: Device) -> None:
    layer = Layer(tokens=5, top_k=3, experts=4, absent=(1,), io=F32)
    layer.ids[0] = [-1, 4, 2]  # another rank's
    layer.ids[1] = [2**40, 0, -(2**40)]
    layer.ids[2] = [1, 1, 1]
    layer.gates[3] = [0.0, 0.5, 0.0]
    layer.gates[4] = [0.0, 0.0, 0.0]
    got = layer.run(device)
    check(layer, got)
    assert not got[2].any()
    assert not got[4].any()


@pytest.mark.parametrize(
    "wrong",
    [
        {"tokens": 0},
        {"top_k": 33},
        {"hidden": 0},
        {"weights": 9},
        {"io": 3},
        {"activation": 5},
        {"scratch_bytes": 8},
    ],
    ids=lambda w: next(iter(w)),
)
def test_calls_that_cannot_be(device: Device, wrong: dict[str, int]) -> None:
    call = cuda.FfnCall(2, 2, 4, 32, 32, 32, BF16, BF16, F32, 0, 1)
    call.scratch_bytes = device.scratch_bytes(call)
    for name, value in wrong.items():
        setattr(call, name, value)
    with pytest.raises(cuda.Failed, match="returned 1"):
        device.launch("expert_ffn", call)


@pytest.mark.parametrize("group", [0, 16, 48])
def test_groups_that_cannot_be(device: Device, group: int) -> None:
    call = cuda.FfnCall(2, 2, 4, 96, 96, group, INT4, BF16, F32, 0, 1)
    assert device.scratch_bytes(call) == 0
    with pytest.raises(cuda.Failed, match="returned 1"):
        device.launch("expert_ffn", call)


def chosen(logits: Array, top_k: int) -> Array:
    """Ids of the largest, equal ones by rising id, NaN last."""
    keys = np.where(np.isnan(logits), -np.inf, logits)
    return np.argsort(-keys, axis=1, kind="stable")[:, :top_k]


@pytest.mark.parametrize("sigmoid", [False, True])
@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize(
    ("experts", "top_k", "kind"), [(5, 5, F32), (32, 4, BF16), (60, 8, F16), (200, 7, F32), (257, 32, F32)]
)
def test_top_k(device: Device, experts: int, top_k: int, kind: int, normalise: bool, sigmoid: bool) -> None:
    tokens, rng = 7, np.random.default_rng(experts)
    logits = cuda.stored((rng.standard_normal((tokens, experts)) * 2).astype(np.float32), kind)
    logits[1] = logits[1, 0]  # all alike
    logits[2, ::3] = logits[2, 0]
    present = rng.random(experts) < 0.5
    table = np.repeat(np.where(present, 16, 0).astype(np.uint64), 3)
    ids, weights = device.allocate(8 * tokens * top_k), device.allocate(4 * tokens * top_k)
    missing, missed = device.put(np.zeros(experts, np.int32)), device.put(np.zeros(1, np.int32))
    device.launch(
        "top_k",
        cuda.TopKCall(
            tokens, experts, top_k, kind, sigmoid, normalise,
            device.put(logits), ids, weights, device.put(table), missing, missed,
        ),
    )  # fmt: skip
    exact = cuda.floats(logits, kind)
    want = chosen(exact, top_k)
    np.testing.assert_array_equal(device.get(ids, np.int64, tokens, top_k), want)
    soft = np.exp(exact - exact.max(axis=1, keepdims=True))
    share = 1 / (1 + np.exp(-exact)) if sigmoid else soft / soft.sum(axis=1, keepdims=True)
    share = np.take_along_axis(share, want, axis=1)
    if normalise:
        share /= share.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(device.get(weights, np.float32, tokens, top_k), share, rtol=1e-5)
    gone = ~present[want]
    assert device.get(missed, np.int32, 1)[0] == gone.sum()
    marks = np.zeros(experts, np.int32)
    marks[want[gone]] = 1
    np.testing.assert_array_equal(device.get(missing, np.int32, experts), marks)


def test_top_k_puts_nan_last(device: Device) -> None:
    logits = np.array([[np.nan, 1.0, -np.inf, np.nan, 3.0]], np.float32)
    ids, weights = device.allocate(8 * 5), device.allocate(4 * 5)
    device.launch(
        "top_k", cuda.TopKCall(1, 5, 5, F32, 0, 0, device.put(logits), ids, weights, None, None, None)
    )
    np.testing.assert_array_equal(device.get(ids, np.int64, 5), [4, 1, 0, 2, 3])


@pytest.mark.parametrize("out", [F32, F16, BF16])
@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize(
    ("kind", "columns", "group", "offset"),
    [(INT8, 96, 32, 0), (INT8, 77, 64, 1), (INT4, 2080, 128, 0), (INT4, 35, 32, 3)],
)
def test_dequantised_to_the_bit(
    device: Device, kind: int, columns: int, group: int, offset: int, zeros: bool, out: int
) -> None:
    rows = 3
    matrix = quantised(np.random.default_rng(columns), kind, rows, columns, group, zeros)
    to = device.allocate(rows * columns * 4)
    device.launch(
        "dequantise", cuda.DequantiseCall(rows, columns, group, kind, out, matrix.put(device, offset), to)
    )
    got = device.get(to, cuda.ELEMENT[out], rows, columns)
    np.testing.assert_array_equal(got, cuda.stored(matrix.dense.astype(np.float32), out))
