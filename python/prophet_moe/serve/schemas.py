"""OpenAI's requests and answers, as far as they are served; everything else is refused by name.

A parameter that would change the answer and is not understood must not be passed over: unknown names are
errors, and known ones may only say what would happen anyway.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

MOST_STOPS = 16
MOST_LOGPROBS = 20

# Parameters of OpenAI's that must be left at what this server does anyway.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "best_of": (None, 1),
    "echo": (None, False),
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


def _text(value: Any) -> Any:
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            raise ValueError("is not Unicode text: it holds half of a surrogate pair") from None
    return value


Text = Annotated[str, BeforeValidator(_text)]
TokenId = Annotated[int, Field(ge=0, strict=True)]


class StreamOptions(BaseModel):
    model_config = ConfigDict(extra="forbid")
    include_usage: bool = False


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
        for name, neutral in NEUTRAL.items():
            if name in given and name not in cls.model_fields:
                if given[name] not in neutral:
                    raise ValueError(f"{name} is not supported by this server: leave it out")
                given = {key: value for key, value in given.items() if key != name}
        return {key: value for key, value in given.items() if key not in NOTES}

    @field_validator("temperature", "top_p", "n", "stream", "ignore_eos", "top_k", mode="before")
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
            raise ValueError("stream_options is for streams: set stream, or leave it out")
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
    content: Text | list[TextPart]
    name: Text | None = None

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
            raise ValueError("top_logprobs needs logprobs: set it, or leave top_logprobs out")
        return self

    @property
    def alternatives(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None


class CompletionWanted(Wanted):
    """POST /v1/completions"""

    prompt: Text | list[TokenId] | list[Text] | list[list[TokenId]]
    logprobs: int | None = Field(None, ge=0, le=MOST_LOGPROBS)

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
