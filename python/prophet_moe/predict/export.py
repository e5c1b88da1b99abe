"""A predictor as one file, and the specification of what that file means.

This docstring is the contract between training (torch) and the native runtime: whoever implements
it to the letter in float32 agrees with `prophet_moe.predict.bank.Bank` on `Rows(..., exact=True)` to 1e-5.

File
====
A safetensors file. `__metadata__` has

    format   "prophet-predictor"
    version  "2"; in "1" no tensor is int8, and `pair`, true or false, stands for pairs 1 or 0
    kind     "bank" (below) or "transformer" (prophet_moe.predict.paper_file)
    prophet  one JSON object: {"geometry": {"model", "layers", "experts", "top_k", "hidden"},
             "config": {...}, "training": {...}, "calibration": {...}, "scores": {...}, "int8": bool}

`config` of kind "bank":

    rank             R, width of the network
    decays           [D] decays of the own-layer averages, each in (0, 1)
    bank             [B] indices into decays: which averages also enter the network (may be empty)
    recent           [C] pairs [lag, kind]: blocks of single turns; kind "count" or "gate", lag 0, 1, ...
                     (may be empty)
    heads            [N] turns h_1 < h_2 < ...: head n forecasts "used again within h_n turns"
    latents          M, outputs per expert which the heads mix
    limits           [G] truncations H of the expected gap, rising
    limit_of_slots   pairs [slots / experts, H], rising: which limit serves which cache size
    ahead            F, layers ahead that are forecast (0: none)
    pairs            P, layers whose choices a forecast reads directly: the present one and P - 1 before it
    mid              true when mid.* are present
    history          false: nothing but the hidden state enters (B = C = 0, D = 0)
    hidden           width of the router's input when it enters the network, else 0

Shapes: L layers, E experts per layer, K top-k. `index [l, e]` is expert e of layer l. The last
index is contiguous. float16 tensors are widened to float32 before use; all arithmetic is float32. Any of them
may be stored as int8 with scales, which means float16 (prophet_moe.predict.compact).

    enter.bank    f16 [B, L, E, R]      enter.recent  f16 [C, L, E, R]     enter.bias  f32 [R]
    enter.hidden  f16 [L, hidden, R]    only when hidden > 0
    norm.gain     f32 [L, R]            norm.bias     f32 [L, R]
    mid.weight    f16 [R, R]            mid.bias      f32 [R]              optional; weight is [out, in]
    leave.weight  f16 [L, M, E, R]      leave.bias    f32 [L, M, E]        leave.mix   f32 [N, M]
    own.weight    f32 [L, N, D + 2]     own.bias      f32 [L, N, E]
    next.scale    f32 [L, N]            gap.weight    f32 [G, 1 + N]
    ahead.weight  f16 [F, L, E, R]      ahead.bias    f32 [F, L, E]        ahead.prior f32 [F, L]
    ahead.pair    f16 [P, F, L, E, E]   ahead.scale   f32 [F, L]

A tensor with a zero dimension is left out. In ahead.*, the index l is the layer that is forecast.

What a runtime keeps
====================
Per layer l: averages e[d][i] (start: K / E each), the last rows (experts and gates) as far back as
the largest lag (start: none), the hidden-space averages u[l][b] of R numbers (start:
(K / E) * sum over i of enter.bank[b, l, i]), the share P[l] of R numbers (start: sum over b of
u[l][b]) and z[i], the last raw logit of head 1 (start: log(q / (1 - q)), q = K / E).
Once: a = enter.bias + sum over l of P[l], and the latest hidden share Q (start: zeros).

When the router of layer l has spoken
=====================================
One *turn* is one row (token) of the step; rows are taken in order. A row has the ids of its K
experts, ids outside 0..E-1 dropped, repeated ids counted once, and gates g = K * w / (sum of the
row's w), or 1 each when weights are unknown or do not sum to a positive number.

1. For every row:
       e[d][i] <- decays[d] * e[d][i] + (1 - decays[d]) * [i selected]              for all d, i
       u[l][b] <- c * u[l][b] + (1 - c) * sum over selected i of enter.bank[b, l, i],  c = decays[bank[b]]
   A runtime may skip all but the last 1024 rows of a step: what is older has faded.
2. Once, with the last rows (lag 0 is the newest):
       P[l] <- sum over b of u[l][b]
             + sum over blocks (lag, kind) and i selected in the row of that lag of
                 enter.recent[block, l, i] * (g_i if kind is "gate" else 1)
   and a changes by the difference. Rebuild a from the P once per turn, at layer 0, against drift.
3. With hidden > 0: Q <- x^ @ enter.hidden[l], x^ = x / sqrt(mean(x * x) + 1e-6), x the newest row's
   router input. Without one in the glimpse, Q <- 0.
4. s = a + Q;  y = (s - mean(s)) / sqrt(var(s) + 1e-5) * norm.gain[l] + norm.bias[l]   (var over R, biased)
   c0 = hardswish(y);  c = c0 + hardswish(mid.weight @ c0 + mid.bias), or c = c0 without mid.*
   hardswish(v) = v * min(max(v + 3, 0), 6) / 6.
5. Next use, for every expert i of layer l:
       f     = [log(e[0][i] + 0.004), ..., log(e[D-1][i] + 0.004), g_i of the newest row (0 if not
               selected), 1 if selected in the row before the newest else 0]  (absent when history is false)
       o[m]  = leave.weight[l, m, i] . c + leave.bias[l, m, i]
       logit[n] = own.weight[l, n] . f + own.bias[l, n, i] + sum over m of leave.mix[n, m] * o[m]
       S[n]  = 1 - sigmoid(next.scale[l, n] * logit[n])                 P(not used within h_n turns)
       gap   = max(1, gap.weight[k, 0] + sum over n of gap.weight[k, 1 + n] * S[n])
   with k the row of the limit in force. z[i] of layer l <- logit[1st head] (unscaled).
   next_use returns `gap`, an estimate of E[min(turns to next use, H)].
   The limit in force is that of the nearest entry of limit_of_slots.
6. Ahead, on request, for f = 1..F and layer j = l + f < L, every expert i of layer j:
       logit = ahead.prior[f-1, j] * z_j[i] + ahead.bias[f-1, j, i] + ahead.weight[f-1, j, i] . c
             + sum over d < min(P, l + 1) and i' selected in the newest row at layer l - d
                 of ahead.pair[d, f-1, j, i', i]
       p     = sigmoid(ahead.scale[f-1, j] * logit)

With several sequences in one step, a step of T rows is T turns: gaps are then T times as long for
all experts alike, so their order, which is what eviction uses, stays.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import safe_open
from safetensors.numpy import save as serialize

from prophet_moe.errors import ProphetError

from . import compact, paper_file
from .bank import Bank, BankConfig
from .calibrate import Calibration
from .paper import Paper, PaperConfig

FORMAT = "prophet-predictor"
VERSION, FORMER = "2", "1"
Arrays = dict[str, npt.NDArray[Any]]


class PredictorError(ProphetError, ValueError):
    """A predictor file is damaged, of another kind, or made for another model."""


@dataclass
class Predictor:
    """A trained network with its calibration and what is known about it."""

    net: Bank | Paper
    calibration: Calibration
    limit_of_slots: list[tuple[float, float]]
    model: str = ""
    training: dict[str, Any] = field(default_factory=dict)
    scores: dict[str, Any] = field(default_factory=dict)
    int8: bool = False  # matrices are stored as 8-bit integers

    @property
    def kind(self) -> str:
        return "bank" if isinstance(self.net, Bank) else "transformer"

    def limit(self, fraction: float) -> float:
        """The truncation that serves a cache of this fraction of all experts."""
        return min(self.limit_of_slots, key=lambda pair: abs(pair[0] - fraction))[1]

    def require(self, layers: int, experts: int, top_k: int) -> None:
        """Raises PredictorError unless the predictor was made for a model of this geometry."""
        c = self.net.config
        if (c.layers, c.experts, c.top_k) != (layers, experts, top_k):
            raise PredictorError(
                f"this predictor is for {self.model or 'a model'} with {c.layers} layers x {c.experts} "
                f"experts, top-{c.top_k}; the model has {layers} x {experts}, top-{top_k}. "
                "Train one with `prophet train`."
            )


def save(predictor: Predictor, path: Path) -> None:
    """Writes the file, whole or not at all. The calibration shift is folded into the biases.

    With `int8` matrices take half the size; what they are rounded to is what `load` gives.
    """
    net, c = predictor.net, predictor.net.config
    tensors = (
        _bank_tensors(net, predictor.calibration, predictor.int8)
        if isinstance(net, Bank)
        else paper_file.tensors_of(net, predictor.calibration)
    )
    for name, array in tensors.items():
        if not np.isfinite(array.astype(np.float32)).all():
            raise PredictorError(f"{name} has values that are not finite; the network must be trained again")
    config = {k: v for k, v in asdict(c).items() if k not in ("layers", "experts", "top_k")}
    config |= {"limits": list(predictor.calibration.limits), "limit_of_slots": predictor.limit_of_slots}
    about = {
        "geometry": {"model": predictor.model, "layers": c.layers, "experts": c.experts, "top_k": c.top_k}
        | {"hidden": c.hidden},
        "config": config,
        "training": predictor.training,
        "calibration": {"next_scale": predictor.calibration.next_scale.round(4).tolist()},
        "scores": predictor.scores,
        "int8": predictor.int8,
    }
    metadata = {"format": FORMAT, "version": VERSION, "kind": predictor.kind, "prophet": json.dumps(about)}
    whole = path.with_name(path.name + ".part")
    stored = compact.narrow(tensors) if predictor.int8 else tensors
    arrays = {k: np.ascontiguousarray(v) for k, v in stored.items() if v.size}
    whole.write_bytes(serialize(arrays, metadata))
    os.replace(whole, path)


def load(path: Path) -> Predictor:
    """Reads a file written by `save`. Raises PredictorError with a sentence for any other content."""
    tensors, kind, about = read(path)
    try:
        geometry, stored = about["geometry"], dict(about["config"])
        limits, of_slots = stored.pop("limits"), stored.pop("limit_of_slots")
        sizes: dict[str, Any] = {k: int(geometry[k]) for k in ("layers", "experts", "top_k")}
        stored = {k: tuple(v) if isinstance(v, list) else v for k, v in stored.items()}
        net: Bank | Paper
        if kind == "bank":
            stored["recent"] = tuple((int(lag), str(what)) for lag, what in stored["recent"])
            if "pair" in stored:
                stored["pairs"] = int(stored.pop("pair"))
            net = Bank(BankConfig(**sizes, **stored))
            _fill_bank(net, tensors)
        else:
            net = Paper(PaperConfig(**sizes, **stored))
            paper_file.fill(net, tensors)
        c = net.config
        ahead = tensors.get("ahead.scale", np.ones((0, c.layers), np.float32))
        shift = tensors.get("next.shift", np.zeros((c.layers, len(c.heads)), np.float32))
        ahead_shift = tensors.get("ahead.shift", np.zeros_like(ahead))
        calibration = Calibration(
            tensors["next.scale"], shift, ahead, ahead_shift, tensors["gap.weight"], limits
        )
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise PredictorError(
            f"{path} does not hold what its metadata says ({error}); train or fetch the predictor again"
        ) from error
    of_slots = [(float(a), float(b)) for a, b in of_slots]
    net.eval()
    model, int8 = str(geometry.get("model", "")), bool(about.get("int8", False))
    return Predictor(net, calibration, of_slots, model, about["training"], about["scores"], int8)


def read(path: Path) -> tuple[Arrays, str, dict[str, Any]]:
    """(tensors as stored, kind, the JSON object `prophet`) of a predictor file, checked to be one."""
    try:
        with safe_open(path, "np") as file:
            metadata: Mapping[str, str] = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise PredictorError(f"{path} is not a predictor file; `prophet train` writes them")
            if metadata.get("version") not in (VERSION, FORMER):
                raise PredictorError(
                    f"{path} has version {metadata.get('version')}; this release reads {FORMER} and {VERSION}"
                )
            kind, about = metadata.get("kind", ""), json.loads(metadata.get("prophet", "{}"))
            tensors = compact.widen({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
    except PredictorError:
        raise
    except FileNotFoundError as error:
        raise PredictorError(f"there is no predictor at {path}; `prophet train` writes one") from error
    except Exception as error:
        raise PredictorError(
            f"{path} cannot be read as a predictor ({error}); it may be truncated"
        ) from error
    if kind not in ("bank", "transformer"):
        raise PredictorError(f"{path} is of kind {kind!r}; this release knows bank and transformer")
    for name, array in tensors.items():
        if not np.isfinite(array.astype(np.float32)).all():
            raise PredictorError(f"{path}: {name} has values that are not finite; train the predictor again")
    return tensors, kind, about


def _half(x: torch.Tensor) -> npt.NDArray[np.float16]:
    return x.detach().contiguous().numpy().astype(np.float16)


def _float(x: torch.Tensor) -> npt.NDArray[np.float32]:
    return x.detach().contiguous().numpy().astype(np.float32)


def _bank_tensors(net: Bank, calibration: Calibration, int8: bool) -> Arrays:
    """Scales of the inputs are folded into the matrices, offsets and calibration shifts into biases."""
    c = net.config
    L, E, R, N = c.layers, c.experts, c.rank, len(c.heads)
    lift = torch.from_numpy(calibration.next_shift / calibration.next_scale)  # [L, N], in raw logits
    out: Arrays = {
        "norm.gain": _float(net.norm_gain),
        "norm.bias": _float(net.norm_bias),
        "leave.weight": _half(net.leave.view(L, R, c.latents, E).permute(0, 2, 3, 1)),
        "leave.bias": _float(net.leave_bias.view(L, c.latents, E)),
        "leave.mix": _float(net.mix),
        "own.weight": _float(net.own.weight.transpose(1, 2)),
        "own.bias": _float(net.own.bias + lift[:, :, None]).reshape(L, N, E),
        "next.scale": calibration.next_scale,
        "gap.weight": calibration.gap_weight,
    }
    if c.mid:
        out["mid.weight"], out["mid.bias"] = _half(net.mid.weight), _float(net.mid.bias)
    bias = net.enter_bias.detach()
    if c.history:
        enter = net.enter.detach().movedim(1, 0)
        count = len(c.bank)
        out["enter.bank"], out["enter.recent"] = _half(enter[:count]), _half(enter[count:] * 0.5)
        if int8:  # the bias takes up what they are rounded to
            out |= compact.widen(compact.narrow({"enter.bank": out["enter.bank"]}))
        bias = bias - torch.from_numpy(out["enter.bank"]).float().sum((0, 1, 2)) * (c.top_k / E)
    out["enter.bias"] = _float(bias)
    if c.hidden:
        out["enter.hidden"] = _half(net.enter_hidden)
    if c.ahead:
        moved = torch.from_numpy(calibration.ahead_shift / calibration.ahead_scale)
        moved = moved - net.ahead_prior.detach() * lift[:, 0]
        out["ahead.weight"] = _half(net.ahead.transpose(2, 3))
        out["ahead.bias"] = _float(net.ahead_bias + moved[:, :, None])
        out["ahead.prior"] = _float(net.ahead_prior)
        out["ahead.scale"] = calibration.ahead_scale
        if c.pairs:
            out["ahead.pair"] = _half(net.ahead_pair)
    return out


def _fill_bank(net: Bank, tensors: Arrays) -> None:
    """The inverse of `_bank_tensors`, with the stored (rounded) weights."""
    c = net.config
    L, E, R = c.layers, c.experts, c.rank
    t = {name: torch.from_numpy(array.astype(np.float32)) for name, array in tensors.items()}
    state = {
        "norm_gain": t["norm.gain"],
        "norm_bias": t["norm.bias"],
        "leave": t["leave.weight"].permute(0, 3, 1, 2).reshape(L, R, c.latents * E),
        "leave_bias": t["leave.bias"].reshape(L, -1),
        "mix": t["leave.mix"],
        "own.bias": t["own.bias"],
        "own.weight": t["own.weight"].transpose(1, 2) if "own.weight" in t else net.own.weight,
        "enter_bias": t["enter.bias"],
    }
    if c.mid:
        state["mid.weight"], state["mid.bias"] = t["mid.weight"], t["mid.bias"]
    if c.history:
        none = torch.zeros(0, L, E, R)
        bank, recent = t.get("enter.bank", none), t.get("enter.recent", none)
        state["enter"] = torch.cat([bank, recent * 2]).movedim(0, 1)
        state["enter_bias"] = t["enter.bias"] + bank.sum((0, 1, 2)) * (c.top_k / E)
    if c.hidden:
        state["enter_hidden"] = t["enter.hidden"]
    if c.ahead:
        state["ahead"] = t["ahead.weight"].transpose(2, 3)
        state["ahead_bias"], state["ahead_prior"] = t["ahead.bias"], t["ahead.prior"]
        if c.pairs:
            state["ahead_pair"] = t["ahead.pair"].view_as(net.ahead_pair)  # version 1: [F, L, E, E]
    net.load_state_dict(state)


def native(path: Path, fraction: float) -> Any:
    """The runtime's predictor for a cache with slots for this fraction of all experts."""
    import prophet_ext

    tensors, predictor = read(path)[0], load(path)
    limits = list(predictor.calibration.limits)
    limit = limits.index(predictor.limit(fraction))
    if isinstance(predictor.net, Paper):
        return paper_file.native(predictor.net, tensors, len(limits), limit)
    c = predictor.net.config
    return prophet_ext.BankPredictor(
        layers=c.layers,
        experts=c.experts,
        top_k=c.top_k,
        rank=c.rank,
        decays=list(c.decays) if c.history else [],
        bank=list(c.bank) if c.history else [],
        recent=[(lag, kind == "gate") for lag, kind in c.recent] if c.history else [],
        heads=len(c.heads),
        latents=c.latents,
        limits=len(limits),
        limit=limit,
        ahead=c.ahead,
        pairs=c.pairs if c.ahead > 0 else 0,
        hidden=c.hidden,
        tensors=tensors,
    )
