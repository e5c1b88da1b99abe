"""The one experts function, registered with transformers under the name "prophet".

    fn(module, hidden_states [N,H], top_k_index [N,K] int64, top_k_weights [N,K]) -> [N,H]

Two ways to the same sum. *Native*: the engine computes decode-sized batches with its own kernels,
addresses in, nothing else in between. *Leased*: torch computes on leased views of the arena, one expert
after the other while later ones are still being read; used for prefill, for exact results, and for
layouts the kernels do not know.

Leased results equal transformers' eager loop bit for bit. That needs: experts ascending; rows of
an expert ordered by (k, token); one matrix product for gate and up together; the bias as an addition
of its own; the routing weight last; sums in the element type the eager loop uses; matrices that
begin where the library's would in a cache line.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
import torch.nn.functional as F
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from prophet_ext import Engine, Lease
from prophet_moe.errors import InvalidArgument, ProphetError, StateError, UnsupportedModelError
from prophet_moe.models.checkpoint import CACHE_LINE, empty_at
from prophet_moe.models.families import sum_dtype

IMPLEMENTATION = "prophet"
LAYER = "_prophet_layer"  # key in module.__dict__: kept out of the state dict

NATIVE_DTYPES = {torch.float32: "f32", torch.float16: "f16", torch.bfloat16: "bf16"}


def native_rows(experts: int, top_k: int, parameters: int) -> int:
    """Tokens up to which the native kernels serve a layer of `experts` experts of `parameters` weights.

    Beyond about 12 rows an expert torch's matrix products are faster, and later for small experts:
    what torch spends on each expert besides is worth 2**23 multiplications. On average an expert
    gets tokens * top_k / experts rows; popular ones get more, hence the limit on tokens. Slots do not
    enter: results must not depend on them.
    """
    besides = 2**23 // parameters
    return min(64 + besides, (12 + besides) * experts // top_k)


@dataclass
class MoeLayer:
    """What an experts module needs to find its experts; one per MoE layer, made at load."""

    engine: Engine
    number: int  # MoE layer, from 0 in forward order
    experts: int
    top_k: int
    native_rows: int  # 0: never native
    arena: torch.Tensor | None  # uint8, every slot; None: on a device that torch does not see
    pieces: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    bytes: tuple[int, ...]
    stored: torch.dtype
    compute: torch.dtype
    begins: dict[str, int] | None  # for exact results: where stacked tensors begin in a cache line, else at 0
    observing: bool  # the engine has a predictor, which wants to know what the router said
    device: torch.device  # where the rest of the model stands

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise ProphetError(
            "a model loaded by Prophet cannot be copied or pickled: its experts live in one arena; "
            "load it a second time instead."
        )

    def stream(self) -> int | None:
        """The handle of the stream on which torch computes now; None on the CPU."""
        if self.device.type == "cpu":
            return None
        return int(torch.cuda.current_stream(self.device).cuda_stream)

    def matrices(self, expert: int, offsets: Sequence[int]) -> dict[str, torch.Tensor]:
        """Views of one leased expert by parameter name (gate_up, down, ...), in the compute dtype."""
        views = dict(zip(self.pieces, offsets, strict=True))
        sizes = dict(zip(self.pieces, zip(self.bytes, self.shapes, strict=True), strict=True))
        found = {}
        for suffix in ("", "_bias"):
            if "gate" + suffix not in views:
                continue
            gate, up = views.pop("gate" + suffix), views.pop("up" + suffix)
            (count, shape), (_, other) = sizes["gate" + suffix], sizes["up" + suffix]
            joint = (shape[0] + other[0], *shape[1:])
            if up == gate + count:
                found["gate_up" + suffix] = self._view(gate, 2 * count, joint)
            else:
                parts = (self._view(gate, count, shape), self._view(up, count, other))
                found["gate_up" + suffix] = torch.cat(parts)
        for name, offset in views.items():
            found[name] = self._view(offset, *sizes[name])
        if self.begins is None:
            return found
        begins = self.begins
        return {name: _as_stacked(matrix, begins.get(name, 0), expert) for name, matrix in found.items()}

    def _view(self, offset: int, count: int, shape: tuple[int, ...]) -> torch.Tensor:
        if self.arena is None:
            raw = torch.empty(count, dtype=torch.uint8)
            self.engine.read(offset, count, raw.data_ptr())
            return raw.view(self.stored).view(shape).to(self.compute)
        raw = self.arena[offset : offset + count]
        if offset % self.stored.itemsize:
            raw = raw.clone()
        return raw.view(self.stored).view(shape).to(self.compute)


def _as_stacked(matrix: torch.Tensor, begin: int, expert: int) -> torch.Tensor:
    """The same values, beginning in a cache line where row `expert` of a tensor from `begin` on does."""
    phase = (begin + expert * matrix.nbytes) % CACHE_LINE
    if matrix.data_ptr() % CACHE_LINE == phase:
        return matrix
    return empty_at(phase, matrix.nbytes).view(matrix.dtype).view(matrix.shape).copy_(matrix)


def experts_forward(
    module: Any, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
) -> torch.Tensor:
    """Serves one MoE layer. Raises ReadError, StateError (closed), and InvalidArgument.

    Inference only: asking for gradients raises UnsupportedModelError, at backward().
    """
    layer: MoeLayer | None = module.__dict__.get(LAYER)
    if layer is None:
        if hidden_states.is_meta:
            return torch.empty_like(hidden_states)
        raise StateError(
            "this model has no experts to serve: it was not loaded by prophet_moe.load, or was detached."
        )
    tokens, width = hidden_states.shape[0], top_k_index.shape[1]
    if width > layer.top_k:
        raise UnsupportedModelError(
            f"the router asks for {width} experts per token, the configuration said {layer.top_k}; "
            "please report this model."
        )
    if hidden_states.requires_grad and torch.is_grad_enabled():
        with torch.no_grad():
            out = experts_forward(module, hidden_states, top_k_index, top_k_weights)
        return _InferenceOnly.apply(hidden_states, out)
    if hidden_states.device != layer.device:
        raise InvalidArgument(
            f"the model computes on {hidden_states.device}, but was loaded for {layer.device}, where its "
            "experts are: leave it where prophet_moe.load put it, and move the inputs there."
        )
    if 0 < tokens <= layer.native_rows:
        x, ids, weights = hidden_states.contiguous(), top_k_index.contiguous(), top_k_weights.contiguous()
        out = torch.empty_like(x)
        layer.engine.forward(
            layer.number,
            tokens,
            x.data_ptr(),
            NATIVE_DTYPES[x.dtype],
            ids.data_ptr(),
            weights.data_ptr(),
            NATIVE_DTYPES[weights.dtype],
            out.data_ptr(),
            width,
            layer.stream(),
        )
        return out
    return _leased(layer, module, hidden_states, top_k_index, top_k_weights)


class _InferenceOnly(torch.autograd.Function):
    """Passes results on; whoever asks for gradients gets a sentence."""

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> NoReturn:
        raise UnsupportedModelError(
            "Prophet runs inference only: gradients do not pass through offloaded experts. Train with "
            "transformers."
        )


def _leased(
    layer: MoeLayer, module: Any, hidden: torch.Tensor, index: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    out = torch.zeros_like(hidden, dtype=sum_dtype(module, hidden.dtype, weights.dtype))
    tokens = hidden.shape[0]
    flat, flat_weights = index.T.reshape(-1), weights.T.reshape(-1, 1)
    order = flat.argsort(stable=True)
    counts = torch.bincount(flat, minlength=layer.experts)[: layer.experts].tolist()
    ends, end = {}, 0
    for expert, count in enumerate(counts):
        end += count
        if count:
            ends[expert] = (end - count, end)
    ahead = layer.engine.step(layer.number, tokens, counts)
    if layer.observing:
        _observe(layer, hidden, index, weights)
    for expert, offsets in _in_order(layer, list(ends), ahead):
        rows = order[slice(*ends[expert])]
        token = rows % tokens
        y = _one_expert(module, hidden[token], layer.matrices(expert, offsets))
        out.index_add_(0, token, (y * flat_weights[rows]).to(out.dtype))
    return out.to(hidden.dtype)


def _observe(layer: MoeLayer, hidden: torch.Tensor, index: torch.Tensor, weights: torch.Tensor) -> None:
    """Tells the predictor what the router said, as Engine.forward does by itself."""
    ids, weights, last = (tensor.contiguous().cpu() for tensor in (index, weights, hidden[-1]))
    layer.engine.observe(
        layer.number,
        ids.shape[0],
        ids.shape[1],
        ids.data_ptr(),
        weights.data_ptr(),
        NATIVE_DTYPES[weights.dtype],
        last.data_ptr(),
        last.shape[0],
        NATIVE_DTYPES[last.dtype],
    )


def _one_expert(module: Any, x: torch.Tensor, matrices: dict[str, torch.Tensor]) -> torch.Tensor:
    first = "gate_up" if module.has_gate else "up"
    y = _project(x, matrices[first], matrices.get(first + "_bias"), module.is_transposed)
    y = module._apply_gate(y) if module.has_gate else module.act_fn(y)
    y = _project(y, matrices["down"], matrices.get("down_bias"), module.is_transposed)
    if getattr(module, "has_post_expert_norm", False):  # transformers before 5.20 has no such flag
        y = module.post_expert_norm(y)
    return y


def _project(
    x: torch.Tensor, matrix: torch.Tensor, bias: torch.Tensor | None, transposed: bool
) -> torch.Tensor:
    y = x @ matrix if transposed else F.linear(x, matrix)
    return y if bias is None else y + bias


def _in_order(layer: MoeLayer, experts: Sequence[int], ahead: int) -> Iterator[tuple[int, list[int]]]:
    """Leases `experts` (ascending) one by one and yields each with its offsets once it has landed.

    At most `ahead` that are not here are leased at a time, so reads overlap with the caller's arithmetic
    and take few slots. Where not all can be, those already resident are leased first: a read for one expert
    must not evict another that this same call needs.
    """
    engine, number = layer.engine, layer.number
    room = engine.pool_slots(number)
    held: dict[int, Lease] = {}
    here: set[int] = set()
    try:
        if len(experts) > ahead:
            for expert in experts:
                if len(held) < room - 1 and engine.state(number, expert) in ("resident", "leased"):
                    held[expert] = engine.lease(number, [expert])
            here.update(held)
        waiting = deque(expert for expert in experts if expert not in held)
        brought = 0
        for expert in experts:
            while waiting and brought < ahead and len(held) < room:
                held[waiting[0]] = engine.lease(number, [waiting[0]])
                waiting.popleft()
                brought += 1
            yield expert, held[expert].wait(expert)
            held.pop(expert).release(layer.stream())
            brought -= expert not in here
    finally:
        for lease in held.values():
            lease.release(layer.stream())


ALL_EXPERTS_FUNCTIONS.register(IMPLEMENTATION, experts_forward)
