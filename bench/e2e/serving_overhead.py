"""What the server adds to a token: streams of one client against model.generate, on the same loaded model.

    python bench/e2e/serving_overhead.py MODEL [--slots 50%] [--tokens 64] [--rounds 9] [--dtype NAME]

One process holds the model and the server; the client is a process of its own. Each round times one
`generate` and one streamed request of the same prompt, in turn; the time per output token is the median
between tokens of a run, and the figure is the median over rounds of their ratio. `cpu_ratio` compares the
processor time of the process, prefill and HTTP included, which other work on the machine hardly changes.
Prints one JSON object.
"""

import argparse
import itertools
import json
import multiprocessing
import os
import statistics
import threading
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection

import httpx
import uvicorn

import prophet_moe
from prophet_moe.generate import decode, fixed_tokens
from prophet_moe.serve import server
from prophet_moe.serve.app import build_app
from prophet_moe.serve.service import Limits, Service


def gaps_ms(times: Sequence[float]) -> float:
    """Median time between two of `times`, given in seconds."""
    return statistics.median(b - a for a, b in itertools.pairwise(times)) * 1e3


def client(line: Connection, url: str) -> None:
    """For each body that comes: the times at which its events arrived; ends with None."""
    with httpx.Client(timeout=600) as http:
        while (body := line.recv()) is not None:
            times = []
            with http.stream("POST", f"{url}/v1/completions", json=body) as answer:
                for event in answer.iter_lines():
                    if event.startswith("data: {"):
                        times.append(time.perf_counter())
            line.send(times)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    options.add_argument("model")
    options.add_argument("--slots", default="50%")
    options.add_argument("--tokens", type=int, default=64)
    options.add_argument("--prompt-tokens", type=int, default=16)
    options.add_argument("--rounds", type=int, default=9)
    options.add_argument("--dtype")
    chosen = options.parse_args()
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    context = chosen.prompt_tokens + chosen.tokens
    model = prophet_moe.load(
        chosen.model, slots=chosen.slots, dtype=chosen.dtype, context=context, sequences=1
    )
    service = Service(model, None, "model", Limits(rows=1, context=context))
    bound = server.listen("127.0.0.1", 0)
    running = uvicorn.Server(uvicorn.Config(build_app(service), log_level="error"))
    thread = threading.Thread(target=running.run, kwargs={"sockets": [bound]})
    thread.start()
    line, far = multiprocessing.get_context("spawn").Pipe()
    other = multiprocessing.get_context("spawn").Process(target=client, args=(far, server.address(bound)))
    other.start()
    prompt = fixed_tokens(chosen.prompt_tokens, int(model.get_input_embeddings().weight.shape[0]))
    body = {
        "prompt": prompt, "max_tokens": chosen.tokens, "temperature": 0, "ignore_eos": True, "stream": True,
    }  # fmt: skip
    alone, served, cpu = [], [], []
    try:
        model.generation_config.eos_token_id = None
        for number in range(chosen.rounds + 1):
            begun = time.process_time()
            run = decode(model, prompt, max_new_tokens=chosen.tokens)
            between = time.process_time()
            line.send(body)
            times = line.recv()
            ended = time.process_time()
            if number:  # the first round warms up
                alone.append(gaps_ms([mark.at_ns / 1e9 for mark in run.marks]))
                served.append(gaps_ms(times))
                cpu.append((ended - between) / (between - begun))
        line.send(None)
    finally:
        running.should_exit = True
        thread.join()
        other.join(30)
        other.kill()
        prophet_moe.close(model)
    ratios = [one / two for one, two in zip(served, alone, strict=True)]
    print(
        json.dumps(
            {
                "model": chosen.model,
                "rounds": chosen.rounds,
                "generate_tpot_ms": statistics.median(alone),
                "served_tpot_ms": statistics.median(served),
                "ratio": statistics.median(ratios),
                "ratios": [round(ratio, 3) for ratio in sorted(ratios)],
                "cpu_ratio": statistics.median(cpu),
                "cpu_ratios": [round(ratio, 3) for ratio in sorted(cpu)],
                "load": os.getloadavg()[0],
            }
        )
    )


if __name__ == "__main__":
    main()
