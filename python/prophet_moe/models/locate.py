"""From what the user typed to a folder: a path, the shipped reference model, or a Hub id."""

import os
from importlib import resources
from pathlib import Path

from prophet_moe.errors import CheckpointError

REFERENCE_MODEL = "reference-moe"

# What a checkpoint folder needs; never pickles, never other formats of the same weights.
HUB_PATTERNS = ["*.json", "*.safetensors", "*.jinja", "*.txt", "tokenizer*", "*.model", "*.tiktoken"]


def locate(model: str | os.PathLike[str]) -> Path:
    """The folder that holds `model`.

    `model` is a folder, "reference-moe" (shipped inside the package), or a Hugging Face Hub id
    such as "org/name", looked up in the local cache (HF_HOME) first and fetched unless
    HF_HUB_OFFLINE is set. Raises CheckpointError when there is no such thing.
    """
    text = os.fspath(model)
    path = Path(text).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise CheckpointError(
            f"{path} is a file, not a folder: give the folder that holds config.json and the shards."
        )
    if text == REFERENCE_MODEL:
        shipped = Path(str(resources.files("prophet_moe") / "assets" / REFERENCE_MODEL))
        if shipped.is_dir():
            return shipped
        raise CheckpointError(
            f"the reference model is not where the package keeps it ({shipped}): reinstall prophet-moe."
        )
    if text.startswith((".", "/", "~")) or text.count("/") != 1 or text.endswith("/") or not text.strip():
        raise CheckpointError(
            f"there is no folder {text!r}: give an existing folder with config.json and safetensors shards, "
            f"a Hub id such as org/name, or {REFERENCE_MODEL}."
        )
    return _from_hub(text)


def _from_hub(repo: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.constants import HF_HUB_CACHE
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        found = Path(snapshot_download(repo, local_files_only=True, allow_patterns=HUB_PATTERNS))
        if any(found.glob("*.safetensors")):
            return found
    except LocalEntryNotFoundError:
        pass
    except HFValidationError as error:
        raise CheckpointError(
            f"{repo!r} is neither an existing folder nor a valid Hub id (org/name): {error}"
        ) from error
    try:
        return Path(snapshot_download(repo, allow_patterns=HUB_PATTERNS))
    except Exception as error:  # the Hub client raises its own, httpx's and OSError
        cause = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(
            f"{repo!r} is not a folder, is not in the local Hub cache ({HF_HUB_CACHE}), and could not be "
            "fetched: "
            f"{cause} Check the name, or download it where there is a network (`hf download {repo}`) and "
            "give its folder."
        ) from error
