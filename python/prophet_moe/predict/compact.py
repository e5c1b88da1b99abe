"""Matrices as 8-bit integers: half the file, the same arithmetic.

A matrix NAME of float16 may be stored as int8 [..., n] with NAME.scale, float32 [...]: a row's numbers are
scale x integer, the scale being its largest magnitude / 127. They are widened to float16 when a file is
read, so that torch and the native runtime compute with the same numbers; nothing else knows of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

Arrays = dict[str, npt.NDArray[Any]]
SCALE = ".scale"
LARGEST = 127


def narrow(tensors: Mapping[str, npt.NDArray[Any]]) -> Arrays:
    """Every float16 tensor as int8 and scale; the others as they are.

    Of what `widen` made it gives the same numbers again, but for their last bit.
    """
    out: Arrays = {}
    for name, array in tensors.items():
        if array.dtype != np.float16 or not array.size:
            out[name] = array
            continue
        wide = array.astype(np.float32)
        scale = np.abs(wide).max(-1, keepdims=True) / LARGEST
        steps = np.divide(wide, scale, out=np.zeros_like(wide), where=scale > 0)
        out[name] = np.rint(steps).astype(np.int8)
        out[name + SCALE] = scale[..., 0]
    return out


def widen(tensors: Mapping[str, npt.NDArray[Any]]) -> Arrays:
    """What `narrow` made, in float16 again. Raises ValueError: scales missing or of another shape."""
    out: Arrays = {}
    for name, array in tensors.items():
        if array.dtype != np.int8:
            of = tensors.get(name.removesuffix(SCALE))
            if not name.endswith(SCALE) or of is None or of.dtype != np.int8:
                out[name] = array
            continue
        scale = tensors.get(name + SCALE)
        if scale is None or scale.dtype != np.float32 or scale.shape != array.shape[:-1]:
            raise ValueError(f"{name} is stored as int8 without a scale for each of its rows")
        with np.errstate(over="ignore", invalid="ignore"):  # the reader refuses what is not finite
            out[name] = (array * scale[..., None]).astype(np.float16)
    return out
