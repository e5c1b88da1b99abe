"""The experts of one vLLM process: an engine over their records, and the slots that hold those of a call.

The arena is in planes: [slots, ...] arrays of the two matrices, divided evenly among the layers, so
that the kernel gets one dense array of a layer's slots. A call takes its experts by one lease, all or
nothing, and holds it until the kernel has run: nothing that comes later, another miss or a prefetch, may
take such a slot. Where a call needs more experts than there are slots it is split by token; a token's
sum is then made by one call of the kernel, and its bits do not change.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from prophet_ext import Engine
from prophet_moe.budget import parse_slots
from prophet_moe.errors import CheckpointError, InvalidArgument, StateError, UnsupportedModelError
from prophet_moe.integrations.vllm.records import PAGE, LayerShape, Records
from prophet_moe.integrations.vllm.settings import Settings
from prophet_moe.integrations.vllm.statistics import Statistics
from prophet_moe.systems import make_predictor

if TYPE_CHECKING:
    from prophet_ext import Predictor

DTYPES = {torch.bfloat16: ("BF16", "bf16"), torch.float16: ("F16", "f16"), torch.float32: ("F32", "f32")}


class ExpertSlots:
    """Layers are added in the order in which they run; then written, then served.

    rank: of this process among all of vLLM's. notes: all that the records depend on besides shapes; None
    where that cannot be told, called when the first weight comes.
    """

    def __init__(
        self, settings: Settings, model: str, rank: int, notes: Callable[[], Mapping[str, str] | None]
    ) -> None:
        self.settings, self.recipe = settings, settings.recipe()
        self.model, self.rank = model, rank
        self._notes = notes
        self._layers: list[LayerShape] = []
        self._missing: list[set[int]] = []  # by layer: experts not written yet
        self._dtype: torch.dtype | None = None
        self._top_k = 0
        self._records: Records | None = None
        self._engine: Engine | None = None
        self._first: list[int] = []  # by layer: its first slot
        self._views: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._slot_of = torch.empty(0, dtype=torch.int32)  # by expert, valid for those of the last lease
        self._statistics: Statistics | None = None

    # Loading

    def add(self, shape: LayerShape, dtype: torch.dtype, top_k: int) -> int:
        """The number of the layer. Raises UnsupportedModelError: its experts are not like the others'."""
        if self._layers and (
            replace(shape, name="") != replace(self._layers[0], name="") or dtype != self._dtype
        ):
            raise UnsupportedModelError(
                f"Prophet cannot serve this model in vLLM: the experts of {shape.name} differ in number or "
                f"shape from those of {self._layers[0].name}. Without PROPHET_VLLM_SLOTS vLLM keeps them all."
            )
        self._layers.append(shape)
        self._missing.append(set(range(shape.experts)))
        self._dtype, self._top_k = dtype, max(self._top_k, min(top_k, shape.experts))
        return len(self._layers) - 1

    def wants_weights(self) -> bool:
        """False where the records of an earlier start hold them. All layers must have been added.

        Raises WriteError, StateError (the engine is open).
        """
        if self._engine is not None:
            raise StateError("experts in slots cannot be replaced: start vLLM anew for other weights.")
        if self._records is None:
            name = f"experts-rank{self.rank}.safetensors"
            self._records = Records(self.settings.records, name, self._layers, self._notes())
            weakref.finalize(self, self._records.close)
            if not self._records.fresh:
                self._missing = [set() for _ in self._layers]
        return self._records.fresh

    def write(self, layer: int, expert: int, w13: torch.Tensor, w2: torch.Tensor) -> None:
        """One expert in the kernel's layout."""
        assert self._records is not None
        self._records.write(layer, expert, w13, w2)
        self._missing[layer].discard(expert)

    def finish(self) -> None:
        """All weights are loaded: the engine opens. Idempotent.

        Raises CheckpointError (an expert never came), InvalidArgument (too few slots; a predictor of another
        model), PredictorError, WriteError.
        """
        if self._engine is not None:
            return
        self.wants_weights()
        assert self._records is not None
        for shape, missing in zip(self._layers, self._missing, strict=True):
            if missing:
                raise CheckpointError(
                    f"expert {min(missing)} of {shape.name} was not loaded, nor were {len(missing) - 1} more "
                    "of this layer: files are missing, or vLLM was told to load dummy weights."
                )
        self._records.seal()
        self._open(self._records)
        self._records.close()

    def _open(self, records: Records) -> None:
        shape, layers = self._layers[0], len(self._layers)
        total = layers * shape.experts
        try:
            slots = parse_slots(self.settings.slots, total)
        except ValueError as error:
            raise InvalidArgument(f"PROPHET_VLLM_SLOTS: {error}") from error
        if slots < layers * self._top_k:
            raise InvalidArgument(
                f"PROPHET_VLLM_SLOTS={self.settings.slots} gives {slots} slots for {layers} layers of "
                f"{shape.experts} experts, and one token needs {self._top_k} in each: name at least "
                f"{layers * self._top_k}."
            )
        predictor = self._predictor(slots / total)
        engine = Engine(
            files=[str(records.path)],
            pieces=records.table(),
            top_k=self._top_k,
            slots=slots,
            policy=str(self.recipe.policy),
            pool="per-layer",
            keep=self.recipe.keep,
            prefetch=self.recipe.prefetch_from_disk(),
            direct=all(size % PAGE == 0 for size in shape.piece_bytes),
            threads=1,  # vLLM's kernel computes
            predictor=predictor,
            planes=True,
        )
        self._engine = engine
        weakref.finalize(self, engine.close)
        self._view(engine)
        self._statistics = Statistics(
            engine,
            shape,
            model=self.model,
            system=self.recipe.name,
            file=self.settings.statistics,
            rank=self.rank,
        )
        weakref.finalize(self, self._statistics.end)  # before the engine closes: last made, first called

    def _predictor(self, share: float) -> Predictor | None:
        file: Path | None = None
        if self.settings.predictor is not None:
            from prophet_moe.predict import shipped

            file = shipped.find(self.settings.predictor)
        return make_predictor(
            self.recipe,
            layers=len(self._layers),
            experts_per_layer=self._layers[0].experts,
            top_k=self._top_k,
            share=share,
            file=file,
        )

    def _view(self, engine: Engine) -> None:
        """The two arrays of each layer's slots."""
        shape = self._layers[0]
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The given buffer is not writable")
            arena = torch.frombuffer(engine.arena(), dtype=torch.uint8)
        sizes = [size * engine.slots for size in shape.piece_bytes]
        w13, w2 = (
            part.view(self._dtype).view(engine.slots, *matrix)
            for part, matrix in zip(arena.split(sizes), (shape.w13, shape.w2), strict=True)
        )
        first = 0
        for layer in range(len(self._layers)):
            end = first + engine.pool_slots(layer)
            self._first.append(first)
            self._views.append((w13[first:end], w2[first:end]))
            first = end
        self._slot_of = torch.full((shape.experts,), -1, dtype=torch.int32)

    # Serving

    def report(self) -> dict[str, Any]:
        """What happened so far. Raises StateError: not open."""
        if self._statistics is None:
            raise StateError("the engine is not open yet: nothing has happened.")
        return self._statistics.report()

    def arrays(self, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """w13 and w2 of the layer's slots, [slots, rows, columns], dense; nothing here may write to them."""
        return self._views[layer]

    def serve(
        self, layer: int, ids: torch.Tensor, weights: torch.Tensor, x: torch.Tensor
    ) -> Iterator[tuple[slice, torch.Tensor]]:
        """(rows, slots int32 [rows, k]) in turn: while the caller is at one, its slots hold those experts.

        ids: int64 [n, k], all below the layer's experts; weights [n, k] and x [n, hidden] are for the
        predictor. Raises ReadError, StateError (not open).
        """
        engine = self._engine
        if engine is None:
            raise StateError("the engine is not open: vLLM asked for a layer before all weights were loaded.")
        counts = ids.flatten().bincount(minlength=self._layers[layer].experts)
        engine.step(layer, len(ids), counts.tolist())
        if engine.predictor:
            _observe(engine, layer, ids, weights, x)
        for rows, experts in by_token(ids, engine.pool_slots(layer)):
            with engine.lease(layer, experts) as lease:
                first, size = self._first[layer], self._layers[layer].piece_bytes[0]
                held = [lease.wait(expert)[0] // size - first for expert in experts]
                self._slot_of[experts] = torch.tensor(held, dtype=torch.int32)
                yield rows, self._slot_of[ids[rows]]


def by_token(ids: torch.Tensor, room: int) -> Iterator[tuple[slice, list[int]]]:
    """Runs of rows whose experts together are at most `room`, with these experts, ascending.

    ids: [n, k] with k <= room.
    """
    union = ids.unique().tolist()
    if len(union) <= room:
        yield slice(0, len(ids)), union
        return
    begin, experts = 0, set[int]()
    for row, chosen in enumerate(ids.tolist()):
        if len(experts.union(chosen)) > room:
            yield slice(begin, row), sorted(experts)
            begin, experts = row, set()
        experts.update(chosen)
    yield slice(begin, len(ids)), sorted(experts)


def _observe(engine: Engine, layer: int, ids: torch.Tensor, weights: torch.Tensor, x: torch.Tensor) -> None:
    ids, weights, last = ids.contiguous(), weights.float().contiguous(), x[-1].contiguous()
    engine.observe(
        layer,
        ids.shape[0],
        ids.shape[1],
        ids.data_ptr(),
        weights.data_ptr(),
        "f32",
        last.data_ptr(),
        last.shape[0],
        DTYPES[last.dtype][1],
    )


def describe(name: str, w13: torch.Tensor, w2: torch.Tensor, experts: int) -> LayerShape:
    """The shape of a layer from one expert [1, rows, columns] in the kernel's layout."""
    if w13.dtype not in DTYPES:
        raise UnsupportedModelError(f"the experts of {name} are {w13.dtype}: Prophet holds {list(DTYPES)}.")
    shapes: list[Any] = [tuple(matrix.shape[1:]) for matrix in (w13, w2)]
    return LayerShape(name, experts, shapes[0], shapes[1], DTYPES[w13.dtype][0], w13.dtype.itemsize)
