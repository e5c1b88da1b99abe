"""transformers with accelerate's disk offload: what device_map="auto" does when memory is short."""

from workload import Workload, unavailable

workload = Workload(__doc__, cpu_memory="200MB", offload_folder="offload")
try:
    import accelerate
    import torch
    import transformers
    from forced import decode
except (ImportError, OSError, RuntimeError) as error:
    unavailable("accelerate", error)

given = workload.given
torch.set_num_threads(given.threads)
model = transformers.AutoModelForCausalLM.from_pretrained(
    given.model,
    device_map="auto",
    max_memory={"cpu": given.cpu_memory},
    offload_folder=given.offload_folder,
    dtype=torch.bfloat16,
)
workload.loaded()
decode(model, workload)
places = getattr(model, "hf_device_map", {}).values()
workload.emit(
    "accelerate",
    f"{accelerate.__version__} with transformers {transformers.__version__}",
    modules_on_disk=sum(str(place) == "disk" for place in places),
    modules=len(places),
)
