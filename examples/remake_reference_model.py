"""Trains a small Mixture-of-Experts language model such as the shipped reference-moe, from plain text.

    python examples/remake_reference_model.py OUT [TEXT ...]          # hours on two cores
    python examples/remake_reference_model.py OUT --steps 20 --quick  # under a minute: a check, not a model

TEXT are files or folders of text; without any, the sources of Python's standard library serve.
OUT becomes a folder in Qwen3-MoE layout with a byte-level BPE tokenizer, in bfloat16, that stock
transformers and prophet_moe.load both read. The shipped model saw 8.9 million tokens of the texts
that its model card lists.
"""

import argparse
import math
import random
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import PreTrainedTokenizerFast, Qwen3MoeConfig, Qwen3MoeForCausalLM

END = "<|endoftext|>"
SHARE_HELD_OUT = 12  # every twelfth document is never trained on


def documents(places: list[Path]) -> list[str]:
    """The texts of all files below `places`, shuffled with a fixed seed; tiny ones are left out."""
    files = sorted(
        path
        for place in places
        for path in ([place] if place.is_file() else place.rglob("*"))
        if path.is_file() and path.suffix in {".py", ".txt", ".md", ".rst", ""}
        and not {"site-packages", "test", "tests"} & set(path.parts)
    )  # fmt: skip
    texts = [path.read_text(encoding="utf-8", errors="ignore") for path in files]
    texts = [text for text in texts if len(text) > 100]
    if len(texts) < SHARE_HELD_OUT:
        raise SystemExit(
            f"{len(texts)} texts are too few: name files or folders with at least {SHARE_HELD_OUT}"
        )
    random.Random(7).shuffle(texts)
    return texts


def train_tokenizer(texts: list[str], size: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE: every byte is in the alphabet, so no text is unknown."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator((text[:20_000] for text in texts), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token=END, eos_token=END, pad_token=END)


def encode(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> Tensor:
    """All texts as one run of token ids, each closed by the end token."""
    ids: list[int] = []
    for text in texts:
        ids += tokenizer(text)["input_ids"]
        ids.append(tokenizer.eos_token_id)
    return torch.tensor(ids)


def configuration(vocabulary: int, layers: int = 12) -> Qwen3MoeConfig:
    """12 layers of 32 experts, 4 per token, make 16.2 M parameters, 14.2 M of them in experts."""
    return Qwen3MoeConfig(
        vocab_size=vocabulary,
        hidden_size=192,
        num_hidden_layers=layers,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=32,
        intermediate_size=256,
        moe_intermediate_size=64,
        num_experts=32,
        num_experts_per_tok=4,
        norm_topk_prob=True,
        output_router_logits=True,  # adds the load-balancing loss
        router_aux_loss_coef=0.01,
        initializer_range=0.05,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
    )


def batches(ids: Tensor, rows: int, length: int, seed: int) -> Iterator[Tensor]:
    """Endless random windows [rows, length] of `ids`."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        starts = torch.randint(len(ids) - length, (rows,), generator=generator)
        yield torch.stack([ids[start : start + length] for start in starts.tolist()])


@torch.no_grad()
def held_out_loss(model: Qwen3MoeForCausalLM, ids: Tensor, length: int) -> float:
    """Nats per token over at most twenty windows, without the load-balancing loss."""
    model.eval()
    windows = [ids[i : i + length][None] for i in range(0, len(ids) - length, length)][:20]
    losses = [model(w, labels=w, output_router_logits=False).loss.item() for w in windows]
    model.train()
    return sum(losses) / len(losses)


def train(
    model: Qwen3MoeForCausalLM, ids: Tensor, held_out: Tensor, *, steps: int, rows: int, length: int
) -> None:
    """AdamW with warm-up and cosine decay; weight decay on matrices only."""
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    vectors = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=2.5e-3, betas=(0.9, 0.95))
    warm_up = min(100, max(1, steps // 5))

    def rate(step: int) -> float:
        cosine = 0.5 * (1 + math.cos(math.pi * step / steps))
        return min(1.0, (step + 1) / warm_up) * (0.05 + 0.95 * cosine)

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    windows = batches(ids, rows, length, seed=0)
    model.train()
    for step in range(1, steps + 1):
        window = next(windows)
        loss = model(window, labels=window).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        if step % max(1, steps // 20) == 0:
            print(f"step {step}/{steps}: loss {loss.item():.3f}", flush=True)
    print(f"held-out loss {held_out_loss(model, held_out, length):.3f} nats per token", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("texts", type=Path, nargs="*")
    parser.add_argument("--steps", type=int, default=2200)
    parser.add_argument("--quick", action="store_true", help="little text, small batches, 3 layers")
    args = parser.parse_args()

    torch.manual_seed(0)
    texts = documents(args.texts or [Path(sysconfig.get_path("stdlib"))])
    if args.quick:
        texts = [text[:20_000] for text in texts[:60]]
    held_out, training = texts[::SHARE_HELD_OUT], [t for i, t in enumerate(texts) if i % SHARE_HELD_OUT]
    tokenizer = train_tokenizer(training, 1024 if args.quick else 4096)
    rows, length = (2, 64) if args.quick else (16, 256)

    model = Qwen3MoeForCausalLM(configuration(len(tokenizer), layers=3 if args.quick else 12))
    print(
        f"{sum(p.numel() for p in model.parameters()) / 1e6:.1f} M parameters, {len(training)} texts",
        flush=True,
    )
    ids, held_out_ids = encode(tokenizer, training), encode(tokenizer, held_out)
    train(model, ids, held_out_ids, steps=args.steps, rows=rows, length=length)

    model.config.output_router_logits = False
    model.to(torch.bfloat16).save_pretrained(args.out)
    tokenizer.save_pretrained(args.out)
    print(f"wrote {args.out}")


if __name__ == "__main__":
    main()
