"""`pack`: a checkpoint rewritten so that each expert is one aligned run of bytes.

The folder holds the configuration and tokenizer as they were, `dense.safetensors` with the weights
that stay resident under their own names, and `experts.safetensors`. There is no
`model.safetensors`: a loader that does not know packed experts must find nothing to load, rather than
a model without experts.

Safetensors allows no byte outside of a tensor. So the header is padded with spaces until the data
begins on a page, and an expert whose tensors do not fill whole pages is followed by a tensor of zeros
named `module.expert.filler`.
"""

import errno
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from prophet_moe.errors import CheckpointError, InvalidArgument, ProphetError, WriteError
from prophet_moe.models.checkpoint import (
    CACHE_LINE,
    PACKED_FORMAT,
    PACKED_NAME,
    PACKED_VERSION,
    Checkpoint,
    TensorPlace,
    TensorReader,
)
from prophet_moe.models.index import EXPERT_DTYPES, ExpertIndex
from prophet_moe.models.inspect import make_blueprint

DENSE_NAME = "dense.safetensors"
PAGE = 4096
CHUNK = 4 << 20  # the most bytes held at a time

# What travels with the weights, by name; never weights in other formats, never code.
COMPANIONS = (
    "*.json",
    "*.jinja",
    "*.txt",
    "tokenizer*",
    "*.model",
    "*.tiktoken",
    "*.md",
    "LICENSE*",
    "NOTICE*",
    "additional_chat_templates/*.jinja",
)

Progress = Callable[[int, int], None]  # (bytes written so far, bytes to write)


@dataclass(frozen=True, slots=True)
class _Entry:
    """One tensor to write: copied from `source`, or zeros."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    bytes: int
    source: TensorPlace | None


def pack(
    model: str | os.PathLike[str],
    out_dir: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Writes a packed copy of a model to the folder `out_dir` and returns it as an absolute path.

    model: a folder, a Hub id, or "reference-moe"; a packed one may be packed again. Tensors that
    the model's class does not build are left out.
    overwrite: replaces a folder that `pack` wrote, or an empty one; never anything else.
    progress: called with (bytes written, bytes to write), both of tensors.

    `out_dir` appears at the end and whole: until then everything lies in a hidden folder beside it,
    which any error and Ctrl-C remove. Memory is bounded by a few MiB beside the headers. Raises
    InvalidArgument (a target that may not be written), WriteError (a full disk, no permission), and
    what `inspect` raises for the source.
    """
    blueprint = make_blueprint(model)
    checkpoint, index = blueprint.checkpoint, blueprint.index
    target = _check_target(Path(out_dir).expanduser().resolve(), blueprint.info.directory, overwrite)
    experts, dense = list(_expert_entries(index)), list(_dense_entries(checkpoint, index.resident))
    notes = {
        "format": PACKED_FORMAT,
        "version": PACKED_VERSION,
        "pieces": json.dumps(index.pieces),
        "layers": str(index.layers),
        "experts_per_layer": str(index.experts_per_layer),
        "alignment": str(PAGE),
        "begins": json.dumps(index.begins),
    }
    told = _Told(progress, sum(entry.bytes for entry in (*dense, *experts)))
    with _replacing(target, overwrite) as temporary, TensorReader(checkpoint) as reader:
        _copy_companions(blueprint.info.directory, temporary)
        _write(temporary / DENSE_NAME, dense, {"format": "pt"}, reader, told)
        _write(temporary / PACKED_NAME, experts, notes, reader, told)
        checkpoint.require_unchanged()
    return target


def _check_target(target: Path, source: Path, overwrite: bool) -> Path:
    source = source.resolve()
    if target == source or target in source.parents:
        raise InvalidArgument(f"{target} holds the model to be packed: name another folder for the copy.")
    if not target.parent.is_dir():
        raise InvalidArgument(
            f"{target.parent} is not a folder: make it, or name another place for the copy."
        )
    if not target.exists():
        return target
    if not overwrite:
        raise InvalidArgument(f"{target} exists: name a new folder, or ask to overwrite it.")
    if not target.is_dir() or (any(target.iterdir()) and not _wrote(target)):
        raise InvalidArgument(
            f"{target} is no packed checkpoint and is not overwritten: name a new folder, or remove it."
        )
    return target


def _wrote(folder: Path) -> bool:
    """Whether `pack` made this folder, by the header of its experts."""
    try:
        with (folder / PACKED_NAME).open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            notes = json.loads(file.read(min(length, CHUNK * 32))).get("__metadata__", {})
            return bool(notes.get("format") == PACKED_FORMAT)
    except (OSError, ValueError, AttributeError, RecursionError):
        return False


def _expert_entries(index: ExpertIndex) -> Iterator[_Entry]:
    """The tensors of the experts file in file order: each expert fills whole pages."""
    dtype = next(name for name, stored in EXPERT_DTYPES.items() if stored == index.dtype)
    for module, shapes, layer in zip(index.modules, index.shapes, index.table.tolist(), strict=True):
        for expert, places in enumerate(layer):
            used = 0
            for piece, shape, (file, offset, size) in zip(index.pieces, shapes, places, strict=True):
                name = f"{module}.{expert}.{piece}"
                yield _Entry(name, dtype, shape, size, TensorPlace(file, offset, size, dtype, shape))
                used += size
            if rest := -used % PAGE:
                yield _Entry(f"{module}.{expert}.filler", "U8", (rest,), rest, None)


def _dense_entries(checkpoint: Checkpoint, names: Iterable[str]) -> Iterator[_Entry]:
    """The tensors of the dense file, each as far past a cache line as where it comes from.

    Exact results depend on that: matrix products may round by where a matrix begins.
    """
    places = {name: checkpoint.tensors[name] for name in names}
    end = fillers = 0
    for name, place in sorted(places.items(), key=lambda item: (item[1].file, item[1].offset)):
        if gap := (place.offset - end) % CACHE_LINE:
            yield _Entry(f"filler.{fillers}", "U8", (gap,), gap, None)
            fillers += 1
        yield _Entry(name, place.dtype, place.shape, place.bytes, place)
        end += gap + place.bytes


class _Told:
    """Bytes written so far, told to `progress`."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self._progress, self._done, self._total = progress, 0, total

    def add(self, count: int) -> None:
        self._done += count
        if self._progress is not None:
            self._progress(self._done, self._total)


def _header(entries: Sequence[_Entry], notes: dict[str, str]) -> bytes:
    """The length and the JSON of a safetensors file whose data begins on a page."""
    table: dict[str, object] = {"__metadata__": notes}
    end = 0
    for entry in entries:
        table[entry.name] = {
            "dtype": entry.dtype,
            "shape": entry.shape,
            "data_offsets": (end, end + entry.bytes),
        }
        end += entry.bytes
    text = json.dumps(table, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % PAGE)
    return len(text).to_bytes(8, "little") + text


def _write(
    path: Path, entries: Sequence[_Entry], notes: dict[str, str], reader: TensorReader, told: _Told
) -> None:
    buffer = memoryview(bytearray(CHUNK))
    with path.open("xb", buffering=0) as file:
        _write_all(file.fileno(), memoryview(_header(entries, notes)))
        for entry in entries:
            for begin in range(0, entry.bytes, CHUNK):
                part = buffer[: min(CHUNK, entry.bytes - begin)]
                if entry.source is None:
                    part[:] = bytes(len(part))
                else:
                    reader.read_into(entry.source.part(begin, len(part)), part)
                _write_all(file.fileno(), part)
                told.add(len(part))
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)  # nobody reads it now


def _write_all(descriptor: int, data: memoryview) -> None:
    while data:
        data = data[os.write(descriptor, data) :]


def _copy_companions(source: Path, target: Path) -> None:
    for path in sorted({path for pattern in COMPANIONS for path in source.glob(pattern)}):
        if not path.is_file() or path.name.endswith((".safetensors", ".index.json")):
            continue
        try:
            data = path.read_bytes()
        except OSError as error:
            raise CheckpointError(
                f"{path} could not be read ({error.strerror}): check its permissions."
            ) from error
        copy = target / path.relative_to(source)
        copy.parent.mkdir(exist_ok=True)
        with copy.open("xb", buffering=0) as file:
            _write_all(file.fileno(), memoryview(data))
            os.fsync(file.fileno())


@contextmanager
def _replacing(target: Path, overwrite: bool) -> Iterator[Path]:
    """A new hidden folder beside `target` that takes its name when all went well, and else goes away."""
    temporary = target.with_name(f".{target.name}.packing-{secrets.token_hex(4)}")
    try:
        temporary.mkdir()
        yield temporary
        _sync_folder(temporary)
        if overwrite and target.exists():
            _swap(temporary, target)
        else:
            os.rename(temporary, target)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if isinstance(error, OSError) and not isinstance(error, ProphetError):
            way_out = "free some space, or name a folder on another disk"
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                way_out = "check its permissions and the disk"
            why = error.strerror or str(error)
            raise WriteError(f"{target} could not be written ({why}) and is as before: {way_out}.") from error
        raise
    _sync_folder(target.parent)


def _swap(temporary: Path, target: Path) -> None:
    """`target` is whole at any moment, under its name or, for an instant, under a hidden one."""
    old = temporary.with_name(temporary.name + ".old")
    os.rename(target, old)
    try:
        os.rename(temporary, target)
    except BaseException:
        os.rename(old, target)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
