"""Which activation does an experts module compute? Found by asking it, not by a table of models."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

# The native kernels' activations, by their names there.
FORMULAS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "silu": F.silu,
    "gelu_erf": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
    "relu2": lambda x: F.relu(x).square(),
}


def _probe() -> torch.Tensor:
    """Values of all sizes and both signs: a clamp, a cap or a scale anywhere shows."""
    sizes = torch.cat([torch.logspace(-6, 6, 97), torch.linspace(0.05, 12, 240)])
    return torch.cat([-sizes.flip(0), torch.zeros(1), sizes])


def recognise(module: Any, inter: int) -> str | None:
    """The native name of the activation of a decorated experts module, or None for anything else.

    `inter` is I. A gated module must be act(gate) * up of a concatenated [gate | up]; every value of a
    wide grid must agree with the formula to float32 rounding.
    """
    values = _probe()
    gate = values.repeat(8)
    up = torch.cat([values.roll(shift) for shift in (0, 1, 31, 113, 197, 307, 401, 523)])
    rows = -(-gate.numel() // inter)
    pad = (0, rows * inter - gate.numel())
    gate, up = F.pad(gate, pad).view(rows, inter), F.pad(up, pad).view(rows, inter)
    try:
        with torch.no_grad():
            if module.has_gate:
                if not module.is_concatenated:
                    return None
                seen = module._apply_gate(torch.cat([gate, up], dim=-1))
            else:
                seen = module.act_fn(gate)
    except (RuntimeError, TypeError, ValueError, AttributeError):
        return None  # it wants something else than a float32 matrix
    for name, formula in FORMULAS.items():
        expected, size = formula(gate), gate.abs()
        if module.has_gate:
            expected, size = expected * up, size * up.abs()
        # Far left a GELU is a difference of near equals: its error is one of the input's size.
        bound = 2e-6 * expected.abs() + 5e-7 * size
        if seen.shape == expected.shape and bool(((seen.float() - expected).abs() <= bound).all()):
            return name
    return None
