"""Machine cards, and how the times of a model on a machine follow from them.

A forward pass reads every weight that it uses once and computes two operations per parameter and token:

    pass_ns         = fixed + once_parameters' bytes / memory
    layer_ns        = fixed + layer_parameters' bytes / memory
    layer_token_ns  = 2 x layer_parameters / flops + kv_bytes_per_token x CONTEXT / memory
    expert_ns       = fixed + expert_bytes / memory
    expert_token_ns = 2 x expert_parameters / flops
    wait_ns         = fixed, 0 where the card has none

where memory = memory_bytes_per_second x memory_share and flops = flops_per_second x flops_share: shares of
the peaks that kernels reach. The two terms are added rather than the larger one taken, so that a batch costs
slightly too much and never too little. A card may state the five times of a model outright, measured, in
[times.MODEL]; they replace the formulas (all but that of wait_ns).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from json import dumps
from pathlib import Path

from prophet_moe.errors import InvalidArgument
from prophet_moe.sim.cards import Figure, Table, find
from prophet_moe.sim.geometry import DENSE_BYTES, Geometry
from prophet_moe.sim.machine import Machine

FOLDER = "machines"
CONTEXT = 1024  # tokens of key-value cache that a step of attention reads
LANES = ("link", "disk")
_LANE = ("bytes_per_second", "latency_ns", "chunk_overhead_ns", "chunk_bytes")
_COMPUTE = (
    "memory_bytes_per_second",
    "memory_share",
    "flops_per_second",
    "flops_share",
    "pass_ns",
    "layer_ns",
    "expert_ns",
)
_WAIT = "wait_ns"
_TIMES = ("pass_ns", "layer_ns", "layer_token_ns", "expert_ns", "expert_token_ns")
_POSITIVE = {"bytes_per_second": 1.0, "chunk_bytes": 1.0, "memory_bytes_per_second": 1.0,
             "flops_per_second": 1.0, "memory_share": 1e-6, "flops_share": 1e-6, "bytes": 1.0}  # fmt: skip
_SHARES = ("memory_share", "flops_share")


@dataclass(frozen=True)
class MachineCard:
    """A machine, number by number. Bytes, nanoseconds, and rates per second."""

    name: str
    about: str
    lane: str  # the lane that experts come by unless another is asked for
    lanes: dict[str, dict[str, Figure]]  # "link": host to fast memory, "disk": NVMe; the keys of _LANE
    fast_memory: dict[str, Figure]  # "bytes"
    compute: dict[str, Figure]  # the keys of _COMPUTE, and perhaps wait_ns
    times: dict[str, dict[str, Figure]] = field(default_factory=dict)  # by model: the keys of _TIMES

    @property
    def fast_bytes(self) -> int:
        return int(self.fast_memory["bytes"].value)

    def figures(self) -> dict[str, Figure]:
        """Every number by its dotted name."""
        tables = {**self.lanes, "fast_memory": self.fast_memory, "compute": self.compute}
        tables |= {f"times.{model}": times for model, times in self.times.items()}
        return {f"{table}.{key}": one for table, found in tables.items() for key, one in found.items()}

    def machine(self, model: Geometry, lane: str | None = None, link_scale: float = 1.0) -> Machine:
        """The times of `model` here, its experts coming by `lane` at `link_scale` times its bandwidth.

        Raises InvalidArgument: a lane that the card does not have, a scale that is not above 0.
        """
        name = lane or self.lane
        if name not in self.lanes:
            raise InvalidArgument(f"{self.name} has no lane {name!r}: it has {', '.join(self.lanes)}.")
        if not 0 < link_scale < 1e9:
            raise InvalidArgument(f"a link's scale lies above 0, not at {link_scale}.")
        figures = {key: figure.value for key, figure in self.lanes[name].items()}
        return Machine(
            name=self.name,
            bytes_per_second=figures["bytes_per_second"] * link_scale,
            latency_ns=round(figures["latency_ns"]),
            overhead_ns=round(figures["chunk_overhead_ns"]),
            chunk_bytes=round(figures["chunk_bytes"]),
            wait_ns=round(self.compute[_WAIT].value) if _WAIT in self.compute else 0,
            **self._times(model),
        )

    def _times(self, model: Geometry) -> dict[str, int]:
        if model.name in self.times:
            return {key: round(figure.value) for key, figure in self.times[model.name].items()}
        c = {key: figure.value for key, figure in self.compute.items()}
        memory = c["memory_bytes_per_second"] * c["memory_share"] / 1e9  # bytes per ns
        flops = c["flops_per_second"] * c["flops_share"] / 1e9
        per_token = 2 * model.layer_parameters / flops + model.kv_bytes_per_token * CONTEXT / memory
        return {
            "pass_ns": round(c["pass_ns"] + model.once_parameters * DENSE_BYTES / memory),
            "layer_ns": round(c["layer_ns"] + model.layer_parameters * DENSE_BYTES / memory),
            "layer_token_ns": round(per_token),
            "expert_ns": round(c["expert_ns"] + model.expert_bytes / memory),
            "expert_token_ns": round(2 * model.expert_parameters / flops),
        }

    def to_toml(self) -> str:
        """The card as read_machine takes it."""
        lines = [f"{key} = {dumps(getattr(self, key))}" for key in ("name", "about", "lane")]
        table = None
        for name, figure in self.figures().items():
            if (here := name.rpartition(".")[0]) != table:
                table = here
                prefix, _, model = here.partition(".")
                lines += ["", f"[{prefix}.{dumps(model)}]" if model else f"[{prefix}]"]
            key = name.rpartition(".")[2]
            value, kind, source = repr(figure.value), dumps(figure.kind), dumps(figure.source)
            lines.append(f"{key} = {{ value = {value}, kind = {kind}, source = {source} }}")
        return "\n".join(lines) + "\n"


def read_machine(name_or_path: str) -> MachineCard:
    """A machine card by name or file. Raises InvalidArgument: unknown names (the sentence lists the known
    ones), numbers that are missing, negative, misspelt or without a source."""
    card = Table.read(find(name_or_path, FOLDER))
    lanes = {lane: _figures(card.table(lane), _LANE) for lane in LANES if card.has(lane)}
    compute = card.table("compute")
    times = {}
    if card.has("times"):
        models = card.table("times")
        times = {model: _figures(models.table(model), _TIMES) for model in models.keys()}  # noqa: SIM118
    found = MachineCard(
        name=card.text("name"),
        about=card.text("about"),
        lane=card.text("lane"),
        lanes=lanes,
        fast_memory=_figures(card.table("fast_memory"), ("bytes",)),
        compute=_figures(compute, (*_COMPUTE, _WAIT) if compute.has(_WAIT) else _COMPUTE),
        times=times,
    )
    card.done()
    if found.lane not in lanes:
        raise card.refuse(
            "lane", f"names {found.lane!r}, but the card describes {', '.join(lanes) or 'no lane'}"
        )
    return found


def _figures(table: Table, keys: tuple[str, ...]) -> dict[str, Figure]:
    found = {key: table.figure(key, _POSITIVE.get(key, 0.0), 1.0 if key in _SHARES else 1e30) for key in keys}
    table.done()
    return found


def write_machine(card: MachineCard, path: Path) -> None:
    """Writes the card as TOML."""
    path.write_text(card.to_toml(), encoding="utf-8")
