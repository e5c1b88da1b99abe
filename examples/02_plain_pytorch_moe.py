"""A hand-written MoE layer in plain PyTorch whose experts stay on disk: prophet_ext alone.

The layer keeps its router; its experts are tensors of a safetensors file, and the engine holds at most
SLOTS of them in memory. Decode-sized calls go through `Engine.forward` (the native kernel);
anything else can take leases and compute on views of the arena, as `forward_on_views` does.
"""

import json
import struct
import tempfile
import warnings
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

import prophet_ext

EXPERTS, TOP_K, HIDDEN, INTER, SLOTS = 16, 2, 128, 256, 6
PARTS = ("gate", "up", "down")
warnings.filterwarnings("ignore", "The given buffer is not writable")  # nobody writes weights


def write_experts(path: Path) -> dict[str, Tensor]:
    """Random experts: gate and up [INTER, HIDDEN], down [HIDDEN, INTER], float32."""
    torch.manual_seed(0)
    shapes = {"gate": (INTER, HIDDEN), "up": (INTER, HIDDEN), "down": (HIDDEN, INTER)}
    tensors = {f"{e}.{part}": 0.1 * torch.randn(shapes[part]) for e in range(EXPERTS) for part in PARTS}
    save_file(tensors, path)
    return tensors


def find_experts(path: Path) -> np.ndarray:
    """Where each part of each expert lies: [1 layer, EXPERTS, 3, (file, offset, bytes)] uint64."""
    with path.open("rb") as file:
        (size,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(size))
    pieces = np.zeros((1, EXPERTS, len(PARTS), 3), np.uint64)
    for expert in range(EXPERTS):
        for i, part in enumerate(PARTS):
            begin, end = header[f"{expert}.{part}"]["data_offsets"]
            pieces[0, expert, i] = (0, 8 + size + begin, end - begin)
    return pieces


class OffloadedMoE(nn.Module):
    """A top-k MoE layer over [tokens, HIDDEN] float32 whose experts the engine brings."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.router = nn.Linear(HIDDEN, EXPERTS, bias=False)
        self.engine = prophet_ext.Engine(
            files=[str(path)], pieces=find_experts(path), top_k=TOP_K, slots=SLOTS
        )
        self.engine.set_ffn(
            hidden=HIDDEN, inter=INTER, dtype="f32", activation="silu", has_gate=True,
            gate=(0, 0), up=(1, 0), down=(2, 0),
        )  # fmt: skip
        self.memory = torch.frombuffer(self.engine.arena(), dtype=torch.uint8)

    def route(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Ids [tokens, TOP_K] int64 and weights [tokens, TOP_K] that sum to one."""
        weights, ids = self.router(x).softmax(-1).topk(TOP_K)
        return ids, weights / weights.sum(-1, keepdim=True)

    def forward(self, x: Tensor) -> Tensor:
        ids, weights = self.route(x)
        out = torch.empty_like(x)
        self.engine.forward(
            0, len(x), x.data_ptr(), "f32", ids.data_ptr(), weights.data_ptr(), "f32", out.data_ptr(), TOP_K
        )
        return out

    def forward_on_views(self, x: Tensor) -> Tensor:
        """The same by leases: torch computes on the bytes where they lie."""
        ids, weights = self.route(x)
        out = torch.zeros_like(x)
        self.engine.step(0)
        for expert in ids.unique().tolist():
            rows, slot = torch.where(ids == expert)
            with self.engine.lease(0, [expert]) as lease:
                gate, up, down = (
                    self.memory[at : at + 4 * HIDDEN * INTER].view(torch.float32) for at in lease.wait(expert)
                )
                y = F.silu(x[rows] @ gate.view(INTER, HIDDEN).T) * (x[rows] @ up.view(INTER, HIDDEN).T)
                y = y @ down.view(HIDDEN, INTER).T
                out.index_add_(0, rows, weights[rows, slot, None] * y)
        return out


def reference(layer: OffloadedMoE, experts: dict[str, Tensor], x: Tensor) -> Tensor:
    """The same layer with every expert in memory, float64."""
    ids, weights = layer.route(x)
    rows = []
    for token in range(len(x)):
        row = torch.zeros(HIDDEN, dtype=torch.float64)
        for expert, weight in zip(ids[token].tolist(), weights[token].double(), strict=True):
            gate, up, down = (experts[f"{expert}.{part}"].double() for part in PARTS)
            row += weight * (down @ (F.silu(gate @ x[token].double()) * (up @ x[token].double())))
        rows.append(row)
    return torch.stack(rows)


@torch.no_grad()
def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "experts.safetensors"
        experts = write_experts(path)
        layer = OffloadedMoE(path)
        x = torch.randn(8, HIDDEN)
        wanted = reference(layer, experts, x)
        for name, got in (("forward", layer(x)), ("views", layer.forward_on_views(x))):
            error = (got.double() - wanted).abs().max().item()
            print(f"{name}: largest difference from float64 {error:.1e}")
            assert error < 1e-4, f"{name} is wrong by {error}"
        counted = layer.engine.counters()
        print(f"{SLOTS} of {EXPERTS} experts in memory, {counted['bytes_demand']:,} bytes read")
        del layer.memory
        layer.engine.close()


if __name__ == "__main__":
    main()
