"""What transformers has and Prophet refuses: the list of names is held to the installed library."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import tiny_models
from transformers import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from prophet_moe.errors import UnsupportedModelError
from prophet_moe.models.families import UNDECORATED_FAMILIES, read_config
from prophet_moe.models.inspect import make_blueprint

REGISTERED = "use_experts_implementation"


def modeling(folder: str) -> str:
    spec = importlib.util.find_spec("transformers")
    assert spec is not None
    path = Path(spec.origin or "").parent / "models" / folder / f"modeling_{folder}.py"
    return path.read_text() if path.is_file() else ""


@pytest.mark.parametrize("family", UNDECORATED_FAMILIES)
def test_refused_by_name(family: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(f'{{"model_type": "{family}"}}')
    with pytest.raises(
        UnsupportedModelError, match=rf"^{family} is not supported yet: .*Use transformers directly"
    ):
        make_blueprint(tmp_path)


@pytest.mark.parametrize("family", UNDECORATED_FAMILIES)
def test_the_library_has_not_registered_them_meanwhile(family: str) -> None:
    source = modeling(family.removesuffix("_text"))
    assert REGISTERED not in source, (
        f"{family} is registered now: take it off the list and add it to the tests"
    )


@pytest.mark.parametrize("family", tiny_models.FAMILIES)
def test_the_supported_ones_are_registered(family: str) -> None:
    folder = CONFIG_MAPPING[family].__module__.split(".")[-2]
    assert REGISTERED in modeling(folder)


def test_most_registered_language_models_are_among_the_tests() -> None:
    """A family that a new release of transformers adds should be tried."""
    registered = {
        name
        for name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
        if name in CONFIG_MAPPING and REGISTERED in modeling(CONFIG_MAPPING[name].__module__.split(".")[-2])
    }
    folders = {CONFIG_MAPPING[name].__module__.split(".")[-2] for name in tiny_models.FAMILIES}
    untried = {name for name in registered if CONFIG_MAPPING[name].__module__.split(".")[-2] not in folders}
    assert len(untried) <= 6, sorted(untried)


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen3", "mistral"])
def test_dense_models(family: str, tmp_path: Path) -> None:
    tiny_models.build(family).save_pretrained(tmp_path)
    with pytest.raises(UnsupportedModelError, match=rf"{family} is a dense model: it has no routed experts"):
        make_blueprint(tmp_path)


@pytest.mark.parametrize(
    ("extra", "method"),
    [
        ({"quantization_config": {"quant_method": "mxfp4"}}, "MXFP4"),
        ({"quantization_config": {"quant_method": "fp8"}}, "FP8"),
        ({"text_config": {"quantization_config": {"quant_method": "awq"}}}, "AWQ"),
    ],
)
def test_quantised_by_name(extra: dict[str, Any], method: str, tmp_path: Path) -> None:
    import json

    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen3_moe"} | extra))
    with pytest.raises(UnsupportedModelError, match=rf"is quantised \({method}\).*Use the bf16"):
        read_config(tmp_path)
