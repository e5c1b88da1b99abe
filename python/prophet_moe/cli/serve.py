"""prophet serve: a model behind OpenAI's HTTP interface, for several users at once."""

from __future__ import annotations

from prophet_moe.cli import options as flag
from prophet_moe.cli import options_serve as serving
from prophet_moe.cli.console import guarded, log, print_block, spinner

HELP = """Example: prophet serve reference-moe --slots 25% --context 512

Answers /v1/chat/completions, /v1/completions and /v1/models on 127.0.0.1:8000, with a live page at /, /health
and Prometheus /metrics. Ctrl-C ends it. Needs the extra [serve]."""


@guarded
def serve(
    model: flag.Model,
    host: serving.Host = "127.0.0.1",
    port: serving.Port = 8000,
    api_key: serving.ApiKey = None,
    served_model_name: serving.ServedName = None,
    concurrency: serving.Concurrency = 8,
    queue: serving.Queue = 64,
    context: flag.Context = None,
    kv_tokens: serving.KvTokens = None,
    budget: flag.Budget = "auto",
    slots: flag.Slots = None,
    system: flag.System = "auto",
    predictor: flag.Predictor = None,
    pool: flag.Pool = "global",
    dtype: serving.Dtype = None,
    threads: flag.Threads = None,
    quiet: flag.Quiet = False,
    verbose: flag.Verbose = False,
) -> None:
    try:
        from prophet_moe.serve import server
        from prophet_moe.serve.app import build_app
        from prophet_moe.serve.service import Limits, Service
    except ModuleNotFoundError as error:
        raise ValueError(
            f"prophet serve needs {error.name}, which is not installed: pip install 'prophet-moe[serve]'."
        ) from None
    from prophet_moe.cli.session import Session, Wish, default_context, look_at
    from prophet_moe.models.stock import load_tokenizer

    info = look_at(model, quiet)
    length = context or default_context(info)
    if info.max_context is not None and length > info.max_context:
        raise ValueError(
            f"--context {length} is more than the {info.max_context} tokens that {model} was made for."
        )
    if kv_tokens is not None and kv_tokens < length:
        raise ValueError(
            f"--kv-tokens {kv_tokens} cannot hold one context of {length} tokens: give at least {length}, "
            "or a smaller --context."
        )
    bound = server.listen(host, port)
    with bound:
        sequences = -(-(kv_tokens or length * concurrency) // length)
        wish = Wish(
            model, budget, slots, system, False, pool, threads, length, False, quiet, predictor,
            sequences=sequences, dtype=dtype,
        )  # fmt: skip
        tokenizer = load_tokenizer(info.directory) if info.has_tokenizer else None
        with Session(wish, info, tokenizer) as session:
            if verbose:
                print_block(session.offload.plan.lines())
            with spinner("setting memory aside for the key-value cache", quiet):
                service = Service(
                    session.model,
                    tokenizer,
                    served_model_name or model.rstrip("/").rpartition("/")[2],
                    Limits(concurrency, length, kv_tokens, queue),
                )
            try:
                address = server.address(bound)

                def ready() -> None:
                    log().print(
                        f"{service.name} at {address}/v1 (live page: {address}/): {concurrency} requests at "
                        f"a time, contexts of {length} tokens. Ctrl-C ends it.",
                        markup=False,
                        soft_wrap=True,
                    )

                server.run(build_app(service, api_key=api_key), bound, verbose=verbose, ready=ready)
            finally:
                service.loop.batching.close()
