"""What is recorded is what the routers of the stock model say; what was complete survives interruptions."""

import os
import resource
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import FAMILIES, build

from prophet_moe.errors import InvalidArgument, UnsupportedModelError, WriteError
from prophet_moe.formats.trace import TraceError, TraceReader, TraceWriter
from prophet_moe.models.families import experts_modules
from prophet_moe.models.stock import load_stock
from prophet_moe.record import Prompt, record
from prophet_moe.record.listen import Routed, listening


def same(a: TraceReader, b: TraceReader) -> None:
    """Every array, bit for bit."""
    assert a.arrays == b.arrays
    for name in a.arrays:
        np.testing.assert_array_equal(a.map(name), b.map(name), name)


@pytest.fixture(scope="module")
def expected(stock_reference: Any, fed: Any, tmp_path_factory: pytest.TempPathFactory) -> TraceReader:
    """Recorded from stock transformers."""
    path = tmp_path_factory.mktemp("stock") / "t.safetensors"
    return record(stock_reference, *fed, path, name="reference-moe", tokens=6, hidden="F32", entering="F32")


def test_a_trace_says_what_was_fed(expected: TraceReader, fed: Any, stock_reference: Any) -> None:
    expected.check_ids()
    assert (expected.layers, expected.experts_per_layer, expected.top_k) == (12, 32, 4)
    assert expected.labels == tuple(prompt.label for prompt in fed.prompts)
    assert expected.metadata["feed"] == "prompt prefilled, greedy tokens decoded"
    assert expected.metadata["arithmetic"] == "transformers"
    for number, ids in enumerate(fed.ids):
        part = expected.sequence(number)
        generated = stock_reference.generate(torch.tensor([ids]), max_new_tokens=6, do_sample=False)
        assert part.token_id is not None
        assert part.phase is not None
        assert part.token_id.tolist() == generated[0].tolist()
        assert part.phase.tolist() == [0] * len(ids) + [1] * 6
        assert expected.notes[number]["source"] == fed.prompts[number].source
        assert expected.notes[number]["prompt_tokens"] == len(ids)


def test_routes_are_those_of_the_stock_routers(expected: TraceReader, fed: Any, stock_reference: Any) -> None:
    """By hooks of the test's own on the routers, and once more by arithmetic on what they read."""
    said: list[tuple[torch.Tensor, torch.Tensor]] = []
    gates = [m for n, m in stock_reference.named_modules() if n.endswith("mlp.gate")]
    handles = [gate.register_forward_hook(lambda _m, _a, out: said.append(out)) for gate in gates]
    token_id = expected.sequence(0).token_id
    assert token_id is not None
    try:  # prefill of all at once rounds in its own way: feed as the recording did
        with torch.no_grad():
            past = stock_reference(torch.tensor([fed.ids[0]]), use_cache=True).past_key_values
            for token in token_id[len(fed.ids[0]) :].tolist():
                past = stock_reference(torch.tensor([[token]]), past_key_values=past).past_key_values
    finally:
        for handle in handles:
            handle.remove()
    steps = [said[i : i + 12] for i in range(0, len(said), 12)]
    assert len(steps) == 7
    ids = np.concatenate([torch.stack([out[2] for out in step], 1).numpy() for step in steps])
    weights = np.concatenate([torch.stack([out[1].float() for out in step], 1).numpy() for step in steps])
    part = expected.sequence(0)
    np.testing.assert_array_equal(part.experts, ids)
    np.testing.assert_array_equal(part.gate_probs, weights.astype(np.float16))
    assert part.gate_input is not None
    for layer, gate in enumerate(gates):
        read = torch.from_numpy(part.gate_input[:, layer].copy()).to(torch.bfloat16)
        logits = (read.double() @ gate.weight.detach().double().T).numpy()
        kth = np.sort(logits, axis=1)[:, -4]
        chosen = np.take_along_axis(logits, part.experts[:, layer].astype(int), axis=1)
        assert (chosen >= kth[:, None] - 0.05).all()  # bfloat16 logits may swap near equals


def test_what_enters_a_layer_is_the_residual_stream(
    expected: TraceReader, fed: Any, stock_reference: Any
) -> None:
    """As transformers itself hands it out, of the prompt that one pass reads."""
    with torch.no_grad():
        states = stock_reference(torch.tensor([fed.ids[0]]), output_hidden_states=True).hidden_states
    part, prompt = expected.sequence(0), len(fed.ids[0])
    assert part.entering is not None
    for layer in range(expected.layers):
        np.testing.assert_array_equal(part.entering[:prompt, layer], states[layer][0].float().numpy())


@pytest.mark.parametrize("slots", ["100%", "25%", 8])
def test_an_offloaded_model_gives_the_same_trace(
    load: Callable[..., Any], expected: TraceReader, fed: Any, tmp_path: Path, slots: Any
) -> None:
    model = load("reference-moe", slots=slots, exact=True)
    path = tmp_path / "t.safetensors"
    found = record(model, *fed, path, name="reference-moe", tokens=6, hidden="F32", entering="F32")
    same(found, expected)
    assert found.metadata["arithmetic"] == "prophet, exact"
    assert os.listdir(tmp_path) == ["t.safetensors"]
    for module in experts_modules(model).values():
        assert not module._forward_pre_hooks, "hooks outlive the recording"


def test_native_arithmetic_agrees_with_stock_up_to_rounding(
    load: Callable[..., Any], stock_reference: Any, fed: Any, tmp_path: Path
) -> None:
    kept = {"name": "m", "feed": "steps"}
    model = load("reference-moe", slots="25%")
    one = record(model, *fed, tmp_path / "a", **kept)
    two = record(stock_reference, *fed, tmp_path / "b", **kept)
    assert agreement(one, two) > 0.97


def agreement(one: TraceReader, two: TraceReader) -> float:
    """Share of selections that both have."""
    np.testing.assert_array_equal(one.map("token_id"), two.map("token_id"))
    a, b = (trace.map("experts").astype(int) for trace in (one, two))
    return float((a[..., :, None] == b[..., None, :]).any(axis=-1).mean())


def test_teacher_forced_texts(stock_reference: Any, fed: Any, tmp_path: Path) -> None:
    """One pass gives what feeding token by token gives; the end token inside of a text ends nothing."""
    ends = stock_reference.generation_config.eos_token_id
    ids = [fed.ids[0], [*fed.ids[1][:3], ends, *fed.ids[1][4:]], fed.ids[2]]
    kept = {"name": "m", "tokens": 10, "hidden": "F16"}
    once = record(stock_reference, fed.prompts, ids, tmp_path / "a", feed="forced", **kept)
    steps = record(stock_reference, fed.prompts, ids, tmp_path / "b", feed="steps", **kept)
    assert [note["prompt_tokens"] for note in once.notes] == [0, 0, 0]
    assert stock_reference.generation_config.eos_token_id == ends
    for trace in (once, steps):
        assert trace.map("token_id").tolist() == [token for row in ids for token in row[:10]]
        assert (trace.map("phase") == 1).all()
    assert agreement(once, steps) > 0.97
    labelled = record(
        stock_reference, fed.prompts, ids, tmp_path / "c", feed="forced", phase="prefill", **kept
    )
    assert (labelled.map("phase") == 0).all()
    assert labelled.metadata["phase"] == "labelled prefill"
    assert labelled.notes[0]["prompt_tokens"] == 10


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_each_family_shows_what_its_routers_read(family: str) -> None:
    """In all but one it is what the experts get; docs/formats.md says so."""
    model = build(family)
    heard: list[Routed] = []
    given: list[torch.Tensor] = []
    handles = [
        module.register_forward_pre_hook(lambda _m, args: given.append(args[0].clone()))
        for module in experts_modules(model).values()
    ]
    with torch.no_grad(), listening(model, heard.append, "F32", "F32"):
        model(torch.tensor([[5, 6, 7, 8]]), use_cache=False)
    for handle in handles:
        handle.remove()
    (routed,) = heard
    top_k = 1 if family == "zaya" else 2
    assert routed.experts.shape == routed.gate_probs.shape == (4, len(handles), top_k)
    assert routed.gate_input is not None
    alike = np.array_equal(routed.gate_input, torch.stack(given, 1).numpy())
    assert alike == (family != "gemma4_text")
    assert routed.entering is not None
    assert routed.entering.shape[:2] == routed.experts.shape[:2]
    assert np.isfinite(routed.entering).all()


@pytest.mark.parametrize("family", ["gpt_oss", "deepseek_v3", "gemma4_text", "nemotron_h", "zaya", "jamba"])
def test_families_with_routers_of_their_own_kind(
    family: str, load: Callable[..., Any], tmp_path: Path
) -> None:
    build(family).save_pretrained(tmp_path / "model")
    prompts = [Prompt("x", "a:1"), Prompt("y", "a:2")]
    ids = [[5, 6, 7, 8, 9], [10, 11]]
    settings = {"name": "tiny", "tokens": 4, "hidden": "F32", "entering": "F32"}
    stock = load_stock(tmp_path / "model", dtype=torch.float32)
    offloaded = load(tmp_path / "model", slots="50%", exact=True)
    same(
        record(offloaded, prompts, ids, tmp_path / "a", **settings),
        record(stock, prompts, ids, tmp_path / "b", **settings),
    )


# Interruptions.


@contextmanager
def interrupt_at(model: Any, forwards: int) -> Iterator[None]:
    """Ctrl-C in the middle of the model's n-th forward pass."""
    left = [forwards]

    def hook(*_: Any) -> None:
        left[0] -= 1
        if left[0] == 0:
            signal.raise_signal(signal.SIGINT)

    handle = list(experts_modules(model).values())[5].register_forward_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def test_ctrl_c_loses_only_the_sequence_under_way(
    stock_reference: Any, fed: Any, expected: TraceReader, tmp_path: Path
) -> None:
    settings = {"name": "reference-moe", "tokens": 6, "hidden": "F32", "entering": "F32"}
    path = tmp_path / "t.safetensors"
    with pytest.raises(KeyboardInterrupt), interrupt_at(stock_reference, 1 + 8 + 4):
        record(stock_reference, *fed, path, **settings)
    assert os.listdir(tmp_path) == ["t.safetensors.partial"]
    with pytest.raises(TraceError, match="interrupted recording: resume it"):
        record(stock_reference, *fed, path, **settings)
    with pytest.raises(TraceError, match=r"other settings \(tokens_each\)"):
        record(stock_reference, *fed, path, **(settings | {"tokens": 7}), resume=True)
    with pytest.raises(TraceError, match=r"other settings \(other arrays\)"):
        record(stock_reference, *fed, path, **(settings | {"hidden": ""}), resume=True)
    other = [[*fed.ids[0][:-1], 7], *fed.ids[1:]]
    with pytest.raises(TraceError, match=r"other settings \(prompts\)"):
        record(stock_reference, fed.prompts, other, path, **settings, resume=True)
    told: list[tuple[int, int, int]] = []
    found = record(
        stock_reference, *fed, path, **settings, resume=True, progress=lambda *now: told.append(now)
    )
    same(found, expected)
    assert found.path.read_bytes() == expected.path.read_bytes()
    assert [now[:2] for now in told] == [(1, 3), (2, 3), (3, 3)]
    with pytest.raises(TraceError, match="exists already"):
        record(stock_reference, *fed, path, **settings, resume=True)


def test_a_full_disk_leaves_what_is_complete(
    stock_reference: Any, fed: Any, expected: TraceReader, tmp_path: Path
) -> None:
    path = tmp_path / "t.safetensors"
    settings = {"name": "reference-moe", "tokens": 6, "hidden": "F32", "entering": "F32"}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    row = 12 * 192 * 4  # bytes of gate_input, and of entering
    resource.setrlimit(resource.RLIMIT_FSIZE, (row * 25, hard))  # of 54 rows in three sequences
    try:
        with pytest.raises(WriteError, match=r"could not be written \(File too large\).*--resume"):
            record(stock_reference, *fed, path, **settings)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not path.exists()
    found = record(stock_reference, *fed, path, **settings, resume=True)
    assert found.path.read_bytes() == expected.path.read_bytes()


# What cannot be recorded.


def test_what_makes_no_sense_is_refused(stock_reference: Any, fed: Any, tmp_path: Path) -> None:
    path = tmp_path / "t"
    with pytest.raises(InvalidArgument, match="0 prompts"):
        record(stock_reference, [], [], path, name="m")
    for wrong in ({"feed": "guess"}, {"phase": "both"}, {"hidden": "F8"}, {"entering": "F8"}):
        with pytest.raises(InvalidArgument, match="no way to record"):
            record(stock_reference, *fed, path, name="m", **wrong)
    with pytest.raises(InvalidArgument, match="one type"):
        record(stock_reference, *fed, path, name="m", hidden="F16", entering="F32")
    path.write_text("kept")
    with pytest.raises(TraceError, match="exists already"):
        record(stock_reference, *fed, path, name="m")
    assert path.read_text() == "kept"


def test_values_beyond_float16_are_refused_and_kept_as_float32(tmp_path: Path) -> None:
    model = build("qwen3_moe")
    for layer in model.model.layers:
        layer.post_attention_layernorm.weight.data.fill_(1e5)
    fed = [Prompt("d", "p")], [[3, 4, 5]]
    with pytest.raises(UnsupportedModelError, match="--hidden-dtype f32"):
        record(model, *fed, tmp_path / "a", name="m", tokens=2, hidden="F16")
    found = record(model, *fed, tmp_path / "b", name="m", tokens=2, hidden="F32")
    assert found.map("gate_input").max() > 65504


def test_a_model_without_a_router_beside_its_experts_is_recorded_without_hidden_states(
    tmp_path: Path,
) -> None:
    model = build("qwen3_moe")

    class Block(torch.nn.Module):
        """The block under another name for its router."""

        def __init__(self, block: Any) -> None:
            super().__init__()
            self.chooser, self.experts = block.gate, block.experts

        def forward(self, hidden: torch.Tensor) -> torch.Tensor:
            flat = hidden.reshape(-1, hidden.shape[-1])
            _, weights, ids = self.chooser(flat)
            return self.experts(flat, ids, weights).reshape(hidden.shape)

    for layer in model.model.layers:
        layer.mlp = Block(layer.mlp)
    fed = [Prompt("d", "p")], [[3, 4, 5]]
    with pytest.raises(UnsupportedModelError, match="Record without hidden states"):
        record(model, *fed, tmp_path / "a", name="m", tokens=2, hidden="F16")
    assert record(model, *fed, tmp_path / "a", name="m", tokens=2).tokens == 5


def test_layers_that_run_twice_are_refused(tmp_path: Path) -> None:
    model = build("qwen3_moe")
    model.model.layers[1].mlp = model.model.layers[0].mlp
    model.model.layers[1].register_module("other", build("qwen3_moe").model.layers[1].mlp)
    fed = [Prompt("d", "p")], [[3, 4, 5]]
    with pytest.raises(UnsupportedModelError, match="ran out of turn"):
        record(model, *fed, tmp_path / "a", name="m", tokens=2)
    assert os.listdir(tmp_path) == []


def test_a_writer_that_is_discarded_leaves_nothing(tmp_path: Path) -> None:
    writer = TraceWriter(tmp_path / "t", model="m", layers=1, experts_per_layer=4, top_k=2, about={"a": "b"})
    writer.append([[[0, 1]]], gate_probs=[[[1.0, 0.0]]], token_id=[3], phase=[0])
    writer.discard()
    assert os.listdir(tmp_path) == []
