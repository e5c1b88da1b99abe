"""One line of the doctor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "warn", "FAIL"]


@dataclass(frozen=True)
class Check:
    """`fix` is empty when there is nothing to mend."""

    level: Level
    name: str
    detail: str
    fix: str = ""
