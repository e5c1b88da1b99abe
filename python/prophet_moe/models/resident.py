"""The weights that stay: the model is built around experts without parameters, and all else is read."""

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from transformers import GenerationConfig

from prophet_moe.errors import CheckpointError
from prophet_moe.models.checkpoint import TensorReader
from prophet_moe.models.experts import IMPLEMENTATION
from prophet_moe.models.inspect import Blueprint
from prophet_moe.models.parallel import Ranks, without_advice
from prophet_moe.models.stubs import parameterless

_NO_THREADS = "HF_DEACTIVATE_ASYNC_LOAD"  # an environment variable of transformers

Progress = Callable[[int, int], None]  # (bytes read so far, bytes to read)


@dataclass(frozen=True)
class Unread:
    """A tensor that is read when the library takes it: to its loader, a slice of a safetensors file."""

    key: str
    shape: tuple[int, ...]
    read: Callable[[str, range | None], torch.Tensor]  # (key, rows or all)

    def get_shape(self) -> list[int]:
        return list(self.shape)

    def __getitem__(self, place: Any) -> torch.Tensor:
        if not isinstance(place, tuple) or not place or not isinstance(place[0], slice):
            return self.read(self.key, None)[place]
        rows = range(*place[0].indices(self.shape[0]))
        found = self.read(self.key, None if len(rows) == self.shape[0] else rows)
        part = found[(slice(None), *place[1:])]
        # A rank's columns must not keep all of them alive.
        return found if part.numel() == found.numel() else part.clone()


def load_resident(
    blueprint: Blueprint, progress: Progress | None, ranks: Ranks | None, *, as_mapped: bool
) -> tuple[Any, int]:
    """The model with every weight but the experts', in eval mode, and the bytes read for it.

    Of ranks, each holds its part of them. as_mapped: tensors begin in a cache line where they would if their
    files were mapped. Raises CheckpointError, and what `progress` raises.
    """
    info, checkpoint, index = blueprint.info, blueprint.checkpoint, blueprint.index
    total = sum(checkpoint.tensors[key].bytes for key in index.resident)
    failures: list[Exception] = []
    parts = 1 if ranks is None else ranks.parts
    divided = {} if ranks is None else {"distributed_config": ranks.config}
    with (
        TensorReader(checkpoint) as reader,
        parameterless(blueprint.experts_classes, parts),
        _one_by_one(),
        without_advice(ranks),
    ):

        def read(key: str, rows: range | None) -> torch.Tensor:
            try:
                tensor = reader.read(key, as_mapped=as_mapped, rows=rows)
                if progress is not None:
                    progress(reader.bytes_read, total)
            except Exception as error:  # the library would go on without this tensor
                failures.append(error)
                raise
            return tensor

        # The concrete class: the auto class refuses to do without a path.
        model, notes = blueprint.model_class.from_pretrained(
            None,
            config=info.config,
            state_dict={key: Unread(key, checkpoint.tensors[key].shape, read) for key in index.resident},
            dtype=info.dtype,
            experts_implementation=IMPLEMENTATION,
            output_loading_info=True,
            **divided,
        )
        read_bytes = reader.bytes_read
    if failures:
        raise failures[0]
    absent = sorted(notes["missing_keys"])
    if absent:
        raise CheckpointError(
            f"{info.directory} lacks {len(absent)} of the model's tensors, such as {absent[0]!r}: "
            "files are missing, or config.json belongs to another model."
        )
    wrong = sorted(map(str, notes["mismatched_keys"])) + sorted(map(str, notes.get("error_msgs") or ()))
    if wrong:
        raise CheckpointError(
            f"{info.directory}: tensors do not fit the model ({wrong[0]}): config and weights belong to "
            "different models."
        )
    model.config._name_or_path = str(info.directory)
    if (info.directory / "generation_config.json").is_file():
        try:
            model.generation_config = GenerationConfig.from_pretrained(info.directory)
        except Exception as error:  # whatever the library meets in it
            raise CheckpointError(
                f"{info.directory / 'generation_config.json'} is not readable ({error}); get the file "
                "again, or remove it."
            ) from error
    # A missing expert needs the host in the middle of a layer: no captured graph can hold that.
    model.generation_config.disable_compile = True
    return model.eval(), read_bytes


@contextlib.contextmanager
def _one_by_one() -> Iterator[None]:
    """Without transformers' progress bar, ours tells more, and without its threads: they would read
    ahead of the casts, and hold weights twice."""
    bar, threads = transformers.utils.logging.is_progress_bar_enabled(), os.environ.get(_NO_THREADS)
    transformers.utils.logging.disable_progress_bar()
    os.environ[_NO_THREADS] = "1"
    try:
        yield
    finally:
        if bar:
            transformers.utils.logging.enable_progress_bar()
        if threads is None:
            del os.environ[_NO_THREADS]
        else:
            os.environ[_NO_THREADS] = threads
