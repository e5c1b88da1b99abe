"""Record which experts the router chooses, and ask how much of a token's choice the next one repeats."""

import sys
import tempfile
from pathlib import Path

import numpy as np

import prophet_moe
from prophet_moe.models.stock import load_tokenizer
from prophet_moe.record import read_prompts, record, tokenise
from prophet_moe.record.prompts import shipped

name = sys.argv[1] if len(sys.argv) > 1 else "reference-moe"

prompts = read_prompts(shipped(), per_domain=1)
model = prophet_moe.load(name, slots="25%", context=256)
ids = tokenise(prompts, load_tokenizer(name), model.config.vocab_size)

with tempfile.TemporaryDirectory() as folder:
    trace = record(model, prompts, ids, Path(folder) / "routes.safetensors", name=name, tokens=16)
    for sequence, domain in enumerate(trace.labels):
        chosen = np.asarray(trace.sequence(sequence).experts)  # [tokens, layers, top_k]
        again = (chosen[1:, :, :, None] == chosen[:-1, :, None, :]).any(axis=3).mean()
        print(f"{domain:9} {len(chosen):3} tokens, {again:.0%} of the experts are those of the token before")
prophet_moe.close(model)
