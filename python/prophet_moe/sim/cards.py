"""Cards: machines and models as TOML files, found by name in the package or given as files.

A number of a machine is never bare: `{ value = 25.2e9, kind = "published", source = "..." }`. Kinds:

    measured       by `prophet doctor --card` or a script of bench/, on the machine that the card names
    published      by someone else, on a machine of this kind
    specification  the vendor's figure, usually a peak
    assumed        nobody's measurement: chosen, and the source says why

docs/simulator.md says what every number means.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prophet_moe.errors import InvalidArgument

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ASSETS = Path(__file__).resolve().parent.parent / "assets"
KINDS = ("measured", "published", "specification", "assumed")


@dataclass(frozen=True)
class Figure:
    """One number of a card, and who says so."""

    value: float
    kind: str
    source: str


def names(folder: str) -> list[str]:
    """Cards of the package: folder is "machines" or "geometries"."""
    return sorted(path.stem for path in (ASSETS / folder).glob("*.toml"))


def find(name_or_path: str, folder: str) -> Path:
    """The file of a card in the package (case does not matter), or the path itself.

    Raises InvalidArgument with the names that there are.
    """
    for name in names(folder):
        if name.lower() == name_or_path.lower():
            return ASSETS / folder / f"{name}.toml"
    if Path(name_or_path).is_file():
        return Path(name_or_path)
    what = {"machines": "machine", "geometries": "model"}[folder]
    raise InvalidArgument(
        f"there is no {what} card {name_or_path!r}: give a TOML file or one of {', '.join(names(folder))}."
    )


class Table:
    """A table of a card, whose mistakes become sentences that name the file and the place."""

    def __init__(self, path: Path, table: Mapping[str, Any], place: str = "") -> None:
        self.path, self._table, self._place = path, table, place
        self._asked: set[str] = set()

    @classmethod
    def read(cls, path: Path) -> Table:
        """Raises InvalidArgument: no TOML; OSError: cannot be read."""
        try:
            return cls(path, tomllib.loads(path.read_text(encoding="utf-8")))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise InvalidArgument(f"{path} is no TOML file: {error}.") from error

    def refuse(self, key: str, what: str) -> InvalidArgument:
        """The error that says what is wrong with `key`."""
        return InvalidArgument(f"{self.path}: {self._name(key)} {what}.")

    def _name(self, key: str) -> str:
        return f"{self._place}.{key}" if self._place else key

    def _get(self, key: str) -> Any:
        self._asked.add(key)
        if key not in self._table:
            raise self.refuse(key, "is missing")
        return self._table[key]

    def has(self, key: str) -> bool:
        self._asked.add(key)
        return key in self._table

    def keys(self) -> list[str]:
        return list(self._table)

    def table(self, key: str) -> Table:
        found = self._get(key)
        if not isinstance(found, dict):
            raise self.refuse(key, "must be a table")
        return Table(self.path, found, self._name(key))

    def text(self, key: str) -> str:
        found = self._get(key)
        if not isinstance(found, str) or not found:
            raise self.refuse(key, "must be a text")
        return found

    def number(self, key: str, least: float = 0, most: float = 1e30) -> float:
        """A number of at least `least`; with least 0 it may be zero."""
        return self._checked(key, self._get(key), least, most)

    def count(self, key: str, least: int = 0) -> int:
        value = self.number(key, least)
        if value != int(value):
            raise self.refuse(key, f"must be a whole number, not {value}")
        return int(value)

    def figure(self, key: str, least: float = 0, most: float = 1e30) -> Figure:
        """A number with kind and source."""
        table = self.table(key)
        value = table.number("value", least, most)
        kind, source = table.text("kind"), table.text("source")
        if kind not in KINDS:
            raise table.refuse("kind", f"must be one of {', '.join(KINDS)}, not {kind!r}")
        table.done()
        return Figure(value, kind, source)

    def done(self) -> None:
        """Raises InvalidArgument for keys that nobody asked for: a misspelt number must not go unseen."""
        if left := sorted(set(self._table) - self._asked):
            raise self.refuse(left[0], f"is unknown; known here: {', '.join(sorted(self._asked))}")

    def _checked(self, key: str, value: Any, least: float, most: float) -> float:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise self.refuse(key, f"must be a number, not {value!r}")
        if not least <= value <= most:
            bounds = f"at least {least:g}" if most >= 1e30 else f"between {least:g} and {most:g}"
            raise self.refuse(key, f"must be {bounds}, not {value}")
        return float(value)
