"""vLLM plug-in: experts in Prophet's store and slots, vLLM's own kernels on the slots.

vLLM finds `register` by the entry point group `vllm.general_plugins` and calls it in every process
that it starts. Without PROPHET_VLLM_SLOTS in the environment nothing happens. docs/vllm.md is the guide.

    settings     what the environment asks for
    support      which vLLM, and what is refused
    records      all experts in the kernel's layout, one safetensors file
    slots        the engine over that file: which slots hold the experts of a call
    method       the MoE method and runner that vLLM builds in place of its own
    statistics   what happened, in the names of the run report
"""

import os


def register() -> None:
    """Has vLLM build MoE layers whose experts Prophet keeps. Idempotent; raises ProphetError."""
    from prophet_moe.integrations.vllm.settings import Settings

    if Settings.from_environment(os.environ) is None:
        return
    from prophet_moe.integrations.vllm.support import require_version

    require_version()
    from prophet_moe.integrations.vllm.method import install

    install()
