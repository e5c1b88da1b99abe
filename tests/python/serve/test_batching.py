"""The batching manager behind our adapter: tokens, sampling, cancelling, failing, refusing."""

import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import tiny_models
import torch
from served import CONTEXT, PROMPTS, until

from prophet_moe.errors import InvalidArgument, StateError, UnsupportedModelError
from prophet_moe.generate import decode
from prophet_moe.models.batching import Batching, News
from prophet_moe.models.sampling import Sampling

Solo = Callable[[Sequence[int], int], list[int]]


class Ear:
    """Collects news by request."""

    def __init__(self) -> None:
        self.tokens: dict[str, list[int]] = {}
        self.chosen: dict[str, list[Any]] = {}
        self.over: dict[str, str | None] = {}
        self.changed = threading.Condition()

    def __call__(self, news: list[News]) -> None:
        with self.changed:
            for one in news:
                self.tokens.setdefault(one.request_id, []).extend(one.tokens)
                self.chosen.setdefault(one.request_id, []).extend(one.chosen)
                if one.finished:
                    self.over[one.request_id] = one.error
            self.changed.notify_all()

    def wait(self, condition: Callable[[], bool]) -> None:
        with self.changed:
            assert self.changed.wait_for(condition, timeout=60)


@pytest.fixture
def ear() -> Ear:
    return Ear()


@pytest.fixture
def batching(model: Any, ear: Ear) -> Iterator[Batching]:
    found = Batching(model, ear, rows=8, context=CONTEXT)
    yield found
    found.close()


def test_eight_staggered_requests_equal_their_solo_runs(
    batching: Batching, ear: Ear, tokenizer: Any, solo: Solo
) -> None:
    """Each comes while the ones before are being computed, three tokens apart."""
    prompts = [tokenizer(text)["input_ids"] for text in PROMPTS]
    for number, prompt in enumerate(prompts):
        batching.submit(f"r{number}", prompt, max_new_tokens=40)
        ear.wait(lambda name=f"r{number}": len(ear.tokens.get(name, ())) >= 3)
    ear.wait(lambda: len(ear.over) == 8)
    for number, prompt in enumerate(prompts):
        assert ear.tokens[f"r{number}"] == solo(prompt, 40), PROMPTS[number]
    assert batching.free_blocks == batching.blocks


def test_a_prompt_longer_than_a_pass_is_prefilled_in_parts(
    batching: Batching, ear: Ear, tokenizer: Any, solo: Solo, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batching._manager.batch_processor, "max_batch_tokens", 16)
    prompt = tokenizer("It was the best of times, it was the worst of times. " * 4)["input_ids"][:60]
    batching.submit("long", prompt, max_new_tokens=10)
    ear.wait(lambda: "long" in ear.over)
    assert ear.tokens["long"] == solo(prompt, 10)


def test_a_seed_means_what_it_means_in_generate(
    batching: Batching, ear: Ear, model: Any, tokenizer: Any
) -> None:
    """Whoever else is there: greedy and sampled requests share each pass."""
    prompt = tokenizer(PROMPTS[0])["input_ids"]
    settings = [(0.7, 0.9, 1), (1.3, 1.0, 2), (1.0, 0.5, 3)]
    for temperature, top_p, seed in settings:
        sampling = Sampling(temperature=temperature, top_p=top_p, seed=seed)
        batching.submit(f"s{seed}", prompt, max_new_tokens=24, sampling=sampling)
        batching.submit(f"g{seed}", prompt, max_new_tokens=24)
    ear.wait(lambda: len(ear.over) == 6)
    for temperature, top_p, seed in settings:
        alone = decode(
            model, prompt, max_new_tokens=24, temperature=temperature, top_p=top_p, seed=seed
        ).token_ids
        assert ear.tokens[f"s{seed}"] == alone
        assert ear.tokens[f"g{seed}"] == ear.tokens["g1"]
    assert len({tuple(ear.tokens[f"s{seed}"]) for *_, seed in settings}) == 3


def test_log_probabilities_are_the_models(batching: Batching, ear: Ear, model: Any, tokenizer: Any) -> None:
    """Before temperature, of the chosen token and the likeliest ones, by a forward pass over all of it."""
    prompt = tokenizer(PROMPTS[1])["input_ids"]
    wish = Sampling(temperature=1.5, top_p=0.8, seed=5, logprobs=3)
    batching.submit("one", prompt, max_new_tokens=12, sampling=wish)
    batching.submit("greedy", prompt, max_new_tokens=12, sampling=Sampling(logprobs=0))
    ear.wait(lambda: len(ear.over) == 2)
    for name in ("one", "greedy"):
        tokens, chosen = ear.tokens[name], ear.chosen[name]
        assert len(tokens) == len(chosen) == 12
        with torch.no_grad():
            logits = model(torch.tensor([[*prompt, *tokens]])).logits[0, len(prompt) - 1 : -1]
        logs = logits.double().log_softmax(-1)
        for row, token, said in zip(logs, tokens, chosen, strict=True):
            assert said.logprob == pytest.approx(float(row[token]), abs=1e-3)
            assert len(said.likeliest) == (3 if name == "one" else 0)
            for other, logprob in said.likeliest:
                assert logprob == pytest.approx(float(row[other]), abs=1e-3)
            if said.likeliest:
                assert said.likeliest[0][0] == int(row.argmax())


def test_a_cancelled_request_is_gone(batching: Batching, ear: Ear, tokenizer: Any, solo: Solo) -> None:
    prompt, other = tokenizer(PROMPTS[2])["input_ids"], tokenizer(PROMPTS[3])["input_ids"]
    batching.submit("gone", prompt, max_new_tokens=CONTEXT - len(prompt))
    batching.submit("stays", other, max_new_tokens=30)
    ear.wait(lambda: len(ear.tokens.get("gone", ())) >= 2)
    batching.cancel("gone")
    ear.wait(lambda: "stays" in ear.over)
    assert ear.tokens["stays"] == solo(other, 30)
    assert "gone" not in ear.over
    assert len(ear.tokens["gone"]) < 30
    assert until(lambda: batching.free_blocks == batching.blocks)
    batching.cancel("never there")


def test_a_failing_pass_fails_its_requests_and_not_the_next(
    batching: Batching, ear: Ear, model: Any, tokenizer: Any, solo: Solo
) -> None:
    prompt = tokenizer(PROMPTS[4])["input_ids"]

    def fail(*_: Any) -> None:
        raise OSError("the disk has gone")

    hook = model.register_forward_pre_hook(fail)
    try:
        batching.submit("lost", prompt, max_new_tokens=8)
        ear.wait(lambda: "lost" in ear.over)
    finally:
        hook.remove()
    assert ear.over["lost"] is not None
    assert "the disk has gone" in ear.over["lost"]
    batching.submit("next", prompt, max_new_tokens=8)
    ear.wait(lambda: "next" in ear.over)
    assert ear.over["next"] is None
    assert ear.tokens["next"] == solo(prompt, 8)
    assert batching.running
    assert batching.free_blocks == batching.blocks


def test_after_close_nothing_is_taken(model: Any, ear: Ear) -> None:
    batching = Batching(model, ear, rows=1, context=32)
    batching.close()
    batching.close()
    assert not batching.running
    with pytest.raises(StateError, match="restart the server"):
        batching.submit("late", [1], max_new_tokens=1)


@pytest.mark.parametrize("sizes", [(0, 32, None), (1, 0, None), (2, 64, 63)])
def test_impossible_sizes_are_refused(model: Any, ear: Ear, sizes: tuple[int, int, int | None]) -> None:
    rows, context, kv = sizes
    with pytest.raises(InvalidArgument, match="at least one context"):
        Batching(model, ear, rows=rows, context=context, kv_tokens=kv)


@pytest.mark.parametrize(("page", "blocks"), [(256, [1, 1, 1, 1]), (64, [1, 1, 2, 3]), (32, [1, 2, 3, 5])])
def test_a_request_alone_reads_its_pages_where_they_lie(
    model: Any,
    ear: Ear,
    tokenizer: Any,
    solo: Solo,
    monkeypatch: pytest.MonkeyPatch,
    page: int,
    blocks: list[int],
) -> None:
    """One page, several joined, and more than are joined; beside others it goes the library's road."""
    monkeypatch.setattr("prophet_moe.models.batching.PAGE", page)
    monkeypatch.setattr("prophet_moe.models.one_row.MOST_RUNS", 3)
    gathered: list[int] = []
    batching = Batching(model, ear, rows=2, context=CONTEXT)
    try:
        assert [batching.blocks_of(tokens) for tokens in (32, 64, 96, CONTEXT)] == blocks
        assert batching.blocks == 2 * batching.blocks_of(CONTEXT)
        road = batching._manager.batch_processor.cache.update
        library = road._library

        def gathers(keys: Any, values: Any, layer: int, kwargs: dict[str, Any]) -> Any:
            gathered.append(keys.shape[2])
            return library(keys, values, layer, kwargs)

        road._library = gathers
        prompts = [tokenizer(text)["input_ids"] for text in PROMPTS[:2]]
        batching.submit("alone", prompts[0], max_new_tokens=120)
        ear.wait(lambda: "alone" in ear.over)
        assert (gathered.count(1) > 0) == (blocks[-1] > 3), "only the longest are gathered"
        assert gathered.count(len(prompts[0])) > 0
        for number, prompt in enumerate(prompts):
            batching.submit(f"r{number}", prompt, max_new_tokens=40)
        ear.wait(lambda: len(ear.over) == 3)
        assert gathered.count(2) > 0
    finally:
        batching.close()
    assert ear.tokens["alone"] == solo(prompts[0], 120)
    assert [ear.tokens[f"r{number}"] for number in range(2)] == [solo(prompt, 40) for prompt in prompts]


def test_attention_that_cannot_be_paged_is_refused(ear: Ear, load: Callable[..., Any], tmp_path: Any) -> None:
    tiny_models.build("qwen3_next").save_pretrained(tmp_path)
    model = load(tmp_path, slots="100%")
    with pytest.raises(UnsupportedModelError, match="one request at a time"):
        Batching(model, ear, rows=2, context=64)


@pytest.mark.slow
def test_a_predictor_hears_whose_rows_they_are(load: Callable[..., Any], tokenizer: Any, ear: Ear) -> None:
    """Every pass names each of its rows; tokens are those of solo runs, and the predictor keeps working."""
    model = load("reference-moe", slots="25%", dtype="float32", context=CONTEXT, system="prophet")
    prompts = [tokenizer(text)["input_ids"] for text in PROMPTS[:3]]
    alone = [decode(model, prompt, max_new_tokens=12).token_ids for prompt in prompts]
    batching = Batching(model, ear, rows=3, context=CONTEXT)
    passes: list[list[int]] = []
    engine = batching._engine

    class Noting:
        def streams(self, rows: list[int]) -> None:
            passes.append(rows)
            engine.streams(rows)

    batching._engine = Noting()
    try:
        for number, prompt in enumerate(prompts):
            batching.submit(f"r{number}", prompt, max_new_tokens=12)
            ear.wait(lambda name=f"r{number}": len(ear.tokens.get(name, ())) >= 2)
        ear.wait(lambda: len(ear.over) == 3)
    finally:
        batching.close()
    assert [ear.tokens[f"r{number}"] for number in range(3)] == alone
    assert passes[0] == [1] * len(prompts[0])
    assert [1, *[2] * len(prompts[1])] in passes
    assert passes[-1] == []  # given back at the end
    for number, prompt in enumerate(prompts, 1):
        assert sum(rows.count(number) for rows in passes) == len(prompt) + 11
    assert engine.foresight_failure == ""
    assert engine.counters()["foresight_steps"] > 0
