"""Everything Prophet raises on purpose, each with a sentence that names the culprit and the way out.

The native module's types are the roots: `except ProphetError` catches both worlds.
"""

from prophet_ext import DeviceError, InvalidArgument, ProphetError, ReadError, StateError

__all__ = [
    "BudgetError",
    "CheckpointError",
    "DeviceError",
    "InvalidArgument",
    "ProphetError",
    "ReadError",
    "StateError",
    "UnsupportedModelError",
    "WriteError",
]


class CheckpointError(ProphetError):
    """The files of a model are missing, damaged, or contradict each other."""


class UnsupportedModelError(ProphetError):
    """The model is sound, but of a kind this release does not run."""


class WriteError(ProphetError, OSError):
    """Bytes could not be written: a full disk, no permission. What was there before is there still."""


class BudgetError(ProphetError, ValueError):
    """The memory asked for cannot hold what must stay resident.

    `minimum_bytes` is the smallest budget that would do; None where no budget could.
    """

    def __init__(self, message: str, minimum_bytes: int | None = None) -> None:
        super().__init__(message)
        self.minimum_bytes = minimum_bytes
