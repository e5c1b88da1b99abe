"""Training: it learns, stops, goes on after a stop as if there had been none, and refuses what is broken."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from predict_networks import bank, paper
from predict_routes import EXPERTS, LAYERS, TOP_K, stream

from prophet_moe.errors import InvalidArgument, StateError
from prophet_moe.predict.bank import Bank, BankConfig
from prophet_moe.predict.features import Rows
from prophet_moe.predict.train import Recipe, losses, train, validate

SMALL = Recipe(steps=40, windows=8, tokens=6, span=3, warm=5, head_weights=(3, 2, 2), every=10, average=0.9)


@pytest.fixture(scope="module")
def parts():
    decays = (0.5, 0.8, 0.95)
    return Rows(stream(1500, 1), decays), Rows(stream(400, 2), decays)


def fresh(seed=0):
    torch.manual_seed(seed)
    config = BankConfig(LAYERS, EXPERTS, TOP_K, 24, (0.5, 0.8, 0.95), (1, 2), heads=(1, 3, 8), ahead=2)
    return Bank(config)


def state(net):
    return {k: v.clone() for k, v in net.state_dict().items()}


def test_losses_are_cross_entropies_of_the_labels(parts):
    rows, net = parts[0], bank()
    first = torch.tensor([2, 50])
    with torch.no_grad():
        heads, ahead = losses(net, rows, first, 5, slice(1, 4))
        use, later = net(rows, first, 5, slice(1, 4))
    want = np.zeros(3)
    for n, h in enumerate((1, 3, 8)):
        p = torch.sigmoid(use[:, :, :, n]).numpy()
        for b, a in enumerate((2, 50)):
            for t in range(5):
                y = (rows.gap[a + t, 1:4] <= h).numpy()
                want[n] -= np.where(y, np.log(p[:, b, t]), np.log1p(-p[:, b, t])).mean() / 10
    np.testing.assert_allclose(heads, want, rtol=0.02)
    p = torch.sigmoid(later[0]).numpy()
    y = np.stack([rows.chosen[a + 1 : a + 5, 2:4].numpy().transpose(1, 0, 2) for a in (2, 50)], 1)
    np.testing.assert_allclose(ahead[0], -np.where(y, np.log(p), np.log1p(-p)).mean(), rtol=0.02)


def test_it_learns_more_than_frequencies(parts):
    rows, held_out = parts
    net = fresh()
    before, _ = validate(net, held_out)
    result = train(net, rows, held_out, replace(SMALL, steps=250, rate=5e-3))
    after, ahead_after = validate(net, held_out)
    share = rows.chosen.float().mean(0)
    truth = held_out.chosen.float()
    static = float(torch.nn.functional.binary_cross_entropy(share.expand_as(truth), truth))
    assert after[0] < before[0]
    assert after[0] < 0.97 * static
    assert ahead_after[0] < 0.85 * static
    assert not net.training
    assert result.history[-1]["step"] == 250
    assert result.best == pytest.approx(min(entry["loss"] for entry in result.history))


@pytest.mark.parametrize(
    "make", [fresh, lambda: paper(decays=(0.5, 0.8, 0.95)).train()], ids=["bank", "transformer"]
)
def test_a_stopped_run_goes_on_as_if_it_had_not(parts, tmp_path, make):
    torch.manual_seed(0)
    whole, stopped = make(), make()
    stopped.load_state_dict(whole.state_dict())
    train(whole, *parts, SMALL)
    path = tmp_path / "run.ckpt"

    class Stop(Exception):
        pass

    def interrupt(step):
        if step.step == 20:
            raise Stop

    with pytest.raises(Stop):
        train(stopped, *parts, SMALL, interrupt, path)
    again = make()
    seen = []
    train(again, *parts, SMALL, lambda step: seen.append(step.step), path)
    assert seen == list(range(21, 41))
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], value, rtol=0, atol=0)


def test_the_same_seed_gives_the_same_weights(parts):
    nets = [fresh() for _ in range(3)]
    for net, seed in zip(nets, (7, 7, 8), strict=True):
        train(net, *parts, replace(SMALL, steps=10, seed=seed))
    a, b, c = (state(net)["enter"] for net in nets)
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


def test_stops_when_nothing_gets_better(parts):
    result = train(fresh(), *parts, replace(SMALL, steps=400, every=2, rate=0.0, patience=3))
    assert result.steps == 2 * (1 + 3)


def test_stops_when_the_time_is_up(parts):
    result = train(fresh(), *parts, replace(SMALL, steps=10_000, seconds=0.0))
    assert result.steps == 1
    assert result.history


def test_a_loss_that_is_not_finite_is_refused_and_the_best_weights_stay(parts):
    rows, held_out = parts
    net, kept = fresh(), {}

    def poison(step):
        if step.step == 10:
            kept.update(step=step.validated)
        if step.step == 12:
            net.enter.data[:] = math.nan

    with pytest.raises(StateError, match="loss of step 13 is not finite; lower the learning rate"):
        train(net, rows, held_out, SMALL, poison)
    assert all(bool(torch.isfinite(v).all()) for v in net.state_dict().values())
    assert kept["step"] is not None


def test_refuses_foreign_checkpoints_and_short_traces(parts, tmp_path):
    path = tmp_path / "run.ckpt"
    train(fresh(), *parts, replace(SMALL, steps=10), None, path)
    with pytest.raises(InvalidArgument, match="another network, recipe or trace"):
        train(fresh(), *parts, replace(SMALL, steps=20), None, path)
    path.write_bytes(b"no checkpoint")
    with pytest.raises(InvalidArgument, match="is no checkpoint"):
        train(fresh(), *parts, SMALL, None, path)
    with pytest.raises(InvalidArgument, match="fewer than one window"):
        train(fresh(), Rows(stream(5), (0.5, 0.8, 0.95)), parts[1], SMALL)
    with pytest.raises(InvalidArgument, match="2 head weights given for 3 heads"):
        train(fresh(), *parts, replace(SMALL, head_weights=(1, 1)))
    unlabelled = Rows(stream(100), (0.5, 0.8, 0.95), labels=False)
    with pytest.raises(InvalidArgument, match="without labels"):
        train(fresh(), unlabelled, parts[1], SMALL)
