"""Types of the native module: see docs/architecture.md for the rooms behind it.

`prophet_ext` needs neither torch nor transformers; tensors cross as raw addresses that stay
the caller's. Times are nanoseconds, sizes bytes.
"""

from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

__version__: str

class ProphetError(RuntimeError): ...
class InvalidArgument(ProphetError, ValueError): ...
class ReadError(ProphetError, OSError): ...
class DeviceError(ProphetError): ...
class StateError(ProphetError): ...

class Engine:
    """A bounded set of experts in fast memory over the files that hold all of them."""

    def __init__(
        self,
        *,
        files: Sequence[str],
        pieces: NDArray[np.uint64],
        # [layers, experts, pieces, 3]: file number, offset, bytes of each tensor of each expert.
        top_k: int,
        slots: int,
        policy: str = "lru",
        pool: str = "global",
        keep: bool = True,
        # False: every expert is dropped after its use (the on-demand floor).
        io: str = "auto",  # | uring | pread: how files are read
        direct: bool = True,
        # Read past the page cache (O_DIRECT) where the file system allows it.
        threads: int = 0,  # of compute; 0: one per core that this process may use
        depth: int = 16,
        chunk_bytes: int = 1 << 20,
        timeline: bool = False,
        predictor: Predictor | None = None,
        # Forecasts of next use for the policy; every engine makes its own copy.
        prefetch: dict[str, int | float | str] | None = None,
        # What to bring early by its forecasts: first, last (layers ahead), least (probability), staging
        # (probability from which the host pool of a device gets them), per_layer,
        # order (confidence | deadline | proximity), discount, fill. None: nothing.
        planes: bool = False,
        # The arena as [slots, ...] arrays, one for each piece, in place of one slot after the other.
        backend: str = "cpu",  # | cuda: where the experts stand and are computed
        memory: int = 0,
        memory_bytes: int = 0,
        # cuda: device memory for the arena that stays the caller's; 0: an allocation of the engine's.
        pool_bytes: int = 0,
        # cuda: host memory that keeps bytes of files between disk and device; 0: 1 GiB.
        device_forecasts: bool = False,  # cuda: a trained predictor runs there, a launch more per layer
    ) -> None: ...
    @property
    def layers(self) -> int: ...
    @property
    def experts_per_layer(self) -> int: ...
    @property
    def top_k(self) -> int: ...
    @property
    def slots(self) -> int: ...
    @property
    def slot_bytes(self) -> int: ...
    @property
    def arena_bytes(self) -> int: ...
    @property
    def policy(self) -> str: ...
    @property
    def threads(self) -> int: ...
    @property
    def predictor(self) -> str:
        """Its kind; empty without one."""
    @property
    def foresight_failure(self) -> str:
        """Why the predictor was switched off; empty while it works."""
    @property
    def device_forecasts_lack(self) -> str:
        """Why the device does not forecast; empty where it does. Known once set_ffn was called."""
    @property
    def backend(self) -> str: ...
    @property
    def io(self) -> str:
        """One line: how bytes are moved, for people."""
    def pool_slots(self, layer: int) -> int:
        """Slots that one layer can use at most: how many experts one lease may name."""
    @property
    def emulated(self) -> bool:
        """The device is none: the CUDA library is the emulated one of the tests."""
    @property
    def host_visible(self) -> bool:
        """Whether the arena is memory that Python can view."""
    def arena(self) -> memoryview:
        """All slots as one read-only run of bytes; valid until close(). StateError on a device."""
    def read(self, at: int, bytes: int, to: int) -> None:
        """Copies `bytes` of the arena from byte `at` on to the host address `to`, wherever the arena is;
        hold a lease meanwhile. Releases the GIL."""
    def set_ffn(
        self,
        *,
        hidden: int,
        inter: int,
        dtype: str,
        activation: str,
        has_gate: bool,
        gate: tuple[int, int],
        up: tuple[int, int],
        down: tuple[int, int],
    ) -> None:
        """Describes the experts to `forward`: dtype is bf16 | f16 | f32, gate/up/down are
        (piece, byte offset inside the piece) of the [I,H], [I,H], [H,I] matrices."""
    def forward(
        self,
        layer: int,
        tokens: int,
        x: int,
        dtype: str,
        ids: int,
        weights: int,
        weights_dtype: str,
        out: int,
        top_k: int,
        stream: int | None = None,
    ) -> None:
        """One MoE layer for `tokens` rows: x [tokens,H] and out [tokens,H] of `dtype`, ids
        [tokens,top_k] int64 and weights [tokens,top_k] of `weights_dtype`, all dense, given
        by address. Ids >= experts_per_layer are skipped (another rank's). Tokens whose union of experts
        exceeds the slots are served in waves. Releases the GIL. Raises ReadError, DeviceError.
        With backend cuda and a stream (torch.cuda.current_stream().cuda_stream) the addresses are the
        device's, and out is there when the stream has passed; without one they are the host's."""
    def lease(self, layer: int, experts: Sequence[int]) -> Lease:
        """Asks for distinct experts of one layer (at most pool_slots) and pins them. Returns at
        once; reads go on behind it. Raises InvalidArgument, StateError when other leases
        hold the slots."""
    streaming: bool  # whether steps may stream, from the next one on

    def step(self, layer: int, tokens: int = 1, counts: Sequence[int] = ()) -> int:
        """One tick of policies: a MoE layer is about to be served by leases (forward does it itself).

        counts: how many of the tokens chose each expert. A step whose experts exceed the layer's part of the
        slots streams: it displaces little of what other steps need. Returns how many absent experts to lease
        at a time."""
    def observe(
        self,
        layer: int,
        tokens: int,
        top_k: int,
        ids: int,
        weights: int,
        weights_dtype: str,
        hidden: int,
        hidden_width: int,
        hidden_dtype: str,
    ) -> None:
        """Tells the predictor what the router of a leased layer said: ids [tokens,top_k] int64, weights
        [tokens,top_k], and what the router read for the last token, [hidden_width], or address 0.
        `forward` does it itself. Nothing happens without a predictor."""
    def approach(
        self, layer: int, tokens: int, ids: int = 0, entering: int = 0, width: int = 0, dtype: str = "f32"
    ) -> None:
        """Tells the predictor what is known before the attention of a layer, in the order of layers: ids
        [tokens] int64 of the tokens fed, before layer 0 alone, and what enters the layer for the last token,
        [width]; address 0: not told. Nothing happens where the predictor reads none of it."""
    def streams(self, rows: Sequence[int]) -> None:
        """Which sequence each row of the coming layer calls belongs to; empty: all to one. The predictor
        keeps a history for each, and forgets those of which a pass has no row. Calls with another number of
        rows go without. Only from the thread that runs the layers."""
    def want(self, entries: Sequence[tuple[int, int, float, int]]) -> None:
        """Restates the whole set of wished prefetches: (layer, expert, confidence, deadline tick)."""
    def state(self, layer: int, expert: int) -> str:
        """absent | queued | loading | resident | leased"""
    def counters(self) -> dict[str, int]:
        """Everything counted since the engine was made (docs/formats.md lists the keys)."""
    def timeline(self) -> dict[str, NDArray[np.int64]]:
        """Recorded events as columns (begin, end, kind, layer, expert, bytes); empty unless asked for."""
    def timeline_kinds(self) -> list[str]: ...
    def close(self) -> None:
        """Waits for running reads, frees the arena. Later calls raise StateError. Idempotent."""
    def __enter__(self) -> Engine: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

class Lease:
    """Experts that stay where they are until release()."""

    def wait(self, expert: int) -> list[int]:
        """Blocks until the expert has landed (GIL released); the offset of each piece in the
        arena. Raises ReadError if its bytes could not be brought."""
    def release(self, stream: int | None = None) -> None:
        """Ends when all that is queued on the device's stream so far is done; without one at once.
        Idempotent."""
    def __enter__(self) -> Lease: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

class Predictor:
    """Says what will be needed, from what routers have said (csrc/predict/predictor.h)."""

    @property
    def name(self) -> str: ...
    @property
    def layers(self) -> int: ...
    @property
    def experts_per_layer(self) -> int: ...
    @property
    def top_k(self) -> int: ...
    @property
    def hidden_width(self) -> int:
        """Width of `hidden` that it makes use of; 0: none."""
    @property
    def reads_tokens(self) -> bool:
        """Whether it makes use of `ids`."""
    @property
    def entering_width(self) -> int:
        """Width of `entering` that it makes use of; 0: none."""
    def narrowed(self, most: int) -> Predictor:
        """One like it that forecasts only the `most` likeliest experts of each layer."""
    def joined(self, other: Predictor) -> Predictor:
        """One that joins the forecasts of both for the layers just ahead, weighed by how they come true, and
        is like this one in all else (csrc/predict/joint_predictor.h)."""
    def reset(self) -> None: ...
    def observe(
        self,
        layer: int,
        experts: NDArray[np.int32],
        weights: NDArray[np.float32] | None = None,
        hidden: NDArray[np.float32] | None = None,
    ) -> None:
        """experts, weights [tokens, top_k]; hidden [hidden_width] of the last token."""
    def approach(
        self,
        layer: int,
        tokens: int,
        ids: NDArray[np.int32] | None = None,
        entering: NDArray[np.float32] | None = None,
    ) -> bool:
        """Before the attention of a layer, in a pass of so many tokens: ids [tokens] of layer 0, entering
        [entering_width] of the last token. Whether `forecast` of the layer before has news."""
    def next_use(self, layer: int) -> NDArray[np.float32] | None:
        """Expected turns until each expert of the layer just observed is used again, [experts]; None: no
        opinion."""
    def forecast(self, layer: int) -> NDArray[np.float32]:
        """P(needed by the same token) in the coming layers, [horizons, experts]; below 0.01 it reads 0."""

def systems() -> list[dict[str, Any]]:
    """The recipes of csrc/systems, in the order of tables; recipe.h explains the keys."""

def predictor_names() -> list[str]: ...
def make_predictor(
    name: str,
    *,
    layers: int,
    experts_per_layer: int,
    top_k: int,
    router: NDArray[Any] | None = None,
    router_bias: NDArray[np.float32] | None = None,
    norm: NDArray[np.float32] | None = None,
    horizons: int = 3,
) -> Predictor:
    """One that needs no training. "next-gate" needs router [layers, experts, hidden] float32 or float16 and
    takes router_bias [layers, experts] and norm [layers, hidden], the weights of the norms before the
    routers; it looks at most `horizons` layers ahead, 1 to 3. Raises InvalidArgument."""

def make_layer_mlp(
    name: str,
    *,
    layers: int,
    experts_per_layer: int,
    top_k: int,
    stride: int,
    context: int,
    hidden: int,
    width: int,
    tensors: Mapping[str, NDArray[Any]],
) -> Predictor:
    """A network per layer, from the arrays of its file (csrc/predict/layer_mlp_network.h). Raises
    InvalidArgument."""

def make_text_predictor(
    name: str,
    *,
    layers: int,
    experts_per_layer: int,
    top_k: int,
    vocabulary: int,
    embedding: int,
    width: int,
    tensors: Mapping[str, NDArray[Any]],
) -> Predictor:
    """A network on the text, from the arrays of its file (csrc/predict/text_predictor.h). Raises
    InvalidArgument."""

class BankPredictor(Predictor):
    """The learned forecaster of prophet_moe.predict.export, from the arrays of its file."""

    def __init__(
        self,
        *,
        layers: int,
        experts: int,
        top_k: int,
        rank: int,
        decays: Sequence[float],
        bank: Sequence[int],
        recent: Sequence[tuple[int, bool]],
        heads: int,
        latents: int,
        limits: int,
        limit: int,
        ahead: int,
        pairs: int,
        hidden: int,
        tensors: Mapping[str, NDArray[Any]],
    ) -> None: ...
    def next_use(self, layer: int) -> NDArray[np.float32]: ...
    def forecast(self, layer: int) -> NDArray[np.float32]:
        """Of every expert, however small."""

class TransformerPredictor(Predictor):
    """The transformer of prophet_moe.predict.paper_file, from the arrays of its file."""

    def __init__(
        self,
        *,
        layers: int,
        experts: int,
        top_k: int,
        width: int,
        depth: int,
        attention_heads: int,
        context: int,
        decays: Sequence[float],
        heads: int,
        limits: int,
        limit: int,
        ahead: int,
        history: bool,
        hidden: int,
        tensors: Mapping[str, NDArray[Any]],
    ) -> None: ...
    def next_use(self, layer: int) -> NDArray[np.float32]: ...
    def forecast(self, layer: int) -> NDArray[np.float32]:
        """Of every expert, however small."""

class Replay:
    """A routing trace through the engine on a virtual clock: one link, one processor (csrc/sim/replay.h).

    Raises InvalidArgument for a geometry, slots, machine or chunk that cannot be."""

    def __init__(
        self,
        *,
        layers: int,
        experts_per_layer: int,
        top_k: int,
        slots: int,
        expert_bytes: int,
        policy: str | Callable[[int, int, int], object] = "lru",
        # Also "belady", which must be told the next uses. A callable (layers, experts_per_layer, top_k) makes
        # a policy in Python: victim(candidates, incoming) names one of the candidates, all (layer, expert);
        # arrived, used, left (layer, expert) and tick (layer) are called where it has them.
        pool: str = "global",
        keep: bool = True,
        bytes_per_second: float,
        latency_ns: int = 0,
        # From the end of a chunk's time on the link to its landing.
        overhead_ns: int = 0,
        # Of the link, per chunk.
        chunk_bytes: int = 1 << 20,
        prefetch_chunks: int = 2,
        pass_ns: int = 0,
        layer_ns: int = 0,
        layer_token_ns: int = 0,
        expert_ns: int = 0,
        expert_token_ns: int = 0,
        wait_ns: int = 0,
        predictor: Predictor | None = None,
        prefetch: Mapping[str, Any] | None = None,
        emulate: tuple[float, int] | None = None,
        # In place of a predictor: the true future with this recall, so many layers ahead (0: of the token).
        clairvoyant: bool = False,
        streaming: bool = True,
        # Times are the bound of csrc/sim/clairvoyant.h; with policy "belady" in the global pool.
    ) -> None: ...
    def decode(
        self,
        routes: NDArray[np.integer[Any]],
        gates: NDArray[np.floating[Any]] | None = None,
        next_use: NDArray[np.int64] | None = None,
        batch: int = 1,
        hidden: NDArray[np.floating[Any]] | None = None,
        ids: NDArray[np.integer[Any]] | None = None,
        entering: NDArray[np.floating[Any]] | None = None,
    ) -> None:
        """Forward passes of `batch` tokens each: routes [tokens, layers, top_k], gates the same,
        next_use as NextUse.prepend gave it for these routes, hidden [tokens, layers, width] what the
        routers read, ids [tokens] fed, entering [tokens, layers, width] what enters the layers. Releases the
        GIL."""
    def prefill(
        self,
        routes: NDArray[np.integer[Any]],
        gates: NDArray[np.floating[Any]] | None = None,
        next_use: NDArray[np.int64] | None = None,
        hidden: NDArray[np.floating[Any]] | None = None,
        ids: NDArray[np.integer[Any]] | None = None,
        entering: NDArray[np.floating[Any]] | None = None,
    ) -> None:
        """One forward pass over all tokens."""
    def packed(
        self,
        routes: NDArray[np.integer[Any]],
        passes: NDArray[np.integer[Any]],
        gates: NDArray[np.floating[Any]] | None = None,
        next_use: NDArray[np.int64] | None = None,
        streams: NDArray[np.int64] | None = None,
        ids: NDArray[np.integer[Any]] | None = None,
    ) -> NDArray[np.int64]:
        """Continuous batching: passes [passes, 2] over the rows of `routes` in turn, each of so many tokens
        of which so many are decoded; streams [rows] names the request of each, as Engine.streams. Returns
        when each ended, ns. Releases the GIL."""
    def restart(self) -> None:
        """Empties the cache and forgets all history; what was counted stays."""
    @property
    def rooms(self) -> list[int]:
        """Slots open to each layer."""
    def result(self) -> dict[str, Any]:
        """tokens, passes, prefill_tokens, prefill_ns, prefill_bytes; tpot_ns and stall_ns per decode pass
        {mean, min, p50, p90, p99, p999, max}; layers uint64 [layers, 3]: resident, in flight, miss;
        counters."""

class NextUse:
    """When each expert of a trace is used next, from its last chunk to its first (csrc/sim/next_use.h)."""

    def __init__(self, *, layers: int, experts_per_layer: int, top_k: int, rooms: Sequence[int]) -> None: ...
    def prepend(self, routes: NDArray[np.integer[Any]], batch: int = 1) -> NDArray[np.int64]:
        """For the chunk before those handed in so far, decoded in passes of `batch` tokens."""

class StackDistances:
    """Misses of LRU and of the clairvoyant at every number of slots in one pass (csrc/sim/stack_distance.h).

    Counts are uint64, indexed by slots from 0. Raises InvalidArgument for a geometry
    or chunk that cannot be."""

    def __init__(self, *, layers: int, experts_per_layer: int, top_k: int) -> None: ...
    def decode(self, routes: NDArray[np.integer[Any]], next_use: NDArray[np.int64]) -> None:
        """Tokens decoded one by one: routes [tokens, layers, top_k], next_use as NextUse.prepend gave it for
        them. Releases the GIL."""
    @property
    def accesses(self) -> int: ...
    def lru(self) -> NDArray[np.uint64]:
        """[layers * experts_per_layer + 1], one pool for all layers."""
    def clairvoyant(self) -> NDArray[np.uint64]:
        """The same; no policy misses less."""
    def lru_per_layer(self) -> NDArray[np.uint64]:
        """[layers, experts_per_layer + 1], a pool for each layer."""
    def clairvoyant_per_layer(self) -> NDArray[np.uint64]: ...

def kernel_isa() -> str: ...
def kernel_isas() -> list[str]: ...
def set_kernel_isa(isa: str) -> None: ...
def eviction_policies() -> list[str]: ...
def build_info() -> dict[str, str]:
    """compiler, uring ("yes"/"no"), version."""

def cuda_info() -> dict[str, Any]:
    """What there is of CUDA; never raises.

    library (path), loaded, devices (that the driver shows; 0: none can be used), reason (a sentence
    where that is so), device: None, or of the first usable one name, pci_bus_id, capability (major,
    minor), memory_total, memory_free, multiprocessors, copy_engines, can_map_host, shared_memory_most,
    driver_version, runtime_version (13000: CUDA 13.0), emulated."""

def cuda_bandwidth(seconds: float) -> dict[str, float | bool]:
    """Bytes per second between host and device, each measured for about `seconds`: to_device, to_host,
    both_to_device, both_to_host (at once), pageable_to_device; registers: whether memory that exists can be
    page-locked. Raises DeviceError."""

def read_bandwidth(
    path: str, seconds: float, chunk_bytes: int = 1 << 20, depth: int = 16, io: str = "auto"
) -> dict[str, Any]:
    """Random reads of a file past the page cache: bytes_per_second, seconds, bytes, p50_ms, p99_ms and io
    (one line: how bytes were moved)."""

def memory_bandwidth(threads: int, seconds: float) -> float:
    """Bytes per second that `threads` threads read from DRAM."""
