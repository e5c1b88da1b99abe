"""Budgets: name the memory of the whole process, be refused below the minimum, compare two settings."""

import sys

import torch
from transformers import AutoTokenizer

import prophet_moe

name = sys.argv[1] if len(sys.argv) > 1 else "reference-moe"


def tokens(budget: str | int) -> list[int]:
    """Sixteen greedy tokens within `budget`, and a line about what it took."""
    model = prophet_moe.load(name, budget=budget, context=128)
    tokenizer = AutoTokenizer.from_pretrained(model.config.name_or_path)
    prompt = tokenizer("The President of the United States", return_tensors="pt")
    with torch.inference_mode():
        ids = model.generate(**prompt, max_new_tokens=16, do_sample=False)[0].tolist()
    print(f"budget {budget}:")
    print(prophet_moe.report(model))
    prophet_moe.close(model)
    return ids


try:
    tokens("10MB")
except prophet_moe.BudgetError as refusal:
    print(f"refused before loading: {refusal}")
    smallest = refusal.minimum_bytes

assert tokens(smallest) == tokens("4GiB"), "a budget must never change a token"
print("same tokens at the smallest budget and at 4 GiB")
