"""The HTTP face: OpenAI's routes, health, metrics, and the live page."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Sequence
from importlib import resources
from typing import Annotated, Any, TypeVar

from fastapi import Depends, FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response, StreamingResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from prophet_moe.serve import errors
from prophet_moe.serve.answers import DONE, ChatShape, CompletionShape, Gathered, Shape, event
from prophet_moe.serve.errors import Refused
from prophet_moe.serve.limits import BodyLimit
from prophet_moe.serve.live import snapshot
from prophet_moe.serve.loop import Job, Piece
from prophet_moe.serve.schemas import ChatWanted, CompletionWanted, Wanted
from prophet_moe.serve.service import Service

T = TypeVar("T")
bearer = HTTPBearer(auto_error=False)
METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class ClientGone(Exception):
    """The client hung up before there was anything to tell."""


async def unless_gone(request: Request, work: Awaitable[T]) -> T:
    """`work`'s result; cancels it and raises ClientGone when the client hangs up."""

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    doing, leaving = asyncio.ensure_future(work), asyncio.ensure_future(gone())
    try:
        await asyncio.wait({doing, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not doing.done():
            raise ClientGone
        return doing.result()
    finally:
        for task in (doing, leaving):
            task.cancel()
        await asyncio.gather(doing, leaving, return_exceptions=True)


class Answering(StreamingResponse):
    """A stream that ends its requests however it ends itself, begun or not."""

    def __init__(self, content: Any, held: contextlib.AsyncExitStack) -> None:
        super().__init__(content, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
        self._held = held

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._held.aclose()


async def whole(service: Service, jobs: Sequence[Job]) -> list[Gathered]:
    """Every job to its end; all are ended when one fails."""

    async def one(job: Job) -> Gathered:
        answer = Gathered()
        async with service.loop.answer(job) as pieces:
            async for piece in pieces:
                answer.add(piece)
        return answer

    tasks = [asyncio.ensure_future(one(job)) for job in jobs]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def merged(
    service: Service, first: AsyncIterator[Piece], others: Sequence[Job], held: contextlib.AsyncExitStack
) -> AsyncIterator[tuple[int, Piece]]:
    """(choice, piece) of all jobs as they come; the first has been admitted already."""
    if not others:
        async for piece in first:
            yield 0, piece
        return
    box: asyncio.Queue[tuple[int, Piece | Exception]] = asyncio.Queue()

    async def pour(number: int, pieces: AsyncIterator[Piece]) -> None:
        async for piece in pieces:
            box.put_nowait((number, piece))

    async def run(number: int, job: Job | None) -> None:
        try:
            if job is None:
                await pour(number, first)
            else:
                async with service.loop.answer(job) as pieces:
                    await pour(number, pieces)
        except Exception as error:
            box.put_nowait((number, error))

    tasks = [asyncio.ensure_future(run(number, job)) for number, job in enumerate([None, *others])]
    for task in tasks:
        held.callback(task.cancel)
    for left in itertools.count(len(tasks), -1):
        if left == 0:
            return
        while True:
            number, found = await box.get()
            if isinstance(found, Exception):
                raise found
            yield number, found
            if found.finish is not None:
                break


async def events(
    service: Service,
    shape: Shape,
    jobs: Sequence[Job],
    first: AsyncIterator[Piece],
    held: contextlib.AsyncExitStack,
    count: bool,
) -> AsyncIterator[str]:
    """The server-sent events of one request."""
    new = 0
    try:
        for number in range(len(jobs)):
            if opening := shape.opening(number):
                yield event(opening)
        async for number, piece in merged(service, first, jobs[1:], held):
            new += len(piece.tokens)
            if piece.text or piece.chosen or piece.finish:
                yield event(shape.chunk(number, piece))
        if count:
            yield event(shape.usage(prompt_tokens(jobs), new))
        yield DONE
    except Exception as error:  # the status has been sent: the error is an event
        yield event(json.loads(bytes(errors.told(error).body)))


def prompt_tokens(jobs: Sequence[Job]) -> int:
    """Tokens of all different prompts: the choices of one share it."""
    return sum(len(prompt) for prompt in {id(job.prompt): job.prompt for job in jobs}.values())


def build_app(service: Service, *, api_key: str | None = None) -> FastAPI:
    """The application; its lifespan starts and closes the service's loop."""

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service.loop.start()
        yield
        await service.loop.close()

    app = FastAPI(title="Prophet", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(BodyLimit)
    errors.install(app)
    page = resources.files("prophet_moe").joinpath("assets/serve/page.html").read_text("utf-8")

    def allowed(given: Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)]) -> None:
        if api_key is None:
            return
        if given is None or not secrets.compare_digest(given.credentials.encode(), api_key.encode()):
            raise Refused(
                "this server wants its API key: send it as Authorization: Bearer KEY.",
                status=401,
                code="invalid_api_key",
            )

    async def answer(request: Request, wanted: Wanted, jobs: list[Job], shape: Shape) -> Response:
        if service.loop.closing:
            raise Refused("the server is closing.", status=503)
        held = contextlib.AsyncExitStack()
        try:
            if not wanted.stream:
                answers = await unless_gone(request, whole(service, jobs))
                return JSONResponse(shape.whole(answers, prompt_tokens(jobs)))
            first = await unless_gone(request, held.enter_async_context(service.loop.answer(jobs[0])))
        except ClientGone:
            await held.aclose()
            return Response(status_code=errors.CLIENT_GONE)
        count = wanted.stream_options is not None and wanted.stream_options.include_usage
        if count:
            shape.will_count()
        return Answering(events(service, shape, jobs, first, held, count), held)

    def head() -> tuple[str, int, str, Any]:
        return secrets.token_hex(12), int(time.time()), service.name, service.token_text

    @app.post("/v1/chat/completions", dependencies=[Depends(allowed)])
    async def chat(request: Request, wanted: ChatWanted) -> Response:
        name, *rest = head()
        return await answer(
            request, wanted, await service.chat_jobs(wanted), ChatShape(f"chatcmpl-{name}", *rest)
        )

    @app.post("/v1/completions", dependencies=[Depends(allowed)])
    async def completions(request: Request, wanted: CompletionWanted) -> Response:
        name, *rest = head()
        jobs = await service.completion_jobs(wanted)
        shape = CompletionShape(f"cmpl-{name}", *rest, echoes=service.echoes(wanted))
        return await answer(request, wanted, jobs, shape)

    def card() -> dict[str, Any]:
        return {
            "id": service.name,
            "object": "model",
            "created": int(service.began),
            "owned_by": "prophet",
            "max_model_len": service.limits.context,
        }

    @app.get("/v1/models", dependencies=[Depends(allowed)])
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [card()]}

    @app.get("/v1/models/{name:path}", dependencies=[Depends(allowed)])
    async def model(name: str) -> dict[str, Any]:
        if name != service.name:
            raise Refused(f"this server has no model {name!r}, only {service.name!r}.", status=404)
        return card()

    @app.get("/health")
    async def health() -> JSONResponse:
        well, said = service.health()
        return JSONResponse(said, 200 if well else 503)

    @app.get("/metrics")
    async def metrics() -> PlainTextResponse:
        return PlainTextResponse(service.metrics.page(), media_type=METRICS_TYPE)

    @app.get("/live")
    async def live() -> dict[str, Any]:
        return snapshot(service)

    @app.get("/", response_class=HTMLResponse)
    async def front() -> str:
        return page

    return app
