"""The predictors that come with the package, found by name or by the geometry of a model."""

from __future__ import annotations

from pathlib import Path

from .export import PredictorError, read

FOLDER = Path(__file__).resolve().parent.parent / "assets" / "predictors"


def names() -> list[str]:
    """Names that `--predictor` takes besides a path."""
    return sorted(path.stem for path in FOLDER.glob("*.safetensors"))


def find(name_or_path: str) -> Path:
    """The file of a shipped predictor, or the path itself. Raises PredictorError when there is neither."""
    shipped = FOLDER / f"{name_or_path}.safetensors"
    if shipped.is_file():
        return shipped
    if Path(name_or_path).is_file():
        return Path(name_or_path)
    raise PredictorError(
        f"there is no predictor {name_or_path!r}: give the path of a file that `prophet train` wrote, "
        f"or one of {', '.join(names())}"
    )


def matching(layers: int, experts: int, top_k: int) -> Path | None:
    """A shipped predictor for a model of this geometry, or None."""
    for name in names():
        path = FOLDER / f"{name}.safetensors"
        geometry = read(path)[2]["geometry"]
        if (geometry["layers"], geometry["experts"], geometry["top_k"]) == (layers, experts, top_k):
            return path
    return None
