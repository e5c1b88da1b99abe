"""OpenAI's requests and answers, as far as they are served; everything else is refused by name.

A parameter that would change the answer and is not understood must not be passed over: unknown names are
errors, and known ones may only say what would happen anyway.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    WrapValidator,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

MOST_STOPS = 16
MOST_LOGPROBS = 20

# Parameters of OpenAI's that must be left at what this server does anyway.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "best_of": (None, 1),
    "frequency_penalty": (None, 0),
    "function_call": (None, "none"),
    "functions": (None, []),
    "logit_bias": (None, {}),
    "modalities": (None, ["text"]),
    "parallel_tool_calls": (None, True, False),
    "presence_penalty": (None, 0),
    "reasoning_effort": (None,),
    "response_format": (None, {"type": "text"}),
    "suffix": (None, ""),
    "tool_choice": (None, "none"),
    "tools": (None, []),
}
# Notes of the caller's, which change no answer.
NOTES = ("metadata", "prompt_cache_key", "safety_identifier", "service_tier", "store", "user")
# What an answer of the assistant has beside its text: clients send it back as it was, empty.
ANSWERED = ("annotations", "audio", "function_call", "reasoning_content", "refusal", "tool_calls")


def wrong(param: str, sentence: str) -> PydanticCustomError:
    """A complaint about one parameter, whichever validator makes it; serve/errors.py tells it."""
    return PydanticCustomError(
        "wrong_parameter", "{param} {sentence}", {"param": param, "sentence": sentence}
    )


def without(given: Any, neutral: dict[str, tuple[Any, ...]], served: Any) -> Any:
    """`given` less the names of `neutral` that are not in `served`; raises where they say anything."""
    for name in neutral:
        if name in given and name not in served and given[name] not in neutral[name]:
            raise wrong(name, "is not supported by this server: leave it out")
    return {key: value for key, value in given.items() if key not in neutral or key in served}


def _text(value: Any) -> Any:
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            raise ValueError("is not Unicode text: it holds half of a surrogate pair") from None
    return value


def _or_else(sentence: str) -> WrapValidator:
    """One complaint about a value of several possible kinds, in place of one about the first of them."""

    def check(value: Any, handler: Callable[[Any], Any]) -> Any:
        try:
            return handler(value)
        except ValidationError:
            if isinstance(value, str):
                raise
            raise ValueError(sentence) from None

    return WrapValidator(check)


Text = Annotated[str, BeforeValidator(_text)]
TokenId = Annotated[int, Field(ge=0, strict=True)]


class StreamOptions(BaseModel):
    model_config = ConfigDict(extra="forbid")
    include_usage: bool = False
    include_obfuscation: Literal[False] | None = None  # padding of chunks is not served


class Wanted(BaseModel):
    """What both kinds of request share."""

    model_config = ConfigDict(extra="forbid")

    model: Text | None = None
    max_tokens: int | None = Field(None, ge=1)
    temperature: float = Field(1.0, ge=0, le=2)
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(0, ge=0)  # an extension: 0 is all
    n: int = Field(1, ge=1)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: list[Text] = Field(default_factory=list, max_length=MOST_STOPS)
    stream: bool = False
    stream_options: StreamOptions | None = None
    ignore_eos: bool = False  # an extension: go on past the model's own end

    @model_validator(mode="before")
    @classmethod
    def _only_what_is_served(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        served = without(given, NEUTRAL, cls.model_fields)
        return {key: value for key, value in served.items() if key not in NOTES}

    @field_validator(
        "temperature",
        "top_p",
        "n",
        "stream",
        "ignore_eos",
        "top_k",
        "echo",
        mode="before",
        check_fields=False,
    )
    @classmethod
    def _null_is_the_default(cls, value: Any, info: Any) -> Any:
        return cls.model_fields[info.field_name].default if value is None else value

    @field_validator("stop", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        found = [] if value is None else [value] if isinstance(value, str) else value
        if isinstance(found, list) and "" in found:
            raise ValueError("an empty stop sequence would stop everything")
        return found

    @model_validator(mode="after")
    def _options_of_streams(self) -> Wanted:
        if self.stream_options is not None and not self.stream:
            raise wrong("stream_options", "is for streams: set stream, or leave it out")
        return self

    @property
    def alternatives(self) -> int | None:
        """Alternatives to tell beside each chosen token; None: no log probabilities at all."""
        raise NotImplementedError


class TextPart(BaseModel):
    model_config = ConfigDict(extra="forbid")
    type: Literal["text"]
    text: Text


class Message(BaseModel):
    """One turn; only text can be read."""

    model_config = ConfigDict(extra="forbid")
    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[Text | list[TextPart], _or_else("must be a text, or parts of type text")]
    name: Text | None = None

    @model_validator(mode="before")
    @classmethod
    def _as_it_was_answered(cls, given: Any) -> Any:
        nothing: dict[str, tuple[Any, ...]] = dict.fromkeys(ANSWERED, (None, []))
        return without(given, nothing, ()) if isinstance(given, dict) else given

    def turn(self) -> dict[str, str]:
        """As chat templates take it."""
        parts = self.content if isinstance(self.content, str) else "".join(p.text for p in self.content)
        return {"role": "system" if self.role == "developer" else self.role, "content": parts}


class ChatWanted(Wanted):
    """POST /v1/chat/completions"""

    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool = False
    top_logprobs: int | None = Field(None, ge=0, le=MOST_LOGPROBS)

    @model_validator(mode="after")
    def _logprobs_first(self) -> ChatWanted:
        if self.top_logprobs is not None and not self.logprobs:
            raise wrong("top_logprobs", "needs logprobs: set it, or leave top_logprobs out")
        return self

    @property
    def alternatives(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None


class CompletionWanted(Wanted):
    """POST /v1/completions"""

    prompt: Annotated[
        Text | list[TokenId] | list[Text] | list[list[TokenId]],
        _or_else("must be a text, token ids, or a list of one of them"),
    ]
    logprobs: int | None = Field(None, ge=0, le=MOST_LOGPROBS)
    echo: bool | None = None

    @model_validator(mode="after")
    def _log_probabilities_of_answers(self) -> CompletionWanted:
        if self.echo and self.logprobs is not None:
            raise wrong("echo", "is not served together with logprobs: prompts have none here, leave one out")
        return self

    @property
    def alternatives(self) -> int | None:
        return self.logprobs

    def prompts(self) -> list[str | list[int]]:
        """Each prompt as text or as token ids."""
        given = self.prompt
        if isinstance(given, str):
            return [given]
        if given and all(isinstance(one, int) for one in given):
            return [[one for one in given if isinstance(one, int)]]
        return [one for one in given if not isinstance(one, int)]


class Usage(BaseModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int

    @classmethod
    def of(cls, prompt: int, new: int) -> Usage:
        """Counts of tokens."""
        return cls(prompt_tokens=prompt, completion_tokens=new, total_tokens=prompt + new)


class ErrorBody(BaseModel):
    """OpenAI's shape of an error: {"error": {...}}."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None
