"""The doctor's look at CUDA: library, driver, device, the link to it, and memory that can be page-locked."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import prophet_ext
from prophet_moe.budget import MIB, format_size
from prophet_moe.doctor_check import Check
from prophet_moe.errors import DeviceError

DRIVER = Path("/proc/driver/nvidia")
SLOW_LINK = 3e9  # bytes per second; a fast NVMe disk alone brings as much
LITTLE_MEMORY = 1024 * MIB


def present(driver: Path = DRIVER) -> bool:
    """Whether this machine has a driver of NVIDIA's running, whatever Prophet can make of it."""
    return driver.exists()


def cuda_checks(seconds: float) -> Iterator[Check]:
    """Each link measurement takes about `seconds`. A machine without a GPU is as well as one with."""
    info = prophet_ext.cuda_info()
    if not info["devices"]:
        yield _without(info)
        return
    device = info["device"]
    label = f"{device['name']} (emulated: no GPU at all)" if device["emulated"] else device["name"]
    major, minor = device["capability"]
    more = f"; {info['devices']} devices, the first usable one is taken" if info["devices"] > 1 else ""
    yield Check(
        "ok", "CUDA device", f"{label}, compute capability {major}.{minor}, {device['pci_bus_id']}{more}"
    )
    yield Check(
        "ok",
        "CUDA driver",
        f"supports CUDA {_version(device['driver_version'])}, "
        f"the library needs {_version(device['runtime_version'])}",
    )
    yield _memory(device)
    try:
        measured = prophet_ext.cuda_bandwidth(seconds)
    except DeviceError as error:
        yield Check(
            "warn",
            "CUDA link",
            f"not measured: {error}",
            "free memory of the device and of the host, and allow locked memory (ulimit -l unlimited)",
        )
        return
    yield _link(measured, bool(device["emulated"]))
    yield _page_locking(measured)


def _version(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"


def _without(info: dict[str, Any]) -> Check:
    if not present() and not info["loaded"]:
        return Check("ok", "CUDA", "no GPU here and no CUDA library in this build: experts run on the CPU")
    if not present():
        return Check("ok", "CUDA", f"no GPU is used: {info['reason']}")
    return Check(
        "warn",
        "CUDA",
        f"an NVIDIA driver is here, but no GPU can be used: {info['reason']}",
        "mend what the sentence names; until then experts run on the CPU",
    )


def _memory(device: dict[str, Any]) -> Check:
    free, total = device["memory_free"], device["memory_total"]
    detail = f"{format_size(free)} of {format_size(total)} free"
    if free < min(LITTLE_MEMORY, total // 2):
        return Check(
            "warn", "CUDA memory", detail, "end other programs on the device (nvidia-smi lists them)"
        )
    return Check("ok", "CUDA memory", detail)


def _link(measured: dict[str, float | bool], emulated: bool) -> Check:
    def rate(name: str) -> str:
        return f"{measured[name] / 1e9:.1f}"

    detail = (
        f"{rate('to_device')} GB/s to the device, {rate('to_host')} back, both at once "
        f"{rate('both_to_device')} and {rate('both_to_host')}; from pageable memory "
        f"{rate('pageable_to_device')} ({'emulated' if emulated else 'measured'})"
    )
    if measured["to_device"] < SLOW_LINK and not emulated:
        return Check(
            "warn",
            "CUDA link",
            detail,
            "look at the slot: nvidia-smi -q -d PCIE shows its width and generation under load",
        )
    return Check("ok", "CUDA link", detail)


def _page_locking(measured: dict[str, float | bool]) -> Check:
    if measured["registers"]:
        return Check("ok", "page-locking", "memory can be allocated page-locked, and registered")
    return Check(
        "warn",
        "page-locking",
        "memory can be allocated page-locked, but registering memory that exists is refused",
        "raise the limit on locked memory (ulimit -l unlimited; in a container --ulimit memlock=-1)",
    )
