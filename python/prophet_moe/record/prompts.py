"""Prompt files: what a recording feeds to the model, each text with the domain it belongs to.

    NAME.jsonl   one JSON object a line: "text" or "prompt" (a string) or "ids" (a list of token ids),
                 and optionally "domain" (or "label"); without it the domain is NAME
    NAME.txt     one text, the whole file; for a model without a tokenizer one list of token ids a line
    a folder     its .jsonl and .txt files in the order of their names; other files are left alone

Empty lines are passed over. Lines and files keep their order.
"""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from prophet_moe.errors import InvalidArgument

SUFFIXES = (".jsonl", ".txt")


@dataclass(frozen=True)
class Prompt:
    """One text, or the token ids that stand for it."""

    label: str  # its domain
    source: str  # file and line, for people
    text: str | None = None
    ids: tuple[int, ...] = ()


def shipped() -> Path:
    """The folder of the prompts in this package: six domains, a file each."""
    return Path(str(resources.files("prophet_moe") / "assets" / "prompts"))


def read_prompts(path: str | Path, *, ids_only: bool = False, per_domain: int | None = None) -> list[Prompt]:
    """All prompts of a file or a folder, at least one; at most the first `per_domain` of each domain.

    ids_only: the model has no tokenizer, so .txt files hold ids. Raises InvalidArgument, naming file and
    line: no such file, not UTF-8, a line that is no prompt, nothing in it.
    """
    path = Path(path)
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.suffix in SUFFIXES and file.is_file())
        if not files:
            raise InvalidArgument(f"{path} holds no prompts: put .jsonl or .txt files there.")
    elif path.suffix in SUFFIXES:
        files = [path]
    else:
        raise InvalidArgument(f"{path} is neither a folder nor a .jsonl or .txt file: name prompts by one.")
    found = [prompt for file in files for prompt in _read_file(file, ids_only)]
    if not found:
        raise InvalidArgument(f"{path} holds no prompts: its files are empty.")
    if per_domain is None:
        return found
    seen: Counter[str] = Counter()
    kept = []
    for prompt in found:
        seen[prompt.label] += 1
        if seen[prompt.label] <= per_domain:
            kept.append(prompt)
    return kept


def tokenise(prompts: Sequence[Prompt], tokenizer: Any, vocab_size: int) -> list[list[int]]:
    """The token ids of each prompt, at least one each. tokenizer: None where the model has none.

    Raises InvalidArgument: a text without a tokenizer, a text of no tokens, ids outside the vocabulary.
    """
    found = []
    for prompt in prompts:
        if prompt.text is not None and tokenizer is None:
            raise InvalidArgument(
                f"{prompt.source} is a text and the model has no tokenizer: give token ids, "
                'as {"ids": [1, 2, 3]}.'
            )
        ids = (
            list(prompt.ids)
            if prompt.text is None
            # Long texts are meant: the library's advice about the model's length would be noise.
            else [int(token) for token in tokenizer(prompt.text, verbose=False)["input_ids"]]
        )
        if not ids:
            raise InvalidArgument(f"{prompt.source} has no tokens: every prompt needs at least one.")
        wrong = [token for token in ids if not 0 <= token < vocab_size]
        if wrong:
            raise InvalidArgument(
                f"{prompt.source}: token id {wrong[0]} is outside the vocabulary of 0 to {vocab_size - 1}."
            )
        found.append(ids)
    return found


def _read_file(file: Path, ids_only: bool) -> list[Prompt]:
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InvalidArgument(f"{file} is not UTF-8 text (byte {error.start}): save it as UTF-8.") from error
    except OSError as error:
        raise InvalidArgument(f"{file} cannot be read: {error.strerror}.") from error
    if file.suffix == ".txt" and not ids_only:
        return [Prompt(file.stem, file.name, text)] if text.strip() else []
    # Not splitlines(): JSON strings may hold the other line ends of Unicode.
    lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    one = _of_ids if file.suffix == ".txt" else _of_json
    return [one(file, number, line) for number, line in lines]


def _of_ids(file: Path, number: int, line: str) -> Prompt:
    try:
        ids = tuple(int(word) for word in line.replace(",", " ").split())
    except ValueError:
        raise InvalidArgument(
            f"{file}, line {number} is no list of token ids, and the model has no tokenizer: "
            "write whole numbers as in 1 2 3."
        ) from None
    return Prompt(file.stem, f"{file.name}:{number}", ids=ids)


def _of_json(file: Path, number: int, line: str) -> Prompt:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InvalidArgument(f"{file}, line {number} is not JSON ({error}).") from error
    keys = [key for key in ("text", "prompt", "ids") if isinstance(row, dict) and key in row]
    if len(keys) != 1:
        raise InvalidArgument(
            f"{file}, line {number}: a prompt is an object with exactly one of "
            f"'text', 'prompt' and 'ids', and this has {' and '.join(keys) or 'none'}."
        )
    value, label = row[keys[0]], row.get("domain", row.get("label", file.stem))
    if not isinstance(label, str):
        raise InvalidArgument(f"{file}, line {number}: the domain must be a text, not {json.dumps(label)}.")
    if any("\ud800" <= letter <= "\udfff" for letter in f"{label}{value}"):
        raise InvalidArgument(f"{file}, line {number} holds half a surrogate pair, which is no character.")
    source = f"{file.name}:{number}"
    if keys[0] != "ids":
        if not isinstance(value, str) or not value:
            raise InvalidArgument(f"{file}, line {number}: '{keys[0]}' must be a text that is not empty.")
        return Prompt(label, source, value)
    if not isinstance(value, list) or not value or any(type(token) is not int for token in value):
        raise InvalidArgument(f"{file}, line {number}: 'ids' must be a list of whole numbers.")
    return Prompt(label, source, ids=tuple(value))
