"""What the documents say can be followed: links resolve, commands exist, versions agree."""

import importlib.metadata
import re
from pathlib import Path

import typer
from packaging.requirements import Requirement

import prophet_ext
from prophet_moe import cli

ROOT = Path(__file__).resolve().parents[2]
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
FENCE = re.compile(r"```.*?```", re.DOTALL)
FRONT_DOOR = [
    "pip install -c constraints.txt . && prophet demo",
    "pip install -c constraints.txt '.[test]' && pytest",
]


def slug(heading: str) -> str:
    """The anchor that a Markdown heading gets."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def anchors(text: str) -> set[str]:
    return {slug(found) for found in re.findall(r"^#+ (.*)$", FENCE.sub("", text), re.MULTILINE)}


def pages(texts: dict[Path, str]) -> dict[Path, str]:
    return {path: text for path, text in texts.items() if path.suffix == ".md"}


def commands(texts: dict[Path, str]) -> list[tuple[Path, str]]:
    """Every `prophet ...` command line shown in a code block, with the page that shows it."""
    found = []
    for path, text in pages(texts).items():
        for block in FENCE.findall(text):
            for line in block.splitlines():
                if match := re.match(r"(?:\$ )?prophet (.*)", line.strip()):
                    found.append((path, match.group(1)))
    return found


def verbs() -> set[str]:
    return set(typer.main.get_command(cli.app).commands)


def test_relative_links_resolve(texts: dict[Path, str]) -> None:
    broken = []
    for path, text in pages(texts).items():
        for target in LINK.findall(FENCE.sub("", text)):
            if "://" in target or target.startswith("mailto:"):
                continue
            name, _, anchor = target.partition("#")
            other = (ROOT / path.parent / name).resolve() if name else ROOT / path
            if not other.exists():
                broken.append(f"{path}: {target} does not exist")
            elif anchor and other.suffix == ".md" and anchor not in anchors(other.read_text()):
                broken.append(f"{path}: {target} has no such heading")
    assert not broken, "\n".join(broken)


def test_every_page_is_reachable(texts: dict[Path, str]) -> None:
    """From README.md, by links alone."""
    known = pages(texts)
    seen, todo = set(), [Path("README.md")]
    while todo:
        path = todo.pop()
        if path in seen or path not in known:
            continue
        seen.add(path)
        for target in LINK.findall(known[path]):
            name = target.partition("#")[0]
            if name and "://" not in name:
                resolved = (ROOT / path.parent / name).resolve()
                todo += [page for page in known if (ROOT / page) == resolved]
                todo += [page for page in known if resolved.is_dir() and (ROOT / page).parent == resolved]
    lost = {page for page in known if page.parts[0] == "docs"} - seen
    assert not lost, f"no link leads to {sorted(map(str, lost))}"


def test_the_front_door_has_its_two_commands() -> None:
    text = (ROOT / "README.md").read_text()
    lines = [line.strip() for block in FENCE.findall(text) for line in block.splitlines()]
    assert [line for line in lines if line.startswith("pip install")] == FRONT_DOOR


def test_every_verb_is_documented(texts: dict[Path, str]) -> None:
    shown = {words.split()[0] for _, words in commands(texts)}
    prose = " ".join(pages(texts).values())
    missing = {verb for verb in verbs() if verb not in shown and f"`prophet {verb}" not in prose}
    assert not missing, f"no page shows `prophet {sorted(missing)}`"


def test_every_documented_command_exists(texts: dict[Path, str]) -> None:
    known = verbs()
    wrong = [
        f"{path}: prophet {words}"
        for path, words in commands(texts)
        if not words.startswith("-") and words.split()[0] not in known
    ]
    assert not wrong, "\n".join(wrong)


def test_every_documented_flag_exists(texts: dict[Path, str]) -> None:
    group = typer.main.get_command(cli.app)
    wrong = []
    for path, words in commands(texts):
        verb, *rest = words.split()
        if verb not in group.commands:
            continue
        command = group.commands[verb]
        if hasattr(command, "commands"):  # a verb with sub-verbs, one of which goes unsaid
            sub = rest[0] if rest and rest[0] in command.commands else command.unsaid
            command = command.commands[sub]
        known = {name for option in command.params for name in option.opts + option.secondary_opts}
        known |= {"--help"}
        bare = re.sub(r"'[^']*'|\"[^\"]*\"", "", words.split("#")[0])
        flags = re.findall(r"(?<!\S)(--?[a-zA-Z][\w-]*)", bare)
        wrong += [f"{path}: prophet {verb} has no {flag}" for flag in flags if flag not in known]
    assert not wrong, "\n".join(wrong)


def test_versions_agree() -> None:
    stated = re.search(r'^version = "(.*)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert stated is not None
    assert f"## {stated[1]}" in (ROOT / "CHANGELOG.md").read_text()
    assert prophet_ext.__version__ == stated[1]


def test_pins_lie_within_the_stated_ranges() -> None:
    stated = map(Requirement, importlib.metadata.requires("prophet-moe") or [])
    ranges = {requirement.name: requirement.specifier for requirement in stated}
    assert ranges, "prophet-moe is not installed: pip install '.[test]'"
    pins = [Requirement(line) for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line]
    outside = [
        f"{pin} is outside of {ranges[pin.name]}"
        for pin in pins
        for exact in pin.specifier
        if pin.name in ranges and not ranges[pin.name].contains(exact.version)
    ]
    assert not outside, "\n".join(outside)
    assert set(ranges) <= {pin.name for pin in pins}, "constraints.txt pins every stated requirement"
