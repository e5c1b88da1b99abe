"""Sizes by name, and what context and horizons mean to each kind of network.

context c    bank: the last c turns of every layer enter one by one, beside the averages
             transformer: the last c layers of the present token
horizons h   the layers 1 .. h ahead are forecast
size         small, medium or large, or a number: the width
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from prophet_moe.errors import InvalidArgument

from .train import Recipe

KINDS = ("bank", "transformer")
CONTEXT = {"bank": 2, "transformer": 3}
SIZES: dict[str, dict[str, dict[str, Any]]] = {
    "bank": {
        "small": {"rank": 96, "drop_hidden": 0.2, "drop_block": 0.2},
        "medium": {"rank": 256, "drop_hidden": 0.3, "drop_block": 0.3},
        "large": {"rank": 512, "drop_hidden": 0.35, "drop_block": 0.3},
    },
    "transformer": {
        "small": {"width": 128, "depth": 2, "attention_heads": 4},
        "medium": {"width": 224, "depth": 3, "attention_heads": 7},
        "large": {"width": 320, "depth": 4, "attention_heads": 10},  # the class called 8.4M
    },
}
RECIPES: dict[str, dict[str, Any]] = {
    "bank": {"rate": 3e-3},
    "transformer": {"rate": 1e-3, "decay": 0.05},
}
HEADS = (1, 3, 8, 24, 80, 300)
HEAD_WEIGHTS = (3.0, 3.0, 3.0, 2.0, 1.0, 0.5)


@dataclass(frozen=True)
class Design:
    """What a user names; `options` are fields of the network's configuration and win over the rest."""

    kind: str = "bank"
    size: str = "medium"
    context: int = 0  # 0: CONTEXT of the kind
    horizons: int = 3
    inputs: str = "history"
    options: Mapping[str, Any] = field(default_factory=dict)

    def network_options(self) -> dict[str, Any]:
        """Keyword arguments of BankConfig or PaperConfig. Raises InvalidArgument for unknown names."""
        if self.kind not in KINDS:
            raise InvalidArgument(f"the predictor is a {' or a '.join(KINDS)}, not {self.kind!r}.")
        context = self.context or CONTEXT[self.kind]
        named = SIZES[self.kind].get(self.size)
        if named is None and not self.size.isdecimal():
            raise InvalidArgument(f"a size is {', '.join(SIZES[self.kind])} or a width, not {self.size!r}.")
        if named is None and int(self.size) < 1:
            raise InvalidArgument("a width is at least 1.")
        if self.horizons < 0 or context < 1:
            raise InvalidArgument(
                f"a context of {context} and {self.horizons} horizons cannot be: ask for a context of 1 "
                "and 0 horizons at least."
            )
        if self.kind == "bank":
            chosen = named or {"rank": int(self.size), "drop_hidden": 0.3, "drop_block": 0.3}
            recent = [(0, "count"), (0, "gate"), *((lag, "count") for lag in range(1, context))]
            chosen = {"mid": False, "recent": tuple(recent), "heads": HEADS, **chosen}
        else:
            chosen = named or {"width": int(self.size), "depth": 2, "attention_heads": 4}
            chosen = {"context": context, "heads": HEADS, **chosen}
        return {"ahead": self.horizons, **chosen, **self.options}

    def recipe(self, **chosen: Any) -> Recipe:
        """The kind's recipe with these fields of Recipe changed; None leaves a field as it is."""
        given = {k: v for k, v in chosen.items() if v is not None}
        heads = self.network_options()["heads"]
        weights = HEAD_WEIGHTS if len(heads) == len(HEADS) else (1.0,) * len(heads)
        try:
            return replace(Recipe(head_weights=weights), **{**RECIPES[self.kind], **given})
        except TypeError as error:
            raise InvalidArgument(f"a recipe has no such setting ({error}).") from error
