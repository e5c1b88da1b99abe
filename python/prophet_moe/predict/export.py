"""A predictor as one file, and the specification of what that file means.

This docstring is the contract between training (torch) and the native runtime: whoever implements
it to the letter in float32 agrees with `prophet_moe.predict.bank.Bank` to 1e-5.

File
====
A safetensors file. `__metadata__` has

    format   "prophet-predictor"
    version  "1"
    kind     "bank" (below) or "transformer" (prophet_moe.predict.paper; not read by the runtime)
    prophet  one JSON object: {"geometry": {"model", "layers", "experts", "top_k", "hidden"},
             "config": {...}, "training": {...}, "calibration": {...}, "scores": {...}}

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
    pair             true when ahead.pair is present
    history          false: nothing but the hidden state enters (B = C = 0, D = 0)
    hidden           width of the router's input when it enters the network, else 0

Shapes: L layers, E experts per layer, K top-k. `index [l, e]` is expert e of layer l. The last
index is contiguous. float16 tensors are widened to float32 before use; all arithmetic is float32.

    enter.bank    f16 [B, L, E, R]      enter.recent  f16 [C, L, E, R]     enter.bias  f32 [R]
    enter.hidden  f16 [L, hidden, R]    only when hidden > 0
    norm.gain     f32 [L, R]            norm.bias     f32 [L, R]
    mid.weight    f16 [R, R]            mid.bias      f32 [R]              (weight is [out, in])
    leave.weight  f16 [L, M, E, R]      leave.bias    f32 [L, M, E]        leave.mix   f32 [N, M]
    own.weight    f32 [L, N, D + 2]     own.bias      f32 [L, N, E]
    next.scale    f32 [L, N]            gap.weight    f32 [G, 1 + N]
    ahead.weight  f16 [F, L, E, R]      ahead.bias    f32 [F, L, E]        ahead.prior f32 [F, L]
    ahead.pair    f16 [F, L, E, E]      ahead.scale   f32 [F, L]

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
   c0 = hardswish(y);  c = c0 + hardswish(mid.weight @ c0 + mid.bias)
   hardswish(v) = v * min(max(v + 3, 0), 6) / 6.
5. Next use, for every expert i of layer l:
       f     = [log(e[0][i] + 0.004), ..., log(e[D-1][i] + 0.004), g_i of the newest row (0 if not
               selected), 1 if selected in the row before the newest else 0]      (absent when history is false)
       o[m]  = leave.weight[l, m, i] . c + leave.bias[l, m, i]
       logit[n] = own.weight[l, n] . f + own.bias[l, n, i] + sum over m of leave.mix[n, m] * o[m]
       S[n]  = 1 - sigmoid(next.scale[l, n] * logit[n])                 P(not used within h_n turns)
       gap   = max(1, gap.weight[k, 0] + sum over n of gap.weight[k, 1 + n] * S[n])
   with k the row of the limit in force. z[i] of layer l <- logit[1st head] (unscaled).
   next_use returns `gap`, an estimate of E[min(turns to next use, H)].
   The limit in force is that of the nearest entry of limit_of_slots.
6. Ahead, on request, for f = 1..F and layer j = l + f < L, every expert i of layer j:
       logit = ahead.prior[f-1, j] * z_j[i] + ahead.bias[f-1, j, i] + ahead.weight[f-1, j, i] . c
             + sum over i' selected in the newest row at layer l of ahead.pair[f-1, j, i', i]   (if pair)
       p     = sigmoid(ahead.scale[f-1, j] * logit)

With several sequences in one step, a step of T rows is T turns: gaps are then T times as long for
all experts alike, so their order, which is what eviction uses, stays.
"""

from __future__ import annotations

FORMAT = "prophet-predictor"
VERSION = "1"
