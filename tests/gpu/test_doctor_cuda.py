"""What prophet doctor says of CUDA: on a device, and on machines where something is wrong."""

import json
from pathlib import Path

import pytest
from emulated_cuda import EmulatedCuda
from typer.testing import CliRunner

import prophet_ext
from prophet_moe import doctor, doctor_cuda
from prophet_moe.doctor_check import Check
from prophet_moe.errors import DeviceError, ProphetError

SECONDS = 0.02


def checks() -> dict[str, Check]:
    found = list(doctor_cuda.cuda_checks(SECONDS))
    assert all(check.fix for check in found if check.level != "ok")
    return {check.name: check for check in found}


def test_a_sound_device_is_described_and_measured() -> None:
    found = checks()
    assert list(found) == ["CUDA device", "CUDA driver", "CUDA memory", "CUDA link", "page-locking"]
    assert found["CUDA device"].level == "ok"
    info = prophet_ext.cuda_info()["device"]
    assert info["name"] in found["CUDA device"].detail
    assert ("emulated" in found["CUDA device"].detail) == info["emulated"]
    assert ("emulated" in found["CUDA link"].detail) == info["emulated"]


def test_bandwidths_are_those_of_the_link(emulated: EmulatedCuda) -> None:
    emulated.machine(GBPS=0.2)
    found = prophet_ext.cuda_bandwidth(0.05)
    for name in ("to_device", "to_host", "both_to_device", "both_to_host"):
        assert 0.05e9 < found[name] < 0.21e9, name
    assert found["both_to_device"] + found["both_to_host"] > 1.2 * found["to_device"], "two engines"
    assert found["pageable_to_device"] < 0.09e9, "staging costs"
    assert found["registers"] is True


@pytest.mark.parametrize(
    ("machine", "words"),
    [
        ({"DRIVER": 0}, "No NVIDIA driver is installed"),
        ({"DRIVER": 11040}, "The NVIDIA driver supports CUDA 11.4"),
        ({"DEVICES": 0}, "CUDA_VISIBLE_DEVICES"),
        ({"CAPABILITY": "7.5", "IMAGE": 0}, "compute capability 7.5"),
        ({"FAIL": "cudaSetDevice:0=46"}, "busy or unavailable"),
    ],
)
def test_no_usable_device(
    emulated: EmulatedCuda, machine: dict[str, object], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    emulated.machine(**machine)
    monkeypatch.setattr(doctor_cuda, "present", lambda: True)
    check = checks()["CUDA"]
    assert check.level == "warn"
    assert words in check.detail
    monkeypatch.setattr(doctor_cuda, "present", lambda: False)
    assert checks()["CUDA"].level == "ok", "a machine without a GPU is in order"
    with pytest.raises(DeviceError, match=words):
        prophet_ext.cuda_bandwidth(SECONDS)


def test_little_memory(emulated: EmulatedCuda) -> None:
    emulated.machine(MEMORY_MB=4)
    found = checks()
    assert "out of memory" in found["CUDA link"].detail
    assert found["CUDA link"].level == "warn"


def test_page_locking_refused(emulated: EmulatedCuda) -> None:
    emulated.fail("cudaHostRegister:0=801")
    found = checks()
    assert found["page-locking"].level == "warn"
    assert "memlock" in found["page-locking"].fix
    emulated.machine(PINNED_MB=1)
    assert "page-locking 8 MiB failed" in checks()["CUDA link"].detail


def test_every_failing_call_is_a_sentence_and_nothing_leaks(emulated: EmulatedCuda) -> None:
    emulated.machine()
    prophet_ext.cuda_bandwidth(0)
    calls = emulated.calls()
    before = emulated.live()
    assert calls > 50
    raised: list[ProphetError] = []
    for n in range(1, calls + 1):
        emulated.fail(f"*:{n}=2")
        try:
            prophet_ext.cuda_bandwidth(0)
        except ProphetError as error:
            raised.append(error)
        emulated.machine()
        assert emulated.live() == before, f"call {n} left something behind"
    assert len(raised) > calls // 2, "a failing call went unnoticed (only giving back may)"
    assert {type(error) for error in raised} == {DeviceError}
    assert all(str(error).endswith(".") for error in raised)


@pytest.mark.parametrize("call", ["cudaMemcpyAsync", "cudaStreamSynchronize", "cudaMalloc"])
def test_a_device_lost_on_the_way(emulated: EmulatedCuda, call: str) -> None:
    emulated.fail(f"{call}:2=719")
    with pytest.raises(DeviceError, match="start it again"):
        prophet_ext.cuda_bandwidth(0)


def test_the_verb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from prophet_moe.cli import app

    monkeypatch.setattr(doctor, "MEASURE_SECONDS", 0.05)
    monkeypatch.setattr(doctor, "PROBE_BYTES", 1 << 23)
    done = CliRunner().invoke(app, ["doctor", "--path", str(tmp_path), "--json", "--quiet"])
    assert done.exit_code == 0, done.output
    names = [check["name"] for check in json.loads(done.stdout)["checks"]]
    assert "CUDA device" in names
    assert names.index("memory") < names.index("CUDA device") < names.index("disk read")
