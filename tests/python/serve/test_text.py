"""Stop sequences and the queue, against brute force."""

import asyncio
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prophet_moe.serve.admission import Gate, Overloaded
from prophet_moe.serve.text import AnswerText, StopWatch

few = st.text("ab.", max_size=12)


def first_stop(text: str, stops: list[str]) -> int | None:
    """Where the answer ends: read one character at a time, at the first stop that is complete."""
    for end in range(len(text) + 1):
        begins = [end - len(stop) for stop in stops if stop and text[:end].endswith(stop)]
        if begins:
            return min(begins)
    return None


@given(text=few, stops=st.lists(few, max_size=3), cuts=st.lists(st.integers(0, 12), max_size=5))
def test_a_stop_is_found_wherever_tokens_divide_it(text: str, stops: list[str], cuts: list[int]) -> None:
    watch = StopWatch(stops)
    bounds = [0, *sorted(cuts), len(text)]
    said = "".join(watch.feed(text[a:b]) for a, b in itertools.pairwise(bounds) if a <= b)
    if not watch.stopped:
        assert first_stop(text, stops) is None
        assert said + watch.end() == text
    else:
        assert first_stop(text, stops) is not None
        assert text.startswith(said)
        assert all(stop not in said for stop in stops if stop)
        if all(len(stop) == 1 for stop in stops):
            assert len(said) == first_stop(text, stops)


@given(text=few, stop=st.text("ab.", min_size=1, max_size=4))
def test_one_stop_cuts_exactly_before_it(text: str, stop: str) -> None:
    watch = StopWatch([stop])
    said = "".join(map(watch.feed, text))
    assert said + watch.end() == text.partition(stop)[0]
    assert watch.stopped == (stop in text)


def test_what_cannot_be_a_stop_is_told_at_once() -> None:
    watch = StopWatch(["\nUser:"])
    assert watch.feed("Well\n") == "Well"
    assert watch.feed("U") == ""
    assert watch.feed("n") == "\nUn"


def test_a_character_of_several_tokens_is_told_whole() -> None:
    """A decoder of bytes: the stop is a character whose bytes come one by one."""
    answer = AnswerText(lambda ids: bytes(ids).decode(errors="replace"), ["é"])
    said = [answer.feed(byte) for byte in "naïf é gone".encode()]
    assert "".join(said) == "naïf "
    assert "�" not in "".join(said)
    assert answer.stopped


def run(coroutine: object) -> None:
    asyncio.run(coroutine)  # type: ignore[arg-type]


async def settled() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def test_requests_enter_in_the_order_of_their_coming() -> None:
    async def scene() -> None:
        gate, order = Gate(rows=2, blocks=4, queue=9), []

        async def come(name: str, blocks: int) -> None:
            await gate.enter(blocks)
            order.append(name)

        await gate.enter(3)
        tasks = [asyncio.ensure_future(come(*one)) for one in (("large", 2), ("small", 1), ("last", 1))]
        await settled()
        assert order == []  # the small one would fit, and waits its turn
        assert gate.waiting == 3
        gate.leave(3)
        await settled()
        assert order == ["large", "small"]
        gate.leave(1)
        await asyncio.gather(*tasks)
        gate.leave(2)
        gate.leave(1)
        assert (gate.free_rows, gate.free_blocks, gate.inside, gate.waiting) == (2, 4, 0, 0)

    run(scene())


def test_past_the_queue_nobody_waits() -> None:
    async def scene() -> None:
        gate = Gate(rows=1, blocks=1, queue=1)
        await gate.enter(1)
        waiting = asyncio.ensure_future(gate.enter(1))
        await settled()
        with pytest.raises(Overloaded, match="try again in 7 s") as refused:
            await gate.enter(1, retry_after=7)
        assert refused.value.retry_after == 7
        gate.leave(1)
        await waiting

    run(scene())


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 3), st.booleans()), max_size=25))
def test_nothing_is_lost_whoever_leaves_and_whenever(script: list[tuple[int, int, bool]]) -> None:
    """Random comings, leavings and cancellings; at the end everything is free."""

    async def scene() -> None:
        gate = Gate(rows=2, blocks=3, queue=3)
        tasks: list[tuple[asyncio.Future[None], int, asyncio.Event]] = []

        async def stay(blocks: int, go: asyncio.Event) -> None:
            await gate.enter(blocks)
            try:
                await go.wait()
            finally:
                gate.leave(blocks)

        for number, blocks, settle in script:
            if number < 3:
                go = asyncio.Event()
                tasks.append((asyncio.ensure_future(stay(blocks, go)), blocks, go))
            elif tasks and number == 3:
                tasks[len(tasks) // 2][2].set()
            elif tasks:
                tasks[-1 if number == 4 else 0][0].cancel()
            if settle:
                await settled()
            assert 0 <= gate.free_rows <= 2
            assert 0 <= gate.free_blocks <= 3
            assert gate.waiting <= 3
        for _, _, go in tasks:
            go.set()
        await asyncio.gather(*(task for task, *_ in tasks), return_exceptions=True)
        assert (gate.free_rows, gate.free_blocks, gate.waiting) == (2, 3, 0)

    run(scene())
