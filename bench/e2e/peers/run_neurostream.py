"""neurostream on the CPU, from GGUF. Its two budgets cover buffers and pinned weights, not the process."""

from workload import Workload, unavailable

workload = Workload(__doc__, mem_budget="128MB", ram_budget="512MB")
try:
    import neurostream
    import torch
except (ImportError, OSError, RuntimeError) as error:
    unavailable("neurostream", error)

given = workload.given
torch.set_num_threads(given.threads)
model = neurostream.NeuroStream(
    given.model, mem_budget=given.mem_budget, ram_budget=given.ram_budget, vram_budget=0, device="cpu"
)
# Its public interface has no place for forced tokens; version 0.2.1 picks each token by this method.
model._sample = lambda logits, *_: workload.token(logits.argmax())
workload.loaded()
for _ in model.generate(workload.prompt, max_tokens=workload.positions, stop_on_eos=False):
    pass
workload.emit("neurostream", neurostream.__version__, budgets=[given.mem_budget, given.ram_budget])
model.close()
