"""What a file of this repository looks like."""

import re
from pathlib import Path
from urllib.parse import urlsplit

CODE = {".h", ".cc", ".cu", ".cuh", ".py", ".pyi"}
LINES = 450
LISTS = {".pyi": 600}  # the types of one module are one file, whatever it holds
BYTES = 45_000_000
BUILT = {".so", ".o", ".a", ".pyc", ".whl", ".egg", ".dylib"}
OWN_NAME = Path("tests/house/test_files.py")  # holds the forbidden words to look for them

# Anything else that looks like a host is a slip: a registry, a mirror, a private server.
HOSTS = {
    "arxiv.org",
    "ui.perfetto.dev",
    "github.com",
    "git-lfs.github.com",  # what a pointer file of Git LFS begins with
    "huggingface.co",
    "json-schema.org",
    "keepachangelog.com",
    "semver.org",
    "www.apache.org",
}
PRIVATE_PATH = re.compile(r"(?<![\w.$}~/-])/(?:home|root|Users|work|workspace|mnt)/[\w.]")
UNFINISHED = re.compile(r"\b(?:TODO|FIXME|XXX|HACK)\b")
AUTHORSHIP = re.compile(
    r"\b(?:chatgpt|claude|copilot|anthropic|(?:coding|ai|sub-?) ?agents?|language model assistant)\b", re.I
)
WAITING = re.compile(r"\btime\.sleep\(")


def offences(texts: dict[Path, str], pattern: re.Pattern[str]) -> list[str]:
    return [
        f"{path}:{text[: match.start()].count(chr(10)) + 1}: {match.group(0)!r}"
        for path, text in texts.items()
        if path != OWN_NAME and path.name != "tokenizer.json"
        for match in pattern.finditer(text)
    ]


def test_code_files_stay_readable(texts: dict[Path, str]) -> None:
    counted = {path: text.count("\n") for path, text in texts.items() if path.suffix in CODE}
    long = {str(path): n for path, n in counted.items() if n > LISTS.get(path.suffix, LINES)}
    assert not long, f"split these files, one concept each (at most {LINES} lines): {long}"


def test_no_large_files(files: list[Path], root: Path) -> None:
    large = {str(path): size for path in files if (size := (root / path).stat().st_size) > BYTES}
    assert not large, f"files above {BYTES} bytes do not belong here: {large}"


def test_no_build_outputs(files: list[Path]) -> None:
    built = [str(path) for path in files if path.suffix in BUILT or "__pycache__" in path.parts]
    assert not built, f"git rm --cached these build outputs: {built}"


def test_text_files_end_with_one_newline(texts: dict[Path, str]) -> None:
    wrong = [
        str(path)
        for path, text in texts.items()
        if text and path.suffix != ".json" and (not text.endswith("\n") or text.endswith("\n\n"))
    ]
    assert not wrong, f"end these files with one newline: {wrong}"


def test_every_header_begins_with_its_contract(texts: dict[Path, str]) -> None:
    bare = [
        str(path)
        for path, text in texts.items()
        if path.parts[0] == "csrc" and path.suffix in {".h", ".cuh"} and not text.startswith("// ")
    ]
    assert not bare, f"a header is a contract; begin these with a comment that states it: {bare}"


def test_every_module_has_a_docstring(texts: dict[Path, str]) -> None:
    bare = [
        str(path)
        for path, text in texts.items()
        if path.suffix == ".py" and text.strip() and not re.match(r'(#.*\n)*\s*r?"""', text)
    ]
    assert not bare, f"begin these modules with a docstring: {bare}"


def test_nothing_is_left_unfinished(texts: dict[Path, str]) -> None:
    found = offences(texts, UNFINISHED)
    assert not found, "finish it, or write down what falls short: " + "\n".join(found)


def test_no_private_paths(texts: dict[Path, str]) -> None:
    found = offences(texts, PRIVATE_PATH)
    assert not found, "paths of one person's machine: " + "\n".join(found)


def test_the_repository_speaks_of_the_project_alone(texts: dict[Path, str]) -> None:
    found = offences(texts, AUTHORSHIP)
    assert not found, "\n".join(found)


def test_hosts_are_known(texts: dict[Path, str]) -> None:
    strange = []
    for path, text in texts.items():
        if path.name in {"LICENSE", "tokenizer.json"}:
            continue
        for url in re.findall(r"https?://[^\s)>\"'`\]]+", text):
            host = urlsplit(url).hostname or ""
            if host not in HOSTS and not host.startswith("127.0.0.1") and host != "localhost":
                strange.append(f"{path}: {url}")
    assert not strange, "hosts that this repository does not name: " + "\n".join(strange)


def test_tests_do_not_sleep(texts: dict[Path, str]) -> None:
    tests = {path: text for path, text in texts.items() if path.parts[0] == "tests"}
    found = offences(tests, WAITING)
    assert not found, "wait for the fact itself (a condition, a virtual clock), not for time: " + "\n".join(
        found
    )


def test_no_expected_failures(texts: dict[Path, str]) -> None:
    tests = {path: text for path, text in texts.items() if path.parts[0] == "tests"}
    found = offences(tests, re.compile(r"mark\.xfail|pytest\.xfail\("))
    assert not found, "mend it, or test what it does today: " + "\n".join(found)
