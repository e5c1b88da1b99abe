"""What would it cost on another machine? Record a trace, replay it under every system, draw the results."""

import sys
import tempfile
from pathlib import Path

import prophet_moe
from prophet_moe.models.stock import load_tokenizer
from prophet_moe.record import read_prompts, record, tokenise
from prophet_moe.record.prompts import shipped
from prophet_moe.results_page.page import render
from prophet_moe.results_page.sources import Sources
from prophet_moe.sim.geometry import read_geometry
from prophet_moe.sim.machine_card import read_machine
from prophet_moe.sim.sweep import Sweep, cells_of, run_cells
from prophet_moe.sim.systems import systems_known

NAME = "reference-moe"


def recorded(path: Path) -> Path:
    """Routes of a few texts."""
    prompts = read_prompts(shipped(), per_domain=1)
    model = prophet_moe.load(NAME, slots="25%", context=256)
    ids = tokenise(prompts, load_tokenizer(NAME), model.config.vocab_size)
    record(model, prompts, ids, path, name=NAME, tokens=24)
    prophet_moe.close(model)
    return path


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        sweep = Sweep(
            trace=recorded(Path(folder) / "routes.safetensors"),
            geometry=read_geometry(NAME),
            card=read_machine("rtx4090-pcie4"),
            slots=("25%", "50%"),
            systems=tuple(systems_known()),
        )
        cells, left_out = cells_of(sweep)
        lines = list(run_cells(cells, jobs=2))
    for why in left_out:
        print(f"left out: {why}")
    for line in sorted(lines, key=lambda line: (line["expert_slots"], line["tpot_ms"]["mean"])):
        miss, time = line["hits"]["miss"] / line["accesses"], line["tpot_ms"]["mean"]
        print(f"{line['slots']:>4} {line['system']:18} {time:6.3f} ms per token, {miss:6.1%} missed")
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text(render(Sources(lines)), encoding="utf-8")
        print(f"drawn in {sys.argv[1]}")


if __name__ == "__main__":  # replays run in processes of their own, which import this file
    main()
