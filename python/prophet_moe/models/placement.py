"""Where experts stand and where torch computes: on the CPU, or on a GPU."""

from dataclasses import dataclass

import torch

from prophet_ext import cuda_info
from prophet_moe.errors import DeviceError, InvalidArgument

BACKENDS = ("auto", "cpu", "cuda")
PAGE = 4096


@dataclass(frozen=True)
class Placement:
    """One machine to run on."""

    backend: str  # the engine's: cpu or cuda
    label: str  # for reports: cpu, cuda, cuda (emulated)
    torch: torch.device  # where everything but the experts stands
    free: int = 0  # bytes of device memory

    @property
    def on_device(self) -> bool:
        """Experts stand on a GPU."""
        return self.backend == "cuda"

    @property
    def whole_model(self) -> bool:
        """So does everything else."""
        return self.torch.type == "cuda"

    def arena(self, slots: int, slot_bytes: int) -> torch.Tensor | None:
        """Device memory of torch's own allocator for the experts, on a page; None: the engine allocates."""
        if not self.whole_model:
            return None
        bytes_ = slots * slot_bytes
        raw = torch.empty(bytes_ + PAGE, dtype=torch.uint8, device=self.torch)
        return raw[-raw.data_ptr() % PAGE :][:bytes_]


CPU = Placement("cpu", "cpu", torch.device("cpu"))


def place(backend: str) -> Placement:
    """Decides by name; auto takes a GPU where one can be used.

    Raises InvalidArgument for other names, DeviceError where cuda was asked for and cannot be had.
    """
    if backend not in BACKENDS:
        raise InvalidArgument(f"backend is one of {', '.join(BACKENDS)}, not {backend!r}.")
    if backend == "cpu":
        return CPU
    info = cuda_info()
    device = info["device"]
    if device is None:
        if backend == "cuda":
            raise DeviceError(str(info["reason"]))
        return CPU
    free = int(device["memory_free"])
    if device["emulated"]:
        return Placement("cuda", "cuda (emulated)", torch.device("cpu"), free)
    if not torch.cuda.is_available():
        if backend == "auto":
            return CPU
        return Placement("cuda", "cuda", torch.device("cpu"), free)
    return Placement("cuda", "cuda", torch.device("cuda", _torch_index(str(device["pci_bus_id"]))), free)


def _torch_index(bus: str) -> int:
    """torch's number of the device at a PCI address such as 0000:3b:00.0."""
    domain, number, rest = bus.split(":")
    wanted = (int(domain, 16), int(number, 16), int(rest.split(".")[0], 16))
    for index in range(torch.cuda.device_count()):
        found = torch.cuda.get_device_properties(index)
        if (found.pci_domain_id, found.pci_bus_id, found.pci_device_id) == wanted:
            return index
    raise DeviceError(
        f"torch does not see the GPU at {bus} that Prophet would use: check CUDA_VISIBLE_DEVICES, or use "
        "backend cpu."
    )
