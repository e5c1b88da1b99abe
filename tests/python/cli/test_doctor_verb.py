"""prophet doctor prints its checks and exits with 1 on a failure."""

import json
from pathlib import Path
from typing import Any

import pytest

from prophet_moe import doctor


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "MEASURE_SECONDS", 0.05)
    monkeypatch.setattr(doctor, "PROBE_BYTES", 8 << 20)


def test_lines(prophet: Any, tmp_path: Path) -> None:
    done = prophet("doctor", "--path", str(tmp_path))
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert all(line.startswith(("[ok]", "[warn]", "        fix: ")) for line in lines[:-1])
    assert lines[-1].startswith("next: ")


def test_json(prophet: Any, tmp_path: Path) -> None:
    told = json.loads(prophet("doctor", "--path", str(tmp_path), "--json").stdout)
    assert set(told) == {"checks", "next"}
    assert {"level", "name", "detail", "fix"} == set(told["checks"][0])


def test_a_failure_exits_with_1_and_names_the_fix(
    prophet: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        doctor, "memory_checks", lambda: iter([doctor.Check("FAIL", "memory", "[none]", "buy some")])
    )
    done = prophet("doctor", "--path", str(tmp_path))
    assert done.exit_code == 1
    assert "[FAIL] memory: [none]" in done.stdout
    assert done.stdout.splitlines()[-1] == "next: buy some, then prophet doctor again"
