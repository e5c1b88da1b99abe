"""The recorder, against the library's own generate on the stock reference model."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prophet_moe.generate import TextStream, decode, end_tokens, fixed_tokens
from prophet_moe.models.stock import load_stock, load_tokenizer

PROMPT = [52, 270, 1001, 7]


@pytest.fixture(scope="module")
def stock() -> Any:
    torch.set_num_threads(1)
    return load_stock("reference-moe", dtype=torch.float32)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return load_tokenizer("reference-moe")


def test_greedy_equals_the_librarys(stock: Any) -> None:
    told: list[int] = []
    found = decode(stock, PROMPT, max_new_tokens=6, on_token=told.append)
    expected = stock.generate(torch.tensor([PROMPT]), max_new_tokens=6, do_sample=False)[
        0, len(PROMPT) :
    ].tolist()
    assert found.token_ids == told == expected
    assert len(found.marks) == 6
    assert all(a.at_ns < b.at_ns for a, b in zip(found.marks, found.marks[1:], strict=False))
    assert found.begun.at_ns < found.marks[0].at_ns


def test_forced_tokens_are_fed_whatever_the_logits_say(stock: Any) -> None:
    forced = [9, 8, 7]
    assert decode(stock, PROMPT, max_new_tokens=3, forced=forced).token_ids == forced


def test_a_seed_repeats_a_sample(stock: Any) -> None:
    runs = [
        decode(stock, PROMPT, max_new_tokens=8, temperature=1.5, top_p=0.9, seed=seed).token_ids
        for seed in (3, 3, 4)
    ]
    assert runs[0] == runs[1] != runs[2]


def test_counters_are_taken_at_each_mark(stock: Any) -> None:
    calls = iter(range(100))
    found = decode(stock, PROMPT, max_new_tokens=3, counters=lambda: {"misses": next(calls)})
    assert [found.begun.counters["misses"], *(m.counters["misses"] for m in found.marks)] == [0, 1, 2, 3]


def test_a_kept_cache_continues(stock: Any) -> None:
    whole = decode(stock, PROMPT, max_new_tokens=6).token_ids
    first = decode(stock, PROMPT, max_new_tokens=3)
    again = decode(stock, PROMPT + first.token_ids, max_new_tokens=3, past=first.past)
    assert first.token_ids + again.token_ids == whole


def test_stop_ends_after_the_token_it_is_asked_about(stock: Any) -> None:
    found = decode(stock, PROMPT, max_new_tokens=9, stop=lambda ids: len(ids) == len(PROMPT) + 2)
    assert len(found.token_ids) == len(found.marks) == 2


def test_ctrl_c_keeps_what_was_done(stock: Any) -> None:
    seen: list[int] = []

    def on_token(token: int) -> None:
        seen.append(token)
        if len(seen) == 2:
            raise KeyboardInterrupt

    found = decode(stock, PROMPT, max_new_tokens=9, on_token=on_token)
    assert found.interrupted
    assert found.token_ids == seen
    assert len(found.marks) == 2
    assert found.past is None
    with pytest.raises(KeyboardInterrupt):
        found.whole()


@pytest.mark.parametrize(
    ("prompt", "settings", "sentence"),
    [
        ([], {}, "no tokens"),
        ([4096], {}, "token id 4096 .* outside the vocabulary of 0 to 4095"),
        ([-1], {}, "token id -1"),
        (PROMPT, {"max_new_tokens": 0}, "at least 1"),
        (PROMPT, {"temperature": -0.1}, "temperature"),
        (PROMPT, {"temperature": float("nan")}, "temperature"),
        (PROMPT, {"top_p": 0.0}, "top-p"),
        (PROMPT, {"top_p": 1.1}, "top-p"),
    ],
)
def test_nonsense_gets_a_sentence(
    stock: Any, prompt: list[int], settings: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        decode(stock, prompt, **({"max_new_tokens": 2} | settings))


def test_fixed_tokens_are_always_the_same_and_avoid_ends() -> None:
    tokens = fixed_tokens(500, 10, avoid=[0, 3])
    assert tokens == fixed_tokens(500, 10, avoid=[0, 3])
    assert set(tokens) == set(range(10)) - {0, 3}
    with pytest.raises(ValueError, match="none left"):
        fixed_tokens(1, 1, avoid=[0])


def test_end_tokens_of_models_and_configs() -> None:
    config = SimpleNamespace(eos_token_id=[1, 2])
    assert end_tokens(SimpleNamespace(config=config)) == [1, 2]
    assert end_tokens(SimpleNamespace(config=config, generation_config=SimpleNamespace(eos_token_id=5))) == [
        5
    ]
    assert end_tokens(SimpleNamespace(config=SimpleNamespace(eos_token_id=None))) == []


@pytest.mark.parametrize(
    "text", ["It was a dark and stormy night.\n\n", "naïve “quotes” – 日本語 🐋🐋 done", "  spaces  "]
)
def test_streamed_text_is_the_text(tokenizer: Any, text: str) -> None:
    ids = [int(token) for token in tokenizer(text)["input_ids"]]
    stream = TextStream(lambda part: str(tokenizer.decode(part)))
    parts = [stream.feed(token) for token in ids]
    assert "".join(parts) + stream.end() == tokenizer.decode(ids)
    assert not any("�" in part for part in parts)


@given(st.text())
def test_streamed_bytes_are_the_text(text: str) -> None:
    """A token per byte: every character but ASCII is broken on the way."""
    stream = TextStream(lambda ids: bytes(ids).decode("utf-8", errors="replace"))
    streamed = "".join(stream.feed(byte) for byte in text.encode()) + stream.end()
    assert streamed.replace("�", "") == text.replace("�", "")
