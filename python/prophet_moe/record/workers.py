"""Workers that are processes of this machine.

Each loads the model once and is handed one part after another. A worker that dies, by its own error or by a
signal, is told by name; what it had completed is kept, and the others go on with what is left: also with the
part of one that was killed, once.
"""

import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from prophet_moe.record.shards import News, Order, Part, Runner, load_model

_LAST_WORDS_S = 20.0  # how long an interrupted worker may take to end


@dataclass
class _Worker:
    process: BaseProcess
    connection: Connection
    part: Part | None = None  # in hand

    @property
    def title(self) -> str:
        return f"{self.process.name} (process {self.process.pid})"


def processes(count: int) -> Runner:
    """A runner of `count` processes, or fewer where there are fewer parts."""

    def run(order: Order, parts: Sequence[Part], place: Callable[[Part], Path]) -> Iterator[News]:
        waiting = deque(parts)
        workers = [_start(f"worker-{i}", order) for i in range(min(count, len(parts)))]
        try:
            yield from _serve(workers, waiting, place)
        finally:
            _end(workers)

    return run


def _start(name: str, order: Order) -> _Worker:
    # A forked child would inherit the threads' locks without the threads.
    context = multiprocessing.get_context("spawn")
    mine, theirs = context.Pipe()
    process = context.Process(target=_work, args=(order, theirs), name=name, daemon=True)
    process.start()
    theirs.close()
    return _Worker(process, mine)


def _serve(workers: list[_Worker], waiting: deque[Part], place: Callable[[Part], Path]) -> Iterator[News]:
    alive = {worker.connection: worker for worker in workers}
    idle: list[_Worker] = []
    again: set[int] = set()  # parts of a killed worker, which another one has got
    while alive:
        while idle and waiting:
            worker = idle.pop()
            worker.part = waiting.popleft()
            if not _hand(worker, (worker.part, place(worker.part))):
                waiting.appendleft(worker.part)
                worker.part = None
        if not any(worker.part for worker in alive.values()):  # else one may still be lost
            while idle:
                _hand(idle.pop(), None)
        for ready in wait(list(alive)):
            assert isinstance(ready, Connection)
            worker = alive[ready]
            try:
                kind, *words = ready.recv()
            except (EOFError, OSError):
                kind, words = "gone", []
            if kind == "progress":
                yield News(worker.part, *words)
            elif kind == "idle":
                worker.part = None
                idle.append(worker)
            else:
                del alive[ready]
                idle = [other for other in idle if other is not worker]
                worker.process.join()
                code = worker.process.exitcode or 0
                if code != 0 or words:
                    yield News(lost=_lost(worker, code, *words))
                # A signal says nothing about the part; an error would come again.
                if worker.part is not None and code < 0 and worker.part.number not in again:
                    again.add(worker.part.number)
                    waiting.append(worker.part)
                worker.part = None


def _hand(worker: _Worker, message: Any) -> bool:
    try:
        worker.connection.send(message)
    except OSError:  # gone in this very moment; its end is told when it is read
        return False
    return True


def _lost(worker: _Worker, code: int, sentence: str = "") -> str:
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"
    how = f"gave up ({sentence.rstrip('.')})" if sentence else how
    at = f" at {worker.part.prompts[0].source}" if worker.part is not None else ""
    return f"{worker.title} {how}{at}"


def _end(workers: list[_Worker]) -> None:
    """Interrupts whoever still works: what is complete is kept either way."""
    for worker in workers:
        worker.connection.close()
        if worker.process.is_alive() and worker.process.pid is not None:
            os.kill(worker.process.pid, signal.SIGINT)
    for worker in workers:
        worker.process.join(_LAST_WORDS_S)
        if worker.process.is_alive():
            worker.process.kill()
            worker.process.join()


def _work(order: Order, connection: Connection) -> None:
    """The life of a worker. Messages: idle; progress SEQUENCES TOKENS; failed SENTENCE."""
    try:
        model = load_model(order)
        while True:
            connection.send(("idle",))
            handed = connection.recv()
            if handed is None:
                return
            part, path = handed
            part.record(
                model, order, path, lambda done, _, tokens: connection.send(("progress", done, tokens))
            )
    except (KeyboardInterrupt, EOFError, BrokenPipeError):
        os._exit(1)  # who ordered is gone, or ends all; a traceback would help nobody
    except Exception as error:
        connection.send(("failed", " ".join(str(error).split()) or type(error).__name__))
