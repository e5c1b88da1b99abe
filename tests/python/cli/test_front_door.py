"""Help, version, flags: what a visitor sees first."""

import subprocess
import sys
from typing import Any

import pytest
import typer

from prophet_moe.cli import app

GROUP = typer.main.get_command(app)
VERBS = {
    "use": {"serve", "run", "chat", "pack", "demo"},
    "understand": {"plan", "doctor"},
    "study": {"bench", "trace", "simulate", "train", "score", "report", "analyze"},
}


def test_help_fits_one_screen_and_groups_its_verbs(prophet: Any) -> None:
    done = prophet("--help", env={"COLUMNS": "80", "TERM": "dumb"})
    assert done.exit_code == 0
    lines = done.stdout.strip().splitlines()
    assert len(lines) <= 30
    places = [
        next(i for i, line in enumerate(lines) if f" {group} " in line and "─" in line) for group in VERBS
    ]
    assert places == sorted(places)
    for group, names in VERBS.items():
        at = places[list(VERBS).index(group)]
        shown = {line.split()[1] for line in lines[at + 1 : at + 1 + len(names)]}
        assert shown == names


@pytest.mark.parametrize("verb", sorted(GROUP.commands))
def test_each_verb_begins_with_an_example_that_works_on_the_reference_model(prophet: Any, verb: str) -> None:
    lines = [line.strip() for line in prophet(verb, "--help").stdout.splitlines() if line.strip()]
    assert lines[1].startswith(f"Example: prophet {verb}")
    assert verb in ("demo", "doctor") or "reference-moe" in lines[1]


@pytest.mark.parametrize("verb", sorted(GROUP.commands))
def test_every_flag_has_its_variable(verb: str) -> None:
    for option in GROUP.commands[verb].params:
        if option.param_type_name != "option" or option.name == "help":
            continue
        long = next(name for name in option.opts if name.startswith("--"))
        assert option.envvar == "PROPHET_" + long[2:].replace("-", "_").upper(), f"{verb} {long}"


def test_version(prophet: Any) -> None:
    done = prophet("--version")
    assert done.exit_code == 0
    name, number = done.stdout.split()
    assert name == "prophet"
    assert number.count(".") == 2


def test_help_does_not_import_torch() -> None:
    code = """
import sys
from prophet_moe.cli import main
sys.argv = ["prophet", "--help"]
try:
    main()
except SystemExit:
    pass
assert not {"torch", "transformers"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=60)


@pytest.mark.parametrize(
    "words",
    [
        ["fly"],
        ["run"],
        ["run", "reference-moe", "--wings"],
        ["run", "reference-moe", "-n", "many"],
        ["run", "reference-moe", "-n", "0"],
        ["run", "reference-moe", "--temperature", "-1"],
        ["run", "reference-moe", "--temperature", "nan"],
        ["run", "reference-moe", "-t", "0"],
        ["bench", "reference-moe", "-n", "1"],
        ["bench", "reference-moe", "--repeat", "0"],
        ["pack", "reference-moe"],
    ],
)
def test_wrong_usage_exits_with_2(prophet: Any, words: list[str]) -> None:
    done = prophet(*words)
    assert done.exit_code == 2
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
