"""Small networks with weights that matter, for tests of scoring, export and causality."""

import numpy as np
import torch
from predict_routes import EXPERTS, LAYERS, TOP_K

from prophet_moe.predict.bank import Bank, BankConfig
from prophet_moe.predict.calibrate import LIMITS, Calibration
from prophet_moe.predict.export import Predictor
from prophet_moe.predict.paper import Paper, PaperConfig

HEADS, AHEAD = (1, 3, 8), 2


def bank(**options):
    chosen = {
        "rank": 12,
        "decays": (0.5, 0.8, 0.95),
        "bank": (1, 2),
        "heads": HEADS,
        "ahead": AHEAD,
        **options,
    }
    return shaken(Bank(BankConfig(LAYERS, EXPERTS, TOP_K, **chosen)))


def paper(**options):
    chosen = {"width": 16, "depth": 2, "attention_heads": 2, "heads": HEADS, "ahead": AHEAD, **options}
    return shaken(Paper(PaperConfig(LAYERS, EXPERTS, TOP_K, **chosen)))


def shaken(net, seed=5):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(torch.randn(p.shape, generator=generator) * 0.15)
    return net.eval()


def predictor(net):
    rng = np.random.default_rng(4)

    def scale(*shape):
        return rng.uniform(0.7, 1.3, shape).astype(np.float32)

    layers, heads = LAYERS, len(HEADS)
    fit = Calibration(
        scale(layers, heads),
        scale(layers, heads) - 1,
        scale(AHEAD, layers),
        scale(AHEAD, layers) - 1,
        scale(len(LIMITS), 1 + heads),
    )
    return Predictor(net, fit, [(0.25, 8.0), (0.5, 24.0)], "toy", {"tokens": 1}, {"recall": 0.5})
