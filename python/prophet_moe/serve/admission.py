"""Who may come in: as many requests as there are rows and KV blocks for, in the order of their coming.

A request reserves the blocks that it can come to need, so that one that has begun is never
thrown out, and memory is bounded by what was set aside at the start. The rest waits in a queue of bounded
length; past it a request is turned away at once.
"""

from __future__ import annotations

import asyncio
from collections import deque


class Overloaded(Exception):
    """The queue is full: come back after `retry_after` seconds."""

    def __init__(self, waiting: int, retry_after: int) -> None:
        super().__init__(f"{waiting} requests wait already, and no more may: try again in {retry_after} s.")
        self.retry_after = retry_after


class Gate:
    """A counting semaphore over rows and blocks, first come first served; for one event loop."""

    def __init__(self, rows: int, blocks: int, queue: int) -> None:
        self.rows, self.blocks, self.queue = rows, blocks, queue
        self.free_rows, self.free_blocks = rows, blocks
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    @property
    def waiting(self) -> int:
        """Requests in the queue."""
        return len(self._waiting)

    @property
    def inside(self) -> int:
        """Requests that hold a row."""
        return self.rows - self.free_rows

    async def enter(self, blocks: int, retry_after: int = 1) -> None:
        """Waits for a row and `blocks` blocks, and takes them. Raises Overloaded instead of waiting too long
        a queue; a waiter that is cancelled leaves it."""
        if not self._waiting and self._fits(blocks):
            self._take(blocks)
            return
        if len(self._waiting) >= self.queue:
            raise Overloaded(len(self._waiting), retry_after)
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        entry = (blocks, turn)
        self._waiting.append(entry)
        try:
            await turn
        except asyncio.CancelledError:
            if entry in self._waiting:
                self._waiting.remove(entry)
                self._admit()  # it may have stood in the way of a smaller one
            elif turn.done() and not turn.cancelled():
                self.leave(blocks)  # let in and cancelled in the same turn of the loop
            raise

    def leave(self, blocks: int) -> None:
        """Gives back what `enter` took."""
        self.free_rows += 1
        self.free_blocks += blocks
        self._admit()

    def _fits(self, blocks: int) -> bool:
        return self.free_rows > 0 and self.free_blocks >= blocks

    def _take(self, blocks: int) -> None:
        self.free_rows -= 1
        self.free_blocks -= blocks

    def _admit(self) -> None:
        while self._waiting and self._fits(self._waiting[0][0]):
            blocks, turn = self._waiting.popleft()
            if turn.cancelled():
                continue
            self._take(blocks)
            turn.set_result(None)
