"""The process around the application: a socket, signals, and an orderly end."""

from __future__ import annotations

import contextlib
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from types import FrameType

import uvicorn
from fastapi import FastAPI

GRACE_SECONDS = 30  # that running requests have to end in once the server was told to stop


def listen(host: str, port: int) -> socket.socket:
    """A bound socket; port 0 is any free one. Raises OSError with a sentence."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((host, port))
    except OSError as error:
        bound.close()
        raise OSError(
            f"cannot listen on {host} port {port} ({error.strerror or error}): name another --port or --host."
        ) from error
    return bound


def address(bound: socket.socket) -> str:
    """Where a browser finds it."""
    host, port = bound.getsockname()[:2]
    named = f"[{host}]" if ":" in host else host
    return "http://" + f"{named}:{port}"


@contextlib.contextmanager
def _leaving_on_terminate() -> Iterator[None]:
    """SIGTERM unwinds the process, as Ctrl-C does, instead of ending it where it stands."""

    def leave(number: int, frame: FrameType | None) -> None:
        sys.exit(0)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def run(app: FastAPI, bound: socket.socket, *, verbose: bool, ready: Callable[[], None]) -> None:
    """Serves until SIGTERM or Ctrl-C: no new connections then, running requests get GRACE_SECONDS, and
    the application's lifespan ends. `ready` is called when requests are answered."""
    config = uvicorn.Config(
        app,
        log_level="info" if verbose else "warning",
        access_log=verbose,
        timeout_graceful_shutdown=GRACE_SECONDS,
        lifespan="on",
    )
    server = _Server(config, ready)
    with _leaving_on_terminate(), contextlib.suppress(KeyboardInterrupt):
        server.run(sockets=[bound])


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._ready()
