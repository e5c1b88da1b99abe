"""How many of torch's threads a decode step is worth.

Every matrix product wakes torch's other threads and waits for them. Where they sleep in between
(OMP_WAIT_POLICY=passive), that takes tens of microseconds on an idle machine and hundreds on a busy one, in
which one core reads some MiB of weights. Products smaller than that, on average, are faster on one thread.
"""

import threading
from typing import Any

import torch

ROWS = 8  # tokens of a forward up to which weights are read for little arithmetic: a decode step
WORTH_WAKING = 4 << 20  # bytes that a matrix product must read to win from a second thread


def one_thread_is_faster(model: Any, kv_bytes_per_layer: int) -> bool:
    """Whether decode steps of `model` (without its experts) read too little at a time for several threads.

    kv_bytes_per_layer: bytes of one layer's KV cache when the context is full, which attention reads at once.
    """
    head = model.get_output_embeddings()
    table = model.get_input_embeddings().weight
    skipped = None if head is not None and head.weight is table else table  # a token looks up one row of it
    sizes = [p.nbytes for p in model.parameters() if p.dim() == 2 and p is not skipped]
    return kv_bytes_per_layer < WORTH_WAKING and sum(sizes) < WORTH_WAKING * len(sizes)


def decode_on_one_thread(model: Any) -> None:
    """From now on forwards of `model` over at most ROWS tokens run on one thread of torch.

    The number that the caller has set holds before, after and for all others, also when a forward raises.
    """
    state = threading.local()

    def before(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = kwargs.get("input_ids", args[0] if args else None)
        if given is None:
            given = kwargs.get("inputs_embeds")
        state.threads = None
        if isinstance(given, torch.Tensor) and given.dim() >= 2 and given.shape[:2].numel() <= ROWS:
            state.threads = torch.get_num_threads()
            torch.set_num_threads(1)

    def after(module: Any, args: Any, output: Any) -> None:
        threads, state.threads = getattr(state, "threads", None), None
        if threads is not None:
            torch.set_num_threads(threads)

    model.register_forward_pre_hook(before, with_kwargs=True)
    model.register_forward_hook(after, always_call=True)
