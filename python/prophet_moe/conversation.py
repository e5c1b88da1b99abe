"""A conversation becomes the tokens of a prompt: by the model's chat template, or as plain turns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

NEXT_SPEAKER = "\nUser:"  # a model without a template goes on with the next speaker by itself


def is_plain(tokenizer: Any) -> bool:
    """Whether the model has no chat template."""
    return not getattr(tokenizer, "chat_template", None)


def render(tokenizer: Any, turns: Sequence[dict[str, str]]) -> list[int]:
    """The token ids of a conversation ({role, content} each) that waits for an answer."""
    if not is_plain(tokenizer):
        ids = tokenizer.apply_chat_template(list(turns), add_generation_prompt=True, return_dict=True)
        return [int(token) for token in ids["input_ids"]]
    plain = "".join(f"{turn['role'].capitalize()}: {turn['content']}\n" for turn in turns)
    return [int(token) for token in tokenizer(plain + "Assistant:")["input_ids"]]
