"""An eviction policy of one's own: written here, registered, and replayed beside those that exist.

Slow: every event crosses into Python. For speed, and for real runs, a policy is one C++ file and one
line (CONTRIBUTING.md).
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path

import prophet_moe
from prophet_moe.models.stock import load_tokenizer
from prophet_moe.record import read_prompts, record, tokenise
from prophet_moe.record.prompts import shipped
from prophet_moe.sim.cell import run_cell
from prophet_moe.sim.geometry import read_geometry
from prophet_moe.sim.machine_card import read_machine
from prophet_moe.sim.sweep import Sweep, cells_of
from prophet_moe.systems import register

NAME = "reference-moe"
Expert = tuple[int, int]  # layer, number


class SecondChance:
    """The clock: experts in a ring; one that was used since the hand last passed is spared once."""

    def __init__(self, layers: int, experts_per_layer: int, top_k: int) -> None:
        self.ring: list[Expert] = []
        self.spared: set[Expert] = set()

    def arrived(self, layer: int, expert: int) -> None:
        self.ring.append((layer, expert))

    def used(self, layer: int, expert: int) -> None:
        self.spared.add((layer, expert))

    def left(self, layer: int, expert: int) -> None:
        self.ring.remove((layer, expert))
        self.spared.discard((layer, expert))

    def victim(self, candidates: Sequence[Expert], incoming: Expert) -> Expert:
        possible = set(candidates)
        while True:
            first = self.ring.pop(0)
            self.ring.append(first)
            if first not in possible:
                continue
            if first not in self.spared:
                return first
            self.spared.discard(first)


def recorded(path: Path) -> Path:
    """Routes of a few texts."""
    prompts = read_prompts(shipped(), per_domain=1)
    model = prophet_moe.load(NAME, slots="25%", context=256)
    ids = tokenise(prompts, load_tokenizer(NAME), model.config.vocab_size)
    record(model, prompts, ids, path, name=NAME, tokens=24)
    prophet_moe.close(model)
    return path


register("second-chance", SecondChance, "spares once what was used since it was last looked at")
with tempfile.TemporaryDirectory() as folder:
    sweep = Sweep(
        trace=recorded(Path(folder) / "routes.safetensors"),
        geometry=read_geometry(NAME),
        card=read_machine("rtx4090-pcie4"),
        slots=("25%", "50%"),
        systems=("lru", "second-chance", "expected-next-use", "belady"),
    )
    # In this process: others do not know what was registered here.
    lines = [run_cell(cell) for cell in cells_of(sweep)[0]]
for line in sorted(lines, key=lambda line: (line["expert_slots"], line["hits"]["miss"])):
    miss, time = line["hits"]["miss"] / line["accesses"], line["tpot_ms"]["mean"]
    print(f"{line['slots']:>4} {line['system']:18} {time:6.3f} ms per token, {miss:6.1%} missed")
