"""The comparison: order of runs, the table, the ratios, and one whole comparison of stand-in peers."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import compare
import pytest
import summary
from compare import PEERS, Peer, arguments, prepare, rotated, shape_of
from hypothesis import given
from hypothesis import strategies as st
from make_checkpoint import Shape
from summary import agreement, outcome, ratios, spread, table

MIB = 1 << 20


def row(peer: str, number: int, seconds: float, mib: float, **more: Any) -> dict[str, Any]:
    result = {
        "version": "1",
        "decode_steps": 16,
        "ttft_ms": 1000.0,
        "load_s": 1.0,
        "cpu_ms_per_token": 50.0,
        "tpot_ms": {"mean": seconds * 1e3, "median": 0},
        "bytes": {"per_token": mib * MIB},
        "peak_rss_bytes": 500 * MIB,
        "picked": [1, 2, 3],
    }
    record = {
        "peer": peer,
        "round": number,
        "exit_status": 0,
        "timed_out": False,
        "oom_kills": 0,
        "limit_bytes": 1 << 30,
        "peak_memory_bytes": 900 * MIB,
        "still_cached_bytes": 0,
        "read_ahead_kb": 128,
        "load_average": [0.5, 0.6],
        "result": result,
    }
    return record | more


@given(st.integers(1, 4), st.integers(1, 9))
def test_every_peer_runs_once_a_round_and_begins_in_turn(count: int, rounds: int) -> None:
    peers = PEERS[:count]
    order = list(rotated(peers, rounds))
    for number in range(rounds):
        names = [peer for at, peer in order if at == number]
        assert sorted(names, key=peers.index) == list(peers)
        assert names[0] == peers[number % count]


def test_ratios_are_taken_within_rounds() -> None:
    rows = [
        *(row("prophet", i, t, 200) for i, t in enumerate([0.2, 0.4, 0.1])),
        *(row("slow", i, 8.0, 900) for i in range(3)),
        *(row("fast", i, t, 250) for i, t in enumerate([0.8, 1.6, 0.2])),
    ]
    runs, faster, fewer = ratios(rows)
    assert runs == "[reached] prophet runs and is never OOM-killed: 3 of 3 ran."
    assert faster.startswith(
        "[reached] 4.00 (2.00–4.00)× faster per token than the best peer of its round (fast)"
    )
    assert fewer.startswith("[reached] 0.800× the bytes per token of the peer that reads least (fast)")


def test_a_figure_that_falls_short_is_said() -> None:
    rows = [row("prophet", 0, 0.5, 300), row("a", 0, 1.0, 299), row("b", 0, 9.0, 999)]
    _, faster, fewer = ratios(rows)
    assert faster.startswith("[NOT reached] 2.00× faster")
    assert fewer.startswith("[NOT reached] 1.003×")


def test_an_oom_kill_of_prophet_is_never_reached() -> None:
    killed = row("prophet", 0, 0.1, 1, exit_status=-9, oom_kills=1, result=None)
    rows = [killed, row("prophet", 1, 0.1, 1), row("a", 0, 1, 9), row("a", 1, 1, 9)]
    assert ratios(rows)[0] == "[NOT reached] prophet runs and is never OOM-killed: 1 of 2 ran, 1 OOM-killed."


def test_a_peer_that_failed_is_no_rival() -> None:
    failed = row("a", 0, 0.001, 0, exit_status=1)
    assert ratios([row("prophet", 0, 1, 1), failed])[1:] == ["No peer ran beside it: no ratio."]
    assert "no ratio" in ratios([failed])[0]


def test_outcomes_are_told_apart() -> None:
    rows = [
        row("a", 0, 1, 1),
        row("a", 1, 1, 1, exit_status=-9, timed_out=True, result=None),
        row("a", 2, 1, 1, exit_status=3, result={"peer": "a", "unavailable": "not here"}),
        row("a", 3, 1, 1, exit_status=1, result=None),
        row("a", 4, 1, 1, exit_status=-9, oom_kills=1, result=None),
    ]
    assert outcome(rows) == (
        "1 of 5 ran, 1 out of time, 1 not installed, 1 failed with exit status 1, 1 OOM-killed"
    )


@pytest.mark.parametrize(
    ("values", "text"),
    [([], "–"), ([2.0], "2.0"), ([3.0, 1.0, 2.0], "2.0 (1.0–3.0)"), ([1, 2], "1.5 (1.0–2.0)")],
)
def test_medians_come_with_ranges(values: list[float], text: str) -> None:
    assert spread(values, 1) == text


def test_agreement_counts_equal_picks() -> None:
    one, other = row("a", 0, 1, 1), row("b", 0, 1, 1)
    other["result"] = other["result"] | {"picked": [1, 9, 3]}
    assert agreement([one], [other]) == "2/3"
    assert agreement([], [other]) == "–"


def test_the_table_has_a_row_for_every_peer_even_the_absent() -> None:
    absent = row("b", 0, 1, 1, exit_status=3, result={"unavailable": "not here"})
    rows = [row("prophet", 0, 0.25, 166), row("prophet", 1, 0.35, 166), absent]
    head, rule, *body = table(rows, 332 * MIB).splitlines()
    assert len(body) == 2
    assert {line.count("|") for line in (head, rule, *body)} == {head.count("|")}
    cells = dict(zip(head.split("|"), body[0].split("|"), strict=True))
    assert cells[" s per token "].strip() == "0.300 (0.250–0.350)"
    assert cells[" × ideal "].strip() == "0.50 (0.50–0.50)"
    assert "1 not installed" in body[1]


def test_a_checkpoint_tells_its_shape(tmp_path: Path) -> None:
    shape = Shape(layers=1, hidden=32, experts=4, top_k=2, expert_width=16, heads=2, kv_heads=1, head_dim=16)
    checkpoint, converted = prepare(tmp_path, shape, gguf=True)
    assert converted.stat().st_size > shape.bytes
    assert shape_of(checkpoint).ideal_bytes_per_token == shape.ideal_bytes_per_token
    before = checkpoint.stat().st_mtime_ns
    assert prepare(tmp_path, Shape(), gguf=True) == (checkpoint, converted)  # taken as it is
    assert checkpoint.stat().st_mtime_ns == before


def test_libraries_of_an_interpreter_are_found() -> None:
    names = {file.name for file in compare.libraries(sys.executable)}
    assert "libtorch_cpu.so" in names


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--work", "d", "--peers", "prophet,vllm"], "not vllm"),
        ([], "--work"),
        (["--work", "d", "--print", "f"], "--work"),
        (["--work", "d", "--rounds", "0"], "at least 1"),
        (["--work", "d", "--option", "vllm:--x=1"], "known peer"),
        (["--work", "d", "--option", "prophet"], "PEER:--flag=value"),
        (["--work", "d", "--limit", "much"], "'much' is not a size"),
    ],
)
def test_bad_input_gets_a_sentence(
    words: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        arguments(words)
    assert ended.value.code == 2
    assert sentence in capsys.readouterr().err


STAND_IN = """
import json, sys
steps = int(sys.argv[sys.argv.index("--steps") + 1])
print(json.dumps({{"peer": {name!r}, "version": "0", "decode_steps": steps, "ttft_ms": 1.0, "load_s": 0.1,
    "tpot_ms": {{"mean": {ms}, "median": {ms}}}, "cpu_ms_per_token": 1.0,
    "bytes": {{"per_token": {read}}}, "peak_rss_bytes": 1,
    "picked": [1, 2], "words": sys.argv[1:]}}))
"""


def test_a_whole_comparison(tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def peer(name: str, ms: float, read: int, **how: bool) -> Peer:
        (tmp_path / f"{name}.py").write_text(STAND_IN.format(name=name, ms=ms, read=read))
        return Peer(name, str(tmp_path / f"{name}.py"), **how)

    work = tmp_path / "work"
    work.mkdir()
    (work / "checkpoint").symlink_to(tiny)
    peers = (
        peer("prophet", 10, 100),
        peer("rival", 50, 400, takes_gguf=True),
        peer("copier", 90, 900, offload=True),
    )
    monkeypatch.setattr(compare, "PEERS", peers)
    monkeypatch.setattr(compare, "libraries", lambda python: [])  # other tests use them
    given = arguments(["--work", str(work), "--rounds", "2", "--steps", "4", "--option", "rival:--x=7"])
    given.limit = None  # no control group: this is about what is run and written down
    rows = compare.measure(given, work / "records.jsonl")
    assert [r["peer"] for r in rows] == ["prophet", "rival", "copier", "rival", "copier", "prophet"]
    assert rows == [json.loads(line) for line in (work / "records.jsonl").read_text().splitlines()]
    words = {r["peer"]: r["result"]["words"] for r in rows}
    assert words["prophet"][0] == str(work / "checkpoint")
    assert words["rival"][0] == str(work / "model.gguf")
    assert words["rival"][-1] == "--x=7"
    offload = Path(words["copier"][words["copier"].index("--offload-folder") + 1])
    assert offload.parent == work
    assert not offload.exists()
    assert ratios(rows)[1].startswith("[reached] 5.00 (5.00–5.00)× faster")

    printed = subprocess.run(
        [sys.executable, compare.__file__, "--print", str(work / "records.jsonl")],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    ).stdout
    assert summary.table(rows, shape_of(tiny).ideal_bytes_per_token) in printed
