"""Cells, sweeps over processes, and files of results that grow."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import prophet_ext
from prophet_moe.errors import InvalidArgument
from prophet_moe.formats.trace import TraceError, TraceReader
from prophet_moe.runreport import RunReport
from prophet_moe.sim.cell import resident_ms, run_cell
from prophet_moe.sim.geometry import Geometry, read_geometry
from prophet_moe.sim.machine_card import read_machine
from prophet_moe.sim.replay import replay
from prophet_moe.sim.results import OWN_KEYS, VERSION, ResultsFile, read_results, to_json
from prophet_moe.sim.sweep import Sweep, cells_of, run_cells
from prophet_moe.sim.systems import left_out, parse_systems, systems_known

MakeTrace = Callable[..., TraceReader]
MODEL = Geometry("generated", "a test", 5, 24, 3, "bf16", 600_000, 300_000, 50_000, 90_000, 10_000, 512)
CARD = read_machine("rtx4090-pcie4")


def sweep(trace: TraceReader, **changes: Any) -> Sweep:
    settings = {"slots": ("25%", "60"), "systems": ("on-demand", "lru", "belady", "resident")} | changes
    return Sweep(trace.path, settings.pop("geometry", MODEL), CARD, **settings)


def test_cells_are_every_system_with_every_size_and_resident_once(write_trace: MakeTrace) -> None:
    cells, missing = cells_of(sweep(write_trace([30]), link_scales=(1.0, 4.0)))
    assert [(c.system, c.slots, c.link_scale) for c in cells] == [
        (name, slots, scale)
        for scale in (1.0, 4.0)
        for name, slots in (
            [(n, s) for n in ("on-demand", "lru", "belady") for s in (30, 60)] + [("resident", 120)]
        )
    ]
    assert missing == []
    assert len({cell.key for cell in cells}) == len(cells)


def test_a_key_changes_with_everything_that_decides_a_result(write_trace: MakeTrace) -> None:
    cell = cells_of(sweep(write_trace([30])))[0][2]
    other = cells_of(sweep(write_trace([30], seed=9, name="other")))[0][2]
    changed = [
        other,
        *(
            dataclasses.replace(cell, **change)
            for change in (
                {"system": "lfu"},
                {"slots": 31},
                {"cold": True},
                {"pool": "per-layer"},
                {"sequences": (0,)},
                {"predictor_print": "x"},
                {"options": (("least", 0.5),)},
                {"machine": dataclasses.replace(cell.machine, layer_ns=1)},
                {"geometry": dataclasses.replace(MODEL, expert_bytes=1)},
            )
        ),
    ]
    assert len({cell.key, *(one.key for one in changed)}) == len(changed) + 1
    moved = dataclasses.replace(cell, trace="/elsewhere/trace.safetensors")
    assert moved.key == cell.key, "where a trace lies decides nothing"


def test_a_line_is_a_run_report_of_the_replay(write_trace: MakeTrace) -> None:
    trace = write_trace([40, 25, 30], prompts=5)
    cell = cells_of(sweep(trace, systems=("lru",), slots=("25%",)))[0][0]
    line = run_cell(cell)
    assert [*line] == [*(field.name for field in dataclasses.fields(RunReport)), *OWN_KEYS]
    assert json.loads(to_json(line)) == json.loads(json.dumps(line))
    alone = replay(trace, cell.machine, slots=30, expert_bytes=600_000, policy="lru")
    assert line["hits"] == dataclasses.asdict(alone.hits)
    assert line["bytes"] == dataclasses.asdict(alone.bytes)
    assert line["tpot_ms"] == dataclasses.asdict(alone.tpot_ms)
    assert (line["model"], line["trace"], line["machine"], line["slots"], line["expert_slots"]) == (
        "generated", "trace.safetensors", "rtx4090-pcie4", "25%", 30,
    )  # fmt: skip
    assert (line["backend"], line["results_version"], line["exact"]) == ("sim", VERSION, None)
    assert (line["prompt_tokens"], line["new_tokens"]) == (15, 80)
    assert set(line["domains"]) == {"even", "odd"}
    for key, total in (("tokens", 80), ("misses", alone.hits.miss), ("hits_resident", alone.hits.resident)):
        assert sum(domain[key] for domain in line["domains"].values()) == total
    spent = sum(domain["decode_ns"] for domain in line["domains"].values())
    assert spent / 1e6 == pytest.approx(80 * alone.tpot_ms.mean, rel=1e-6)
    assert 0 <= line["overlap_fraction"] <= 1
    assert line["fits"] is True


def test_resident_costs_what_the_card_says(write_trace: MakeTrace) -> None:
    cell = cells_of(sweep(write_trace([50]), systems=("resident",)))[0][0]
    line = run_cell(cell)
    assert line["tpot_ms"]["mean"] == pytest.approx(resident_ms(cell.machine, MODEL), rel=1e-6)
    assert line["stall_ms"]["p99"] < 1e-4, "first touches take a nanosecond a chunk"
    assert line["resident_ms"] == pytest.approx(line["tpot_ms"]["p50"], rel=0.005)


def test_processes_change_nothing_and_bounds_hold(write_trace: MakeTrace) -> None:
    trace = write_trace([60, 45])
    known = tuple(name for name in systems_known() if left_out(name) is None)
    cells, _ = cells_of(sweep(trace, systems=known, slots=("25%",)))
    told: list[int] = []
    lines = {line["cell"]: line for line in run_cells(cells, 2, told.append)}
    assert set(lines) == {cell.key for cell in cells}
    assert told[-1] == trace.tokens * len(cells)
    for cell in cells[:2]:
        assert run_cell(cell) | {"wall_s": 0} == lines[cell.key] | {"wall_s": 0}
    by_name = {line["system"]: line for line in lines.values()}
    for name in (one for one in prophet_ext.eviction_policies() if one in by_name):
        assert by_name["belady"]["hits"]["miss"] <= by_name[name]["hits"]["miss"]
        assert by_name["resident"]["tpot_ms"]["mean"] <= by_name[name]["tpot_ms"]["mean"]
        assert by_name[name]["bytes"]["demand"] <= by_name["on-demand"]["bytes"]["demand"]


def test_an_error_in_a_process_is_the_error(write_trace: MakeTrace) -> None:
    cell = cells_of(sweep(write_trace([20]), systems=("lru",), slots=("25%",)))[0][0]
    with pytest.raises(InvalidArgument, match="2 slots"):
        list(run_cells([dataclasses.replace(cell, slots=2)], 1))


def test_what_cannot_be_replayed_is_refused(write_trace: MakeTrace, tmp_path: Path) -> None:
    trace = write_trace([20])
    with pytest.raises(
        InvalidArgument, match=r"has 5 layers of 24 experts, top-3, but mixtral.* 32 of 8, top-2"
    ):
        cells_of(sweep(trace, geometry=read_geometry("mixtral-8x7b")))
    with pytest.raises(
        InvalidArgument, match=r"2 of 120 experts are 2 slots: one token of generated needs 3"
    ):
        cells_of(sweep(trace, slots=("2",)))
    with pytest.raises(InvalidArgument, match=r"12%.* are 14 slots: .* needs 15 with pool per-layer"):
        cells_of(sweep(trace, slots=("12%",), pool="per-layer"))
    with pytest.raises(ValueError, match="'many' is not a number of slots"):
        cells_of(sweep(trace, slots=("many",)))
    with pytest.raises(InvalidArgument, match=r"'fifo' is not a system: the names are on-demand, lru"):
        parse_systems("lru,fifo")
    with pytest.raises(InvalidArgument, match="names none"):
        parse_systems(" , ")
    with pytest.raises(TraceError, match="leave none"):
        cells_of(sweep(write_trace([9], name="one"), held_out="1"))
    data = bytearray(trace.path.read_bytes())
    header = int.from_bytes(data[:8], "little")
    data[8 + header + json.loads(data[8 : 8 + header])["experts"]["data_offsets"][0]] = 99
    bad = tmp_path / "bad.safetensors"
    bad.write_bytes(data)
    with pytest.raises(TraceError, match=r"token 0 names an expert that does not exist"):
        cells_of(dataclasses.replace(sweep(trace), trace=bad))


def test_slots_that_fit(write_trace: MakeTrace) -> None:
    trace = write_trace([10])
    assert cells_of(sweep(trace, slots=("fit",)))[0][0].slots == 120
    small = dataclasses.replace(
        CARD, fast_memory={"bytes": dataclasses.replace(CARD.fast_memory["bytes"], value=30_500_000.0)}
    )
    cells, _ = cells_of(dataclasses.replace(sweep(trace, slots=("fit", "75%"), systems=("lru",)), card=small))
    free = 30_500_000 - MODEL.dense_bytes
    assert cells[0].slots == free // 600_000 < 90
    assert [run_cell(cell)["fits"] for cell in cells] == [True, False]


def test_a_system_that_lacks_its_predictor_is_left_out_by_name(write_trace: MakeTrace) -> None:
    cells, missing = cells_of(sweep(write_trace([10]), systems=("prophet", "lru")))
    assert {cell.system for cell in cells} == {"lru"}
    assert len(missing) == 1
    assert "prophet needs a predictor" in missing[0]


def test_options_are_swept_for_systems_with_a_predictor(
    write_trace: MakeTrace, monkeypatch: pytest.MonkeyPatch
) -> None:
    swept = (("last", (1, 3)), ("least", (0.5,)))
    trace = write_trace([10])
    monkeypatch.setattr("prophet_moe.sim.sweep._seen", lambda *_: 1)
    asked = sweep(trace, systems=("prophet", "lru"), slots=("25%",), predictor=trace.path, options=swept)
    cells, _ = cells_of(asked)
    assert [(cell.system, dict(cell.options)) for cell in cells] == [
        ("prophet", {"last": 1, "least": 0.5}),
        ("prophet", {"last": 3, "least": 0.5}),
        ("lru", {}),
    ]
    assert len({cell.key for cell in cells}) == 3
    assert [cell.predictor_seen for cell in cells] == [1, 1, None]


def test_a_results_file_grows_by_whole_lines(write_trace: MakeTrace, tmp_path: Path) -> None:
    path = tmp_path / "deep" / "results.jsonl"
    cells, _ = cells_of(sweep(write_trace([15]), systems=("lru", "belady"), slots=("25%",)))
    first, second = (run_cell(cell) for cell in cells)
    file = ResultsFile(path)
    file.append(first)
    with path.open("a") as torn:
        torn.write(to_json(second)[:100])
    assert [line["cell"] for line in read_results(path)] == [first["cell"]]
    again = ResultsFile(path)
    again.append(second)
    assert [line["cell"] for line in read_results(path)] == [first["cell"], second["cell"]]
    assert [line["cell"] for line in again.lines] == [first["cell"], second["cell"]]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("nonsense\n", "line 1, is no result"),
        ('{"model": "x"}\n', "line 1, is no result"),
        ("[1]\n", "line 1, is no result"),
        ("\xff\xfe\n", "line 1, is no result"),
        ('{"results_version": 3}\n', "is of results version 3; this release knows 1 and 2"),
        ('{"results_version": 1}\n', "has no 'model'"),
    ],
)
def test_files_that_are_no_results_are_refused(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "results.jsonl"
    path.write_bytes(text.encode("latin-1"))
    for read in (read_results, ResultsFile):
        with pytest.raises(InvalidArgument, match=words):
            read(path)
    assert path.read_bytes() == text.encode("latin-1"), "what was refused is left alone"
