"""Divide the experts over two processes: the tokens of one, and each reads its own experts alone.

Starts itself a second time under torchrun, which gives every process its rank.
"""

import os
import subprocess
import sys

import torch

import prophet_moe
from prophet_moe.models.parallel import gathered, leave
from prophet_moe.models.stock import load_tokenizer

if "RANK" not in os.environ:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    sys.exit(subprocess.run([*torchrun, __file__, *sys.argv[1:]], check=False).returncode)

name = sys.argv[1] if len(sys.argv) > 1 else "reference-moe"
# In float32: ranks sum in another order than one process, which in bfloat16 can turn a near tie.
settings = {"dtype": "float32", "slots": "25%", "context": 64}
prompt = load_tokenizer(name)("Call me Ishmael.", return_tensors="pt").input_ids

model = prophet_moe.load(name, expert_parallel="auto", **settings)
with torch.no_grad():
    tokens = model.generate(prompt, max_new_tokens=24, do_sample=False)
reports = gathered(prophet_moe.report(model))  # of all ranks, on each
prophet_moe.close(model)
rank = int(os.environ["RANK"])
leave()

if rank == 0:
    alone = prophet_moe.load(name, **settings)
    same = torch.equal(tokens, alone.generate(prompt, max_new_tokens=24, do_sample=False))
    whole = prophet_moe.report(alone)
    for report in [whole, *reports]:
        who = f"rank {report['rank']} of {report['ranks']}" if "rank" in report else "one process"
        share = report["bytes"]["demand"] / whole["bytes"]["demand"]
        print(
            f"{who:12} {report['expert_slots']:3} slots for {report['experts_total']} experts, "
            f"{report['bytes']['demand'] / 1e6:5.1f} MB read, {share:.0%}"
        )
    print("tokens are", "those of one process" if same else "other than one process gives")
    prophet_moe.close(alone)
