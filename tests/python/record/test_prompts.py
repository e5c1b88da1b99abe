"""Prompt files: what is read, and the sentences about what is not."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prophet_moe.errors import InvalidArgument
from prophet_moe.models.stock import load_tokenizer
from prophet_moe.record import Prompt, read_prompts, tokenise
from prophet_moe.record.prompts import shipped


def test_the_package_has_prompts_in_six_domains() -> None:
    found = read_prompts(shipped())
    labels = [prompt.label for prompt in found]
    assert {label: labels.count(label) for label in labels} == dict.fromkeys(
        ("code", "dialogue", "math", "medical", "novel", "speech"), 8
    )
    assert len({prompt.text for prompt in found}) == len(found)
    assert len(read_prompts(shipped(), per_domain=2)) == 12
    ids = tokenise(found, load_tokenizer("reference-moe"), 4096)
    assert all(8 <= len(row) <= 200 for row in ids)


def test_a_folder_is_read_in_the_order_of_names(tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_text("whole\nfile\n")
    (tmp_path / "a.jsonl").write_text(
        '{"text": "one"}\n\n{"prompt": "two", "domain": "d"}\n{"ids": [3, 4]}\n'
    )
    (tmp_path / "notes.md").write_text("no prompt")
    assert read_prompts(tmp_path) == [
        Prompt("a", "a.jsonl:1", "one"),
        Prompt("d", "a.jsonl:3", "two"),
        Prompt("a", "a.jsonl:4", ids=(3, 4)),
        Prompt("b", "b.txt", "whole\nfile\n"),
    ]
    assert [prompt.label for prompt in read_prompts(tmp_path, per_domain=1)] == ["a", "d", "b"]


def test_without_a_tokenizer_a_txt_holds_ids(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("1 2 3\n\n4,5\n")
    found = read_prompts(tmp_path / "p.txt", ids_only=True)
    assert [prompt.ids for prompt in found] == [(1, 2, 3), (4, 5)]
    assert tokenise(found, None, 6) == [[1, 2, 3], [4, 5]]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("p.jsonl", b"", "holds no prompts"),
        ("p.txt", b" \n", "holds no prompts"),
        ("p.csv", b"x", "neither a folder nor"),
        ("p.jsonl", b'{"text": "a"}\n{"text": \n', "line 2 is not JSON"),
        ("p.jsonl", b'{"text": "a"}\n\n["a"]\n', "line 3: a prompt is an object"),
        ("p.jsonl", b'{"words": "a"}\n', "this has none"),
        ("p.jsonl", b'{"text": "a", "prompt": "b"}\n', "text and prompt"),
        ("p.jsonl", b'{"text": 3}\n', "'text' must be a text"),
        ("p.jsonl", b'{"text": ""}\n', "not empty"),
        ("p.jsonl", b'{"text": "a", "domain": 3}\n', "domain must be a text, not 3"),
        ("p.jsonl", b'{"ids": []}\n', "list of whole numbers"),
        ("p.jsonl", b'{"ids": [1, true]}\n', "list of whole numbers"),
        ("p.jsonl", b'{"ids": [1.5]}\n', "list of whole numbers"),
        ("p.jsonl", b"[" * 100_000, "line 1 is not JSON"),
        ("p.jsonl", b'{"text": "a \\ud800"}\n', "half a surrogate pair"),
        ("p.jsonl", b'{"text": "a", "domain": "\\udfff"}\n', "half a surrogate pair"),
        ("p.txt", b"\xff\xfe", "not UTF-8 text .byte 0."),
    ],
)
def test_what_is_no_prompt_is_refused(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InvalidArgument, match=words):
        read_prompts(tmp_path / name)


def test_missing_and_empty_places_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="holds no prompts: put"):
        read_prompts(tmp_path)
    with pytest.raises(InvalidArgument, match="cannot be read: No such file"):
        read_prompts(tmp_path / "absent.jsonl")
    (tmp_path / "p.txt").write_text("1 2\nthree\n")
    with pytest.raises(InvalidArgument, match=r"p\.txt, line 2 is no list of token ids"):
        read_prompts(tmp_path / "p.txt", ids_only=True)


def test_tokens_are_checked() -> None:
    with pytest.raises(InvalidArgument, match="has no tokenizer"):
        tokenise([Prompt("d", "a.txt", "text")], None, 10)
    for wrong in (-1, 10):
        with pytest.raises(InvalidArgument, match=f"a.jsonl:2: token id {wrong} is outside .* 0 to 9"):
            tokenise([Prompt("d", "a.jsonl:2", ids=(3, wrong))], None, 10)
    with pytest.raises(InvalidArgument, match="has no tokens"):
        tokenise([Prompt("d", "a.jsonl:1")], None, 10)


@given(
    rows=st.lists(st.tuples(st.text(min_size=1), st.text()), min_size=1, max_size=5), ascii_only=st.booleans()
)
def test_any_text_survives(tmp_path_factory: Any, rows: list[tuple[str, str]], ascii_only: bool) -> None:
    """Line ends of Unicode inside of texts included."""
    path = tmp_path_factory.mktemp("any") / "p.jsonl"
    lines = [json.dumps({"text": text, "domain": domain}, ensure_ascii=ascii_only) for text, domain in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8", newline="")
    assert [(prompt.text, prompt.label) for prompt in read_prompts(path)] == rows
