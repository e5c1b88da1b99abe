"""OpenAI's own client against the server: answers, streams, stops, refusals."""

import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import httpx
import openai
import pytest
from served import CONTEXT, PROMPTS, Running, until

Solo = Callable[[Sequence[int], int], list[int]]


@pytest.fixture(scope="module")
def running(open_server: Callable[..., Any]) -> Iterator[Running]:
    with open_server(rows=4, queue=4) as found:
        yield found


def test_a_completion_is_the_models(running: Running, tokenizer: Any, solo: Solo) -> None:
    answer = running.client().completions.create(
        model="reference-moe", prompt=PROMPTS[0], max_tokens=30, temperature=0
    )
    prompt = tokenizer(PROMPTS[0])["input_ids"]
    assert answer.choices[0].text == tokenizer.decode(solo(prompt, 30), skip_special_tokens=True)
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (len(prompt), 30)
    assert until(lambda: running.idle)


def test_a_stream_says_the_same(running: Running) -> None:
    client = running.client()
    settings: dict[str, Any] = {
        "model": "reference-moe",
        "messages": [{"role": "user", "content": "Where is the whale?"}],
        "max_tokens": 24,
        "temperature": 0.9,
        "seed": 4,
    }
    whole = client.chat.completions.create(**settings)
    chunks = list(
        client.chat.completions.create(**settings, stream=True, stream_options={"include_usage": True})
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]][-1] == whole.choices[0].finish_reason
    assert chunks[-1].usage == whole.usage
    assert len({chunk.id for chunk in chunks}) == 1


def test_a_stop_cuts_the_answer_and_ends_it(running: Running) -> None:
    client = running.client()
    settings: dict[str, Any] = {"model": "reference-moe", "prompt": PROMPTS[5], "temperature": 0}
    text = client.completions.create(**settings, max_tokens=40).choices[0].text
    for stop in (text[10:13], text[5:17], [text[20:22], text[12:15]], "never in any text"):
        answer = client.completions.create(**settings, max_tokens=40, stop=stop)
        places = [at for one in ([stop] if isinstance(stop, str) else stop) if (at := text.find(one)) >= 0]
        if not places:
            assert (answer.choices[0].text, answer.choices[0].finish_reason) == (text, "length")
            continue
        assert answer.choices[0].text == text[: min(places)]
        assert answer.choices[0].finish_reason == "stop"
        assert answer.usage is not None
        assert answer.usage.completion_tokens < 40
        streamed = client.completions.create(**settings, max_tokens=40, stop=stop, stream=True)
        assert "".join(chunk.choices[0].text for chunk in streamed) == text[: min(places)]
    assert until(lambda: running.idle)


def test_token_ids_and_several_prompts(running: Running, tokenizer: Any, solo: Solo) -> None:
    ids = [tokenizer(text)["input_ids"] for text in PROMPTS[:2]]
    answer = running.client().completions.create(
        model="reference-moe", prompt=ids, max_tokens=9, temperature=0
    )
    assert [choice.text for choice in answer.choices] == [tokenizer.decode(solo(one, 9)) for one in ids]
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == sum(map(len, ids))


@pytest.mark.parametrize("stream", [False, True])
def test_several_choices_of_one_prompt(running: Running, tokenizer: Any, stream: bool) -> None:
    """Each with a seed of its own, the first with the one that was named; the prompt counts once."""
    client, len_of_prompt = running.client(), len(tokenizer(PROMPTS[1])["input_ids"])
    settings: dict[str, Any] = {
        "model": "reference-moe", "prompt": PROMPTS[1], "max_tokens": 12, "temperature": 1.0, "seed": 8,
    }  # fmt: skip
    texts = ["", "", ""]
    if stream:
        for chunk in client.completions.create(**settings, n=3, stream=True):
            texts[chunk.choices[0].index] += chunk.choices[0].text
    else:
        answer = client.completions.create(**settings, n=3)
        texts = [choice.text for choice in answer.choices]
        assert answer.usage is not None
        assert answer.usage.prompt_tokens == len_of_prompt
        assert answer.usage.completion_tokens <= 36
    alone = client.completions.create(**settings | {"seed": 10}).choices[0].text
    assert texts[2] == alone
    assert len(set(texts)) == 3
    assert until(lambda: running.idle)


def test_log_probabilities_in_both_shapes(running: Running) -> None:
    client = running.client()
    chat = client.chat.completions.create(
        model="reference-moe",
        messages=[{"role": "user", "content": "Hello"}],
        max_tokens=5,
        temperature=0,
        logprobs=True,
        top_logprobs=2,
    )
    assert chat.choices[0].logprobs is not None
    content = chat.choices[0].logprobs.content or []
    assert "".join(one.token for one in content) == chat.choices[0].message.content
    for one in content:
        assert one.logprob <= 0
        assert len(one.top_logprobs) == 2
        assert one.top_logprobs[0].token == one.token  # greedy
    plain = client.completions.create(
        model="reference-moe", prompt=PROMPTS[0], max_tokens=5, temperature=0, logprobs=1
    )
    assert plain.choices[0].logprobs is not None
    assert "".join(plain.choices[0].logprobs.tokens or []) == plain.choices[0].text


def test_models_health_metrics(running: Running) -> None:
    client = running.client()
    assert [one.id for one in client.models.list()] == ["reference-moe"]
    assert client.models.retrieve("reference-moe").id == "reference-moe"
    with pytest.raises(openai.NotFoundError, match="only 'reference-moe'"):
        client.completions.create(model="gpt-5", prompt="Hello")
    assert httpx.get(f"{running.url}/health").json()["status"] == "ok"
    lines = dict(
        line.rsplit(" ", 1)
        for line in httpx.get(f"{running.url}/metrics").text.splitlines()
        if not line.startswith("#")
    )
    assert float(lines["prophet_new_tokens_total"]) == running.service.loop.new_tokens > 0
    counters = running.service.offload.engine.counters()
    assert float(lines["prophet_hits_resident_total"]) == counters["hits_resident"]
    assert float(lines["prophet_stall_seconds_total"]) == pytest.approx(counters["stall_ns"] / 1e9)
    assert float(lines['prophet_requests_total{outcome="length"}']) >= 1
    assert float(lines["prophet_ttft_seconds_count"]) >= 1


WRONG: list[tuple[dict[str, Any], str]] = [
    ({}, "prompt is missing"),
    ({"prompt": ""}, "no tokens"),
    ({"prompt": []}, "no tokens"),
    ({"prompt": [[]]}, "no tokens"),
    ({"prompt": None}, "prompt"),
    ({"prompt": {"a": 1}}, "prompt"),
    ({"prompt": [1, "a"]}, "prompt"),
    ({"prompt": [-1]}, "prompt"),
    ({"prompt": [10**9]}, "vocabulary"),
    ({"prompt": [1.5]}, "prompt"),
    ({"prompt": "\ud800"}, "surrogate"),
    ({"prompt": "a", "max_tokens": 0}, "max_tokens"),
    ({"prompt": "a", "max_tokens": "many"}, "max_tokens"),
    ({"prompt": "a", "max_tokens": CONTEXT}, "context is 160 tokens"),
    ({"prompt": "word " * 400}, "context is 160 tokens"),
    ({"prompt": "a", "temperature": -1}, "temperature"),
    ({"prompt": "a", "temperature": float("nan")}, "temperature"),
    ({"prompt": "a", "top_p": 0}, "top_p"),
    ({"prompt": "a", "n": 5}, "computes at a time"),
    ({"prompt": "a", "seed": 2**64}, "seed"),
    ({"prompt": "a", "stop": ["x"] * 17}, "stop"),
    ({"prompt": "a", "stop": ""}, "empty stop"),
    ({"prompt": "a", "stop": [""]}, "empty stop"),
    ({"prompt": "a", "logprobs": 21}, "logprobs"),
    ({"prompt": "a", "echo": True, "logprobs": 1}, "echo is not served together with logprobs"),
    ({"prompt": "a", "suffix": "b"}, "suffix is not supported"),
    ({"prompt": "a", "best_of": 2}, "best_of is not supported"),
    ({"prompt": "a", "logit_bias": {"5": 1}}, "logit_bias is not supported"),
    ({"prompt": "a", "presence_penalty": 0.5}, "presence_penalty is not supported"),
    ({"prompt": "a", "stream_options": {"include_usage": True}}, "stream_options is for streams"),
    ({"prompt": "a", "stream": True, "stream_options": {"include_obfuscation": True}}, "obfuscation"),
    ({"prompt": "a", "min_p": 0.1}, "min_p is no parameter"),
]


@pytest.mark.parametrize(("body", "sentence"), WRONG, ids=lambda value: str(value)[:40])
def test_a_wrong_completion_is_refused(running: Running, body: dict[str, Any], sentence: str) -> None:
    answer = running.post(
        "/v1/completions", content=json.dumps(body), headers={"Content-Type": "application/json"}
    )
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert sentence in error["message"], error
    assert error["type"] == "invalid_request_error"
    assert set(error) == {"message", "type", "param", "code"}
    named = error["message"].partition(" ")[0].partition(".")[0]
    assert named not in body or str(error["param"]).partition(".")[0] == named, error


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("tools", [{"type": "function", "function": {"name": "f"}}]),
        ("tool_choice", "auto"),
        ("functions", [{"name": "f"}]),
        ("logit_bias", {"5": -100}),
        ("response_format", {"type": "json_object"}),
        ("presence_penalty", 0.1),
        ("reasoning_effort", "high"),
        ("audio", {"voice": "x"}),
        ("top_logprobs", 2),
        ("n", 5),
        ("max_completion_tokens", CONTEXT),
    ],
)
def test_a_wish_that_is_not_served_is_named(running: Running, name: str, value: Any) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        running.client().chat.completions.create(
            model="reference-moe", messages=[{"role": "user", "content": "a"}], extra_body={name: value}
        )
    body: Any = refused.value.body
    assert refused.value.status_code == 400
    if name == "max_completion_tokens":
        assert body["code"] == "context_length_exceeded"
        assert f"context is {CONTEXT} tokens" in body["message"]
    else:
        assert body["param"] == name
        assert name == "n" or body["message"].startswith(f"{name} ")


@pytest.mark.parametrize(
    "messages",
    [
        [],
        "hello",
        [{"role": "robot", "content": "a"}],
        [{"role": "user"}],
        [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}],
        [{"role": "assistant", "content": "a", "tool_calls": [{"id": "1", "type": "function"}]}],
        [{"role": "tool", "content": "a", "tool_call_id": "1"}],
    ],
)
def test_a_wrong_conversation_is_refused(running: Running, messages: Any) -> None:
    answer = running.post("/v1/chat/completions", json={"messages": messages})
    assert answer.status_code == 400
    assert "messages" in answer.json()["error"]["message"]


@pytest.mark.parametrize("as_dict", [True, False])
def test_an_answer_is_sent_back_as_it_was(running: Running, as_dict: bool) -> None:
    """The second turn of a conversation, as OpenAI's users write it."""
    client = running.client()
    turns: list[Any] = [{"role": "user", "content": "Hello"}]
    settings: dict[str, Any] = {"model": "reference-moe", "max_tokens": 4, "temperature": 0}
    first = client.chat.completions.create(messages=turns, **settings).choices[0].message
    turns.append(first.model_dump() if as_dict else first)
    turns.append({"role": "user", "content": "And then?"})
    again = client.chat.completions.create(messages=turns, **settings)
    plain = [turns[0], {"role": "assistant", "content": first.content}, turns[2]]
    assert again.choices == client.chat.completions.create(messages=plain, **settings).choices


@pytest.mark.parametrize("stream", [False, True])
def test_echo_begins_with_the_prompt(running: Running, tokenizer: Any, stream: bool) -> None:
    client = running.client()
    settings: dict[str, Any] = {"model": "reference-moe", "max_tokens": 6, "temperature": 0}
    for prompt, said in (
        (PROMPTS[:2], PROMPTS[:2]),
        (tokenizer(PROMPTS[2])["input_ids"], [PROMPTS[2]]),
    ):
        plain = client.completions.create(prompt=prompt, **settings)
        texts = [""] * len(said)
        if stream:
            for chunk in client.completions.create(prompt=prompt, echo=True, stream=True, **settings):
                texts[chunk.choices[0].index] += chunk.choices[0].text
        else:
            echoed = client.completions.create(prompt=prompt, echo=True, **settings)
            texts = [choice.text for choice in echoed.choices]
            assert echoed.usage == plain.usage
        assert texts == [one + choice.text for one, choice in zip(said, plain.choices, strict=True)]


def test_a_stream_tells_its_usage_at_the_end(running: Running) -> None:
    """And until then that there is none, as OpenAI has it; without the wish, nothing of it."""
    for wish in (True, False):
        body: dict[str, Any] = {"prompt": "Hello", "max_tokens": 3, "stream": True, "ignore_eos": True}
        if wish:
            body["stream_options"] = {"include_usage": True}
        lines = running.post("/v1/completions", json=body).text.splitlines()
        found = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
        assert [one.get("usage", "none") for one in found[:-1]] == [None if wish else "none"] * (
            len(found) - 1
        )
        assert (found[-1].get("usage") or {}).get("completion_tokens") == (3 if wish else None)


def test_neutral_parameters_of_openai_pass(running: Running) -> None:
    answer = running.client().chat.completions.create(
        model="reference-moe",
        messages=[{"role": "user", "content": [{"type": "text", "text": "Hi"}]}],
        max_completion_tokens=2,
        frequency_penalty=0,
        logit_bias={},
        response_format={"type": "text"},
        user="somebody",
        store=False,
    )
    assert answer.usage is not None
    assert answer.usage.completion_tokens <= 2


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[1]", b"\xff\xfe", b"[" * 100_000, b'{"prompt": "a"', b"null", b'"x"']
)
def test_a_malformed_body_is_refused(running: Running, body: bytes) -> None:
    answer = running.post("/v1/completions", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400
    assert answer.json()["error"]["message"]


def test_a_body_without_end_is_refused(running: Running) -> None:
    def forever() -> Iterator[bytes]:
        for _ in range(10_000):
            yield b"x" * 65536

    try:
        answer = running.post(
            "/v1/completions", content=forever(), headers={"Content-Type": "application/json"}
        )
    except httpx.TransportError:  # the server hung up on the rest of it
        pass
    else:
        assert answer.status_code == 413
    said = running.post("/v1/completions", content=b"x" * (9 << 20))
    assert said.status_code == 413
    assert httpx.get(f"{running.url}/health").status_code == 200


def test_other_paths_and_methods_speak_openais_language(running: Running) -> None:
    for answer, status in (
        (httpx.get(f"{running.url}/v1/nothing"), 404),
        (httpx.get(f"{running.url}/v1/completions"), 405),
    ):
        assert answer.status_code == status
        assert "/v1/chat/completions" in answer.json()["error"]["message"]
    assert httpx.get(f"{running.url}/v1/completions").headers["Allow"] == "POST"
    with pytest.raises(openai.NotFoundError, match="this server has /v1/chat/completions"):
        running.client().responses.create(model="reference-moe", input="Hello")
