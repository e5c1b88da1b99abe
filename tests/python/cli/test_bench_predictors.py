"""`prophet bench --predictor A,B`: each file goes to the system it was trained for."""

import pytest

from prophet_moe.cli.bench import trained_for


def test_a_file_is_for_its_system_alone() -> None:
    found = trained_for("prophet", "reference-moe")
    assert found is not None
    assert found.endswith("reference-moe.safetensors")
    assert trained_for("auto", "reference-moe") == found
    assert trained_for("lru", "reference-moe") is None
    assert trained_for("prophet", None) is None


def test_two_files_for_one_system_are_refused() -> None:
    with pytest.raises(ValueError, match="names two files for prophet"):
        trained_for("prophet", "reference-moe,gpt-oss-20b")
