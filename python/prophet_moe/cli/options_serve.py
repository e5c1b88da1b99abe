"""The flags of prophet serve alone."""

from __future__ import annotations

from typing import Annotated

from prophet_moe.cli.options import _flag

Host = Annotated[str, _flag("--host", metavar="ADDRESS", text="Where to listen. 0.0.0.0: everywhere.")]
Port = Annotated[int, _flag("--port", min=0, max=65535, metavar="N", text="0: any free one.")]
ApiKey = Annotated[
    str | None, _flag("--api-key", metavar="KEY", text="Ask for this key (better: PROPHET_API_KEY).")
]
ServedName = Annotated[
    str | None, _flag("--served-model-name", metavar="NAME", text="What clients call the model.")
]
Concurrency = Annotated[
    int, _flag("--concurrency", min=1, metavar="N", text="Requests computed at the same time.")
]
KvTokens = Annotated[
    int | None,
    _flag(
        "--kv-tokens",
        min=1,
        metavar="N",
        text="Tokens of all requests together that the KV cache holds. Default: context x concurrency.",
    ),
]
Queue = Annotated[int, _flag("--queue", min=0, metavar="N", text="Requests that may wait; more get 429.")]
Dtype = Annotated[
    str | None,
    _flag(
        "--dtype",
        metavar="NAME",
        text="float32, float16 or bfloat16. In float32 answers hardly depend on what else is computed.",
    ),
]
