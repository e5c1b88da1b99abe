"""A bound on what a client may make the server hold before anything is parsed."""

from __future__ import annotations

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from prophet_moe.serve import errors

MOST_BYTES = 8 << 20  # of a body; a context of a million tokens is less
SENTENCE = f"a body has at most {MOST_BYTES} bytes."


class BodyLimit:
    """ASGI middleware: a body above MOST_BYTES, announced or not, gets 413 and is read no further."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        taken = 0

        async def counted() -> Message:
            nonlocal taken
            message = await receive()
            taken += len(message.get("body", b""))
            if taken > MOST_BYTES:
                raise HTTPException(413, SENTENCE)
            return message

        announced = dict(scope["headers"]).get(b"content-length", b"0")
        if announced.isdigit() and int(announced) > MOST_BYTES:
            await errors.refusal(SENTENCE, 413)(scope, receive, send)
        else:
            await self._app(scope, counted, send)
