"""Six lines: load a model with a quarter of its experts in memory, generate, see where the time went."""

import sys

from transformers import AutoTokenizer

import prophet_moe

name = sys.argv[1] if len(sys.argv) > 1 else "reference-moe"

model = prophet_moe.load(name, slots="25%")
tokenizer = AutoTokenizer.from_pretrained(model.config.name_or_path)
prompt = tokenizer("Permission is hereby granted, free of charge", return_tensors="pt")
tokens = model.generate(**prompt, max_new_tokens=24, do_sample=False)
print(tokenizer.decode(tokens[0]))
print(prophet_moe.report(model))
