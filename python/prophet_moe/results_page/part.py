"""What a page is put together from: parts, each with tables, figures and sentences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import plotly.graph_objects as go


@dataclass(frozen=True)
class Drawing:
    """A figure, or what is missing for it. Texts are plain."""

    key: str
    title: str
    caption: str
    figure: go.Figure | None = None
    missing: str = ""
    wide: bool = False  # takes a row of the page for itself

    @property
    def json(self) -> str | None:
        """The figure as JSON that cannot end the script element it stands in, whatever its labels say."""
        return None if self.figure is None else str(self.figure.to_json()).replace("<", "\\u003c")


@dataclass(frozen=True)
class Row:
    """Texts of one row of a table."""

    cells: Sequence[str]
    bound: bool = False  # no real system can be this one


@dataclass(frozen=True)
class Table:
    title: str
    headings: Sequence[str]
    rows: Sequence[Row]
    names: int = 1  # leading columns that are no numbers


@dataclass(frozen=True)
class Part:
    """One thing that results tell of: a simulation, an analysis, a run."""

    key: str
    title: str
    subtitle: str
    command: str
    drawings: Sequence[Drawing]
    tables: Sequence[Table] = ()
    note: str = ""  # below the tables
    sentences: Sequence[str] = ()


def text(value: float | None, form: str, unit: str = "") -> str:
    """A number of a table; a dash where it is unknown."""
    return "–" if value is None else f"{value:{form}}{unit}"
