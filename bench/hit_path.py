"""What an all-hit layer costs through Python: step, lease and release, nothing computed.

    python bench/hit_path.py

Prints one JSON object: microseconds per layer (median of repeats), 64 layers x 128 experts, top-8.
The measure asks for <= 20 us through Python; bench/micro/engine_bench has the C++ figure.
"""

import json
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

import prophet_ext

LAYERS, EXPERTS, TOP_K, EXPERT_BYTES = 64, 128, 8, 512


def engine_over(path: Path) -> prophet_ext.Engine:
    """All experts resident: one small file, as many slots as experts."""
    path.write_bytes(bytes(LAYERS * EXPERTS * EXPERT_BYTES))
    pieces = np.zeros((LAYERS, EXPERTS, 1, 3), np.uint64)
    pieces[..., 0, 1] = np.arange(LAYERS * EXPERTS).reshape(LAYERS, EXPERTS) * EXPERT_BYTES
    pieces[..., 0, 2] = EXPERT_BYTES
    return prophet_ext.Engine(
        files=[str(path)], pieces=pieces, top_k=TOP_K, slots=LAYERS * EXPERTS, policy="expected-next-use"
    )


def main() -> None:
    rng = np.random.default_rng(1)
    with tempfile.TemporaryDirectory() as folder, engine_over(Path(folder) / "experts") as engine:
        for layer in range(LAYERS):
            with engine.lease(layer, list(range(EXPERTS))) as lease:
                for expert in range(EXPERTS):
                    lease.wait(expert)
        routes = [rng.permutation(EXPERTS)[:TOP_K].tolist() for _ in range(LAYERS)]
        cold = engine.counters()["misses"]
        samples = []
        for _ in range(50):
            begin = time.perf_counter()
            for layer, route in enumerate(routes):
                engine.step(layer)
                engine.lease(layer, route).release()
            samples.append((time.perf_counter() - begin) / LAYERS * 1e6)
        if engine.counters()["misses"] != cold:
            raise SystemExit("a hit was missed: the figure would be wrong")
    print(json.dumps({"us_per_layer": round(statistics.median(samples), 2), "best": round(min(samples), 2)}))


if __name__ == "__main__":
    main()
