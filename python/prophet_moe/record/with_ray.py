"""Workers that are actors of Ray, on one host or many.

Ray Data carries parts to actors and their traces back as bytes, so hosts share no file system; each has
the package and the model, at the same path or by its Hub id. Ray is an extra and is imported here alone;
nothing of it is in a trace.
"""

import json
import logging
import os
import socket
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from prophet_moe.errors import InvalidArgument
from prophet_moe.record.shards import News, Order, Part, Runner, as_text, load_model, of_text


def on_ray(count: int, address: str = "auto") -> Runner:
    """A runner of `count` actors of the cluster at `address`; "local" starts one on this machine.

    Ray starts an actor that was killed again, by its own rules. Raises InvalidArgument: Ray is not
    installed, no such cluster.
    """
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise InvalidArgument(
            f"Ray is not installed ({error}): pip install 'prophet-moe[ray]', or use workers without it."
        ) from error

    def run(order: Order, parts: Sequence[Part], place: Callable[[Part], Path]) -> Iterator[News]:
        begun = not ray.is_initialized()
        if begun:
            _join(ray, count * _cpus(order), address)
        try:
            yield from _serve(ray, count, order, parts, place)
        finally:
            if begun:
                ray.shutdown()

    return run


def _cpus(order: Order) -> int:
    """Of one actor."""
    return int(order.load.get("threads") or 1)


def _join(ray: Any, cpus: int, address: str) -> None:
    quiet = {"log_to_driver": False, "logging_level": "ERROR"}
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # else its C++ half writes to stderr
    try:
        if address == "local":
            ray.init(address="local", num_cpus=cpus, include_dashboard=False, **quiet)
        else:
            ray.init(address=address, **quiet)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise InvalidArgument(
            f"there is no Ray cluster at {address} ({' '.join(str(error).split())}): start one by "
            "ray start, or say local."
        ) from error


def _serve(
    ray: Any, count: int, order: Order, parts: Sequence[Part], place: Callable[[Part], Path]
) -> Iterator[News]:
    if not parts:
        return
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    said = json.dumps(asdict(order))
    items = [{"order": said, "part": as_text(part)} for part in parts]
    try:
        done = ray.data.from_items(items, override_num_blocks=len(items)).map(
            _Recorder,
            compute=ray.data.ActorPoolStrategy(size=min(count, len(parts))),
            num_cpus=_cpus(order),
        )
        for row in done.iter_rows():
            part = of_text(row["part"])
            if row["failed"]:
                yield News(lost=row["failed"])
                continue
            path = place(part)
            new = path.with_suffix(".new")
            new.write_bytes(row["trace"])
            new.replace(path)
            yield News(part, len(part.prompts), row["tokens"])
    except ray.exceptions.RayError as error:
        yield News(lost=f"Ray lost its workers ({' '.join(str(error).split())[:300]})")


class _Recorder:
    """An actor: one model, one part after another. A row goes in with "order" and "part" and comes out with
    the trace, or with the sentence that says whose error there was."""

    def __init__(self) -> None:
        self._model: Any = None

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        part, order = of_text(row["part"]), Order(**json.loads(row["order"]))
        counted = [0]
        answer = {"part": row["part"], "trace": b"", "tokens": 0, "failed": ""}
        try:
            if self._model is None:
                self._model = load_model(order)
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "part.safetensors"
                part.record(self._model, order, path, lambda _done, _all, tokens: counted.append(tokens))
                return answer | {"trace": path.read_bytes(), "tokens": counted[-1]}
        except Exception as error:  # as data: an exception would end the whole dataset
            said = " ".join(str(error).split()).rstrip(".") or type(error).__name__
            return answer | {"failed": f"{_whoami()} gave up ({said}) at {part.prompts[0].source}"}


def _whoami() -> str:
    return f"the Ray actor on {socket.gethostname()} (process {os.getpid()})"
