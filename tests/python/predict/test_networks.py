"""Both designs: what they say depends on what the routers had said by then, and on nothing else."""

import numpy as np
import pytest
import torch
from predict_networks import bank, paper
from predict_routes import LAYERS, scrambled, stream

from prophet_moe.predict.features import Rows
from prophet_moe.predict.outputs import outputs

NETWORKS = {
    "bank": lambda: bank(),
    "bank without a middle": lambda: bank(mid=False, recent=((0, "gate"), (1, "count"))),
    "bank, hidden and history": lambda: bank(hidden=6),
    "bank, hidden alone": lambda: bank(hidden=6, history=False),
    "transformer": lambda: paper(),
    "transformer, hidden and history": lambda: paper(hidden=6),
    "transformer, hidden alone": lambda: paper(hidden=6, history=False),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_scrambling_the_future_changes_nothing_said_before(name):
    net, s = NETWORKS[name](), stream(40, hidden=6)
    said = outputs(net, Rows(s, net.config.decays), exact=True)
    for token, layer in ((12, 0), (12, 2), (25, 3)):
        other = outputs(net, Rows(scrambled(s, token, layer), net.config.decays), exact=True)
        assert (said.use[:token] == other.use[:token]).all()
        assert (said.use[token, : layer + 1] == other.use[token, : layer + 1]).all()
        assert (said.use[token + 1 :] != other.use[token + 1 :]).any()
        assert (said.ahead[:, :token] == other.ahead[:, :token]).all()
        for f in range(len(said.ahead)):
            sources_spoken = slice(0, min(layer + f + 2, LAYERS))
            assert (said.ahead[f, token, sources_spoken] == other.ahead[f, token, sources_spoken]).all()


@pytest.mark.parametrize("name", NETWORKS)
def test_windows_of_any_length_say_the_same(name):
    net, s = NETWORKS[name](), stream(37, hidden=6)
    rows = Rows(s, net.config.decays)
    whole = outputs(net, rows, tokens=36, exact=True)
    parts = outputs(net, rows, tokens=5, windows=3, exact=True)
    for a, b in ((whole.use, parts.use), (whole.ahead, parts.ahead)):
        finite = np.isfinite(a)
        assert (finite == np.isfinite(b)).all()
        np.testing.assert_allclose(a[finite].astype(float), b[finite].astype(float), rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_span_of_layers_says_what_all_layers_say(name):
    net, s = NETWORKS[name](), stream(30, hidden=6)
    rows = Rows(s, net.config.decays)
    first = torch.tensor([3, 11])
    with torch.no_grad():
        use, ahead = net(rows, first, 6)
        part, later = net(rows, first, 6, slice(1, 3))
    torch.testing.assert_close(part, use[1:3], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(later[0][0], ahead[0][1], rtol=1e-4, atol=1e-4)


def test_the_paper_looks_at_its_context_alone():
    net, s = paper(context=2), stream(20)
    other = scrambled(s, 9, LAYERS - 1)
    experts = s.experts.copy()
    experts[:, 0] = other.experts[:, 0]
    changed = type(s)(experts, s.gate, s.starts, s.experts_per_layer)
    a, b = (
        net.states(Rows(x, net.config.decays), torch.arange(20), range(LAYERS)).detach() for x in (s, changed)
    )
    assert torch.equal(a[2:], b[2:])
    assert not torch.equal(a[1], b[1])
