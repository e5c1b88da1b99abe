"""What the environment asks of the vLLM plug-in, and the sentences for what it cannot have."""

from pathlib import Path

import pytest

from prophet_moe.errors import InvalidArgument
from prophet_moe.integrations import vllm
from prophet_moe.integrations.vllm.settings import Settings
from prophet_moe.integrations.vllm.support import require_apart


def test_nothing_is_asked_for_without_slots() -> None:
    assert (
        Settings.from_environment({"PATH": "/bin", "PROPHET_ROUTES": "x", "PROPHET_VLLM_SLOTS": " "}) is None
    )


def test_register_does_nothing_unless_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PROPHET_VLLM_SLOTS", raising=False)
    vllm.register()  # would import vLLM, which this environment need not have


def test_every_variable_is_read() -> None:
    given = {
        "PROPHET_VLLM_SLOTS": "25%",
        "PROPHET_VLLM_RECORDS": "records",
        "PROPHET_VLLM_PREDICTOR": "reference-moe",
        "PROPHET_VLLM_STATISTICS": "counters.json",
    }
    wanted = Settings("25%", Path("records"), "prophet", "reference-moe", Path("counters.json"))
    assert Settings.from_environment(given) == wanted
    assert Settings.from_environment({"PROPHET_VLLM_SLOTS": "96"}) == Settings("96")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"SLOTS": "half"}, "PROPHET_VLLM_SLOTS: 'half'"),
        ({"SLOTS": "0"}, "PROPHET_VLLM_SLOTS"),
        ({"RECORDS": "somewhere"}, "PROPHET_VLLM_SLOTS is not"),
        ({"SLOTS": "50%", "SLOT": "1"}, "PROPHET_VLLM_SLOT is not a setting"),
        ({"SLOTS": "50%", "SYSTEM": "magic"}, "'magic' is not a system"),
        ({"SLOTS": "50%", "SYSTEM": "clairvoyant"}, "knows the future"),
        ({"SLOTS": "50%", "SYSTEM": "prophet"}, "PROPHET_VLLM_PREDICTOR"),
        ({"SLOTS": "50%", "SYSTEM": "lru", "PREDICTOR": "x"}, "leave one of the two out"),
        ({"SLOTS": "50%", "SYSTEM": "fate"}, "fate"),
    ],
)
def test_what_cannot_be_is_refused(given: dict[str, str], words: str) -> None:
    with pytest.raises(InvalidArgument, match=words):
        Settings.from_environment({f"PROPHET_VLLM_{name}": value for name, value in given.items()})


def test_records_stay_out_of_the_model(tmp_path: Path) -> None:
    require_apart(None, str(tmp_path))
    require_apart(tmp_path / "records", str(tmp_path))
    require_apart(Path("records"), "org/model")
    with pytest.raises(InvalidArgument, match="name another one"):
        require_apart(tmp_path / "records" / "..", str(tmp_path))
