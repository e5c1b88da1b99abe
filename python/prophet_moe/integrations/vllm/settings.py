"""What the environment asks of the plug-in.

vLLM starts its workers itself; the environment is what reaches all of them, on every node.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from prophet_moe.budget import parse_slots
from prophet_moe.errors import InvalidArgument
from prophet_moe.systems import PROPHET, System, require_runnable

PREFIX = "PROPHET_VLLM_"
DEFAULT_SYSTEM = "expected-next-use"


@dataclass(frozen=True)
class Settings:
    """One field for each variable PROPHET_VLLM_<NAME>; SLOTS switches the plug-in on."""

    slots: str  # experts that this process holds in memory: a count, or a share such as 50%
    records: Path | None = None  # folder for the experts in the kernel's layout; None: a temporary file
    system: str = DEFAULT_SYSTEM  # which experts stay
    predictor: str | None = None  # file of a predictor, or the name of one in the package
    statistics: Path | None = None  # file for counters

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Settings | None:
        """None where the plug-in is not asked for. Raises InvalidArgument: a value that cannot be."""
        given = {
            name.removeprefix(PREFIX): value.strip()
            for name, value in environment.items()
            if name.startswith(PREFIX) and value.strip()
        }
        unknown = sorted(given.keys() - {"SLOTS", "RECORDS", "SYSTEM", "PREDICTOR", "STATISTICS"})
        if unknown:
            raise InvalidArgument(
                f"{PREFIX}{unknown[0]} is not a setting: there are SLOTS, RECORDS, SYSTEM, PREDICTOR and "
                f"STATISTICS after {PREFIX}."
            )
        if "SLOTS" not in given:
            if given:
                raise InvalidArgument(
                    f"{PREFIX}{min(given)} is set, but {PREFIX}SLOTS is not: it switches Prophet on, with a "
                    "count of experts or a share such as 50%."
                )
            return None
        try:
            parse_slots(given["SLOTS"], 100)
        except ValueError as error:
            raise InvalidArgument(f"{PREFIX}SLOTS: {error}") from error
        predictor = given.get("PREDICTOR")
        settings = cls(
            slots=given["SLOTS"],
            records=Path(given["RECORDS"]).expanduser() if "RECORDS" in given else None,
            system=given.get("SYSTEM", PROPHET if predictor else DEFAULT_SYSTEM),
            predictor=predictor,
            statistics=Path(given["STATISTICS"]).expanduser() if "STATISTICS" in given else None,
        )
        settings.recipe()
        return settings

    def recipe(self) -> System:
        """The system. Raises InvalidArgument: unknown, not one a run can be, or at odds with PREDICTOR."""
        recipe = require_runnable(self.system)
        if recipe.router:
            raise InvalidArgument(
                f"{PREFIX}SYSTEM={self.system} reads the routers' weights, which the plug-in does not: "
                "choose another system."
            )
        if recipe.trained and self.predictor is None:
            raise InvalidArgument(
                f"{PREFIX}SYSTEM={self.system} needs a predictor: name one in {PREFIX}PREDICTOR."
            )
        if self.predictor is not None and not recipe.trained:
            raise InvalidArgument(
                f"{PREFIX}SYSTEM={self.system} makes no use of {PREFIX}PREDICTOR: leave one of the two out."
            )
        return recipe
