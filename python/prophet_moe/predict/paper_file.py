"""The transformer's part of a predictor file (prophet_moe.predict.export), and what its tensors mean.

Whoever implements this to the letter in float32 agrees with `prophet_moe.predict.paper.Paper` on
`Rows(..., exact=True)` to 1e-5.

`config` has the fields of PaperConfig: width d, depth B, attention_heads A, context c, decays [D], heads [N],
ahead F, history, hidden; and limits, limit_of_slots as the bank has them. L layers, E experts, K top-k.
float16 tensors are widened before use; matrices are [out, in].

    expert         f16 [L, E, d]     layer         f32 [L, d]
    pad            f32 [c, d]        place         f32 [c + 1, d]
    project.weight f16 [d, hidden]   project.bias  f32 [d]              only when hidden > 0
    enter.gain     f32 [B, d]        enter.bias    f32 [B, d]           norm before attention
    read.weight    f16 [B, 3 d, d]   read.bias     f32 [B, 3 d]         queries, keys, values
    merge.weight   f16 [B, d, d]     merge.bias    f32 [B, d]
    middle.gain    f32 [B, d]        middle.bias   f32 [B, d]           norm before up
    up.weight      f16 [B, 4 d, d]   up.bias       f32 [B, 4 d]
    down.weight    f16 [B, d, 4 d]   down.bias     f32 [B, d]
    norm.gain      f32 [d]           norm.bias     f32 [d]              after the last block
    use.weight     f16 [L, N, E, d]
    own.weight     f32 [L, N, D + 2] own.bias      f32 [L, N, E]
    next.scale     f32 [L, N]        gap.weight    f32 [G, 1 + N]
    horizon.weight f16 [F, d, d]     ahead.weight  f16 [L, E, d]
    ahead.bias     f32 [F, L, E]     ahead.scale   f32 [F, L]

A tensor with a zero dimension is left out. In ahead.*, the index l is the layer that is forecast; the shifts
of the calibration are folded into own.bias and ahead.bias.

When the router of layer l has spoken
=====================================
1. Averages, gates g and the newest rows of layer l as in `export`, step 1.
2. Positions, oldest first: with history, for back = c-1 .. 0,
       x = place[back] + layer[l - back] + sum over selected i of g_i / K * expert[l - back, i]
   of the same token, or place[back] + pad[back] where the token has no such layer; and with hidden > 0,
       x = project.weight @ x^ + project.bias + layer[l] + place[c]
   with x^ as in `export`, step 3, and zeros where the glimpse has none.
3. B times, with norm(v) = (v - mean) / sqrt(var + 1e-5) * gain + bias:
       q, k, v = thirds of read.weight @ norm_enter(x) + read.bias, of A heads each d / A wide
       x <- x + merge.weight @ (sum over positions of softmax(q . k / sqrt(d / A)) * v) + merge.bias
       x <- x + down.weight @ gelu(up.weight @ norm_middle(x) + up.bias) + down.bias
   where gelu(v) = v * (1 + erf(v / sqrt 2)) / 2. Then z = norm(x) of the last position.
4. Next use as in `export`, step 5, with
       logit[n] = own.weight[l, n] . f + own.bias[l, n] + use.weight[l, n] @ z
5. Ahead, for f = 1..F and layer j = l + f < L:
       p = sigmoid(ahead.scale[f-1, j] * (ahead.weight[j] @ (horizon.weight[f-1] @ z) + ahead.bias[f-1, j]))
   Of a step of several tokens, 1 - prod(1 - p) over those that are looked at.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from .calibrate import Calibration
from .paper import Paper

Arrays = dict[str, npt.NDArray[Any]]
# Parameters of a block, by the tensors that hold those of all blocks.
_BLOCK = {
    "enter.gain": "norm_in.weight",
    "enter.bias": "norm_in.bias",
    "read.weight": "read.weight",
    "read.bias": "read.bias",
    "merge.weight": "merge.weight",
    "merge.bias": "merge.bias",
    "middle.gain": "norm_mid.weight",
    "middle.bias": "norm_mid.bias",
    "up.weight": "up.weight",
    "up.bias": "up.bias",
    "down.weight": "down.weight",
    "down.bias": "down.bias",
}
_SAME = ("layer", "pad", "place")
_HALF = ("expert", "project.weight", "read.weight", "merge.weight", "up.weight", "down.weight",
         "use.weight", "horizon.weight", "ahead.weight")  # fmt: skip


def tensors_of(net: Paper, calibration: Calibration) -> Arrays:
    """What a file holds of the network and its calibration."""
    c = net.config
    L, E, N = c.layers, c.experts, len(c.heads)
    state = {name: value.detach() for name, value in net.state_dict().items()}
    lift = torch.from_numpy(calibration.next_shift / calibration.next_scale)
    out = {name: state[name] for name in ("expert", *_SAME)}
    for name, of_block in _BLOCK.items():
        out[name] = torch.stack([state[f"blocks.{b}.{of_block}"] for b in range(c.depth)])
    out |= {"norm.gain": state["norm.weight"], "norm.bias": state["norm.bias"]}
    if c.hidden:
        out |= {name: state[name] for name in ("project.weight", "project.bias")}
    out["use.weight"] = state["use"].unflatten(2, (N, E)).permute(0, 2, 3, 1)
    out["own.weight"] = state["own.weight"].transpose(1, 2)
    out["own.bias"] = (state["own.bias"] + lift[:, :, None]).reshape(L, N, E)
    if c.ahead:
        moved = torch.from_numpy(calibration.ahead_shift / calibration.ahead_scale)
        out["horizon.weight"] = state["horizon"].transpose(1, 2)
        out["ahead.weight"] = state["out"].transpose(1, 2)
        out["ahead.bias"] = state["ahead_bias"] + moved[:, :, None]
    arrays = {
        name: value.contiguous().numpy().astype(np.float16 if name in _HALF else np.float32)
        for name, value in out.items()
    }
    scales = {"next.scale": calibration.next_scale, "gap.weight": calibration.gap_weight}
    return arrays | scales | ({"ahead.scale": calibration.ahead_scale} if c.ahead else {})


def fill(net: Paper, tensors: Mapping[str, npt.NDArray[Any]]) -> None:
    """The inverse, with the stored (rounded) weights. Raises KeyError, RuntimeError for other tensors."""
    c = net.config
    t = {name: torch.from_numpy(array.astype(np.float32)) for name, array in tensors.items()}
    state = {name: t[name] for name in ("expert", *_SAME)}
    for name, of_block in _BLOCK.items():
        if len(t[name]) != c.depth:
            raise ValueError(f"{name} is of {len(t[name])} blocks, not {c.depth}")
        state |= {f"blocks.{b}.{of_block}": t[name][b] for b in range(c.depth)}
    state |= {"norm.weight": t["norm.gain"], "norm.bias": t["norm.bias"]}
    if c.hidden:
        state |= {name: t[name] for name in ("project.weight", "project.bias")}
    state["use"] = t["use.weight"].permute(0, 3, 1, 2).flatten(2)
    state["own.weight"] = t["own.weight"].transpose(1, 2) if "own.weight" in t else net.own.weight
    state["own.bias"] = t["own.bias"]
    if c.ahead:
        state["horizon"] = t["horizon.weight"].transpose(1, 2)
        state["out"] = t["ahead.weight"].transpose(1, 2)
        state["ahead_bias"] = t["ahead.bias"]
    else:
        state |= {name: net.state_dict()[name] for name in ("horizon", "out", "ahead_bias")}
    net.load_state_dict(state)


def native(net: Paper, tensors: Mapping[str, npt.NDArray[Any]], limits: int, limit: int) -> Any:
    """The runtime's predictor, from the tensors of the file; `limit` of `limits` truncates the gap."""
    import prophet_ext

    c = net.config
    return prophet_ext.TransformerPredictor(
        layers=c.layers,
        experts=c.experts,
        top_k=c.top_k,
        width=c.width,
        depth=c.depth,
        attention_heads=c.attention_heads,
        context=c.context,
        decays=list(c.decays),
        heads=len(c.heads),
        limits=limits,
        limit=limit,
        ahead=c.ahead,
        history=c.history,
        hidden=c.hidden,
        tensors=tensors,
    )
