"""llama.cpp through llama-cpp-python: a GGUF file, weights mapped, the page cache decides what stays."""

from workload import Workload, unavailable

workload = Workload(__doc__)
try:
    import llama_cpp
except (ImportError, OSError, RuntimeError) as error:
    unavailable("llama-cpp-python", error)

threads = workload.given.threads
model = llama_cpp.Llama(
    workload.given.model,
    n_ctx=512,
    n_threads=threads,
    n_threads_batch=threads,
    use_mmap=True,
    verbose=False,
)


def picked() -> int:
    """The token with the largest logit at the last position."""
    logits = llama_cpp.llama_get_logits_ith(model.ctx, -1)
    return max(range(model.n_vocab()), key=logits.__getitem__)


workload.loaded()
model.eval(workload.prompt)
for _ in range(workload.given.steps):
    model.eval([workload.token(picked())])
workload.token(picked())
features = llama_cpp.llama_print_system_info().decode()
workload.emit("llama-cpp-python", llama_cpp.__version__, features=features)
