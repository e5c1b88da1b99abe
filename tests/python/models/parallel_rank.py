"""One rank of test_parallel.py, started by torchrun: says what it did, in JSON, into RESULTS/RANK.json."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import transformers
from transformers import ContinuousBatchingConfig, GenerationConfig
from transformers.distributed import DistributedConfig

import prophet_moe
from prophet_moe.models.offload import offload_of
from prophet_moe.models.parallel import gathered, leave
from prophet_moe.record import Prompt, record

PROMPTS = [[5, 6, 7, 8, 9], [9, 8, 7, 6], [11, 12, 13, 14, 15, 16]]
# No end of sequence: all sequences are equally long, in one process and in two.
GREEDY = GenerationConfig(max_new_tokens=12, do_sample=False, pad_token_id=0)
BATCHING = ContinuousBatchingConfig(num_blocks=64, page_size=32, max_batch_tokens=128)


def solo(model: Any, prompt: list[int]) -> list[int]:
    return model.generate(torch.tensor([prompt]), generation_config=GREEDY)[0, len(prompt) :].tolist()


def decoded(model: Any) -> dict[str, Any]:
    """Tokens of every way to generate, and what was read for them."""
    model.generation_config.eos_token_id = None
    said = {"generate": [solo(model, prompt) for prompt in PROMPTS]}
    engine = offload_of(model).engine
    timeline = engine.timeline()
    reads = {
        (int(layer), int(expert))
        for kind, layer, expert in zip(*(timeline[c] for c in ("kind", "layer", "expert")), strict=True)
        if engine.timeline_kinds()[int(kind)] == "read_demand"
    }
    return said | {"report": prophet_moe.report(model), "reads": sorted(reads)}


def batched(model: Any) -> list[list[int]]:
    out = model.generate_batch(
        PROMPTS, generation_config=GREEDY, continuous_batching_config=BATCHING, progress_bar=False
    )
    return [request.generated_tokens for request in out.values()]


def refused(*arguments: Any, **options: Any) -> str:
    """The sentence of a load that must not succeed."""
    try:
        prophet_moe.load(*arguments, **options)
    except prophet_moe.ProphetError as error:
        return f"{type(error).__name__}: {error}"
    return "loaded"


def main(folder: Path, families: list[str]) -> None:
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    rank = int(os.environ["RANK"])
    plain = {"dtype": "float32", "slots": "50%", "context": 64, "timeline": True}
    said: dict[str, Any] = {}

    model = prophet_moe.load(folder / f"rank{rank}", expert_parallel=2, **plain)
    said["tensor"] = decoded(model)
    said["batch"] = batched(model)
    offload = offload_of(model)
    local = (p.to_local() if hasattr(p, "to_local") else p for p in model.parameters())
    said["dense_bytes"] = [sum(p.nbytes for p in local), offload.info.dense_bytes]
    said["dense_read"] = offload.dense_bytes_read
    trace = record(model, [Prompt("d", "p")], PROMPTS[:1], folder / f"{rank}.safetensors", name="m", tokens=4)
    said["trace_experts"] = trace.experts_per_layer
    prophet_moe.close(model)

    exchange = DistributedConfig(fsdp_size=2, ep_size=2, ep_implementation="all_to_all")
    model = prophet_moe.load(folder / f"rank{rank}", expert_parallel=exchange, **plain)
    said["exchange"] = decoded(model)
    try:
        batched(model)
    except ValueError as error:
        said["batch_of_fsdp"] = str(error)
    prophet_moe.close(model)

    for system in ("fate", "moe-infinity"):
        model = prophet_moe.load("reference-moe", expert_parallel="auto", system=system, **plain)
        model.generation_config.eos_token_id = None
        said[system] = [solo(model, PROMPTS[0])]
        assert offload_of(model).engine.foresight_failure == ""
        prophet_moe.close(model)

    for family in families:
        model = prophet_moe.load(folder / family, expert_parallel="auto", **plain)
        model.generation_config.eos_token_id = None
        said[family] = [solo(model, PROMPTS[0])]
        prophet_moe.close(model)

    said["uneven"] = refused(folder / "uneven", expert_parallel=2)
    said["other_number"] = refused("reference-moe", expert_parallel=3)
    said["no_plan"] = refused(folder / "planless", expert_parallel=2)
    # One rank alone meets a damaged file: the other must not wait for it.
    said["damaged"] = refused(folder / ("damaged" if rank else "rank0"), expert_parallel=2, **plain)
    said["still_together"] = gathered(rank)
    (folder / f"{rank}.json").write_text(json.dumps(said))
    leave()
    assert not dist.is_initialized()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
