"""Averages, gaps and windows against the plain definition."""

import numpy as np
import pytest
import torch
from predict_routes import EXPERTS, LAYERS, TOP_K, stream

from prophet_moe.errors import InvalidArgument
from prophet_moe.predict.features import FAR, Rows, Stream, averages, gaps


def test_an_average_is_the_decayed_sum_of_its_past():
    s = stream(60)
    got = averages(s, (0.5, 0.9)).astype(np.float64)
    chosen = s.selected().astype(np.float64)
    for d, decay in enumerate((0.5, 0.9)):
        for t in (0, 1, 59):
            weights = (1 - decay) * decay ** np.arange(t, -1, -1)
            want = decay ** (t + 1) * TOP_K / EXPERTS + np.tensordot(weights, chosen[: t + 1], 1)
            np.testing.assert_allclose(got[t, :, d], want, atol=1e-3)


def test_a_gap_counts_the_turns_to_the_next_use():
    s = stream(80)
    got, chosen = gaps(s), s.selected()
    for t in range(0, 80, 7):
        for layer in range(LAYERS):
            for e in range(EXPERTS):
                later = np.flatnonzero(chosen[t + 1 :, layer, e])
                assert got[t, layer, e] == (later[0] + 1 if len(later) else FAR)


def test_rows_normalise_gates_and_read_nothing_before_the_first():
    rows = Rows(stream(30), (0.5,))
    np.testing.assert_allclose(rows.gate.float().sum(2), TOP_K, atol=5e-3)
    assert torch.equal(rows.at(rows.chosen, torch.tensor([-1, 0]))[0], torch.zeros(LAYERS, EXPERTS))


def test_gates_that_sum_to_nothing_count_one_each():
    s = stream(3)
    rows = Rows(Stream(s.experts, s.gate * 0, s.starts, EXPERTS), (0.5,))
    assert torch.equal(rows.gate.float(), rows.chosen.float())


def test_a_stream_refuses_what_is_not_a_routing():
    s = stream(10)
    with pytest.raises(InvalidArgument, match=r"outside 0\.\.7"):
        Stream(s.experts + 5, s.gate, s.starts, EXPERTS)
    with pytest.raises(InvalidArgument, match="not finite"):
        Stream(s.experts, s.gate * np.nan, s.starts, EXPERTS)
    with pytest.raises(InvalidArgument, match="must both be"):
        Stream(s.experts, s.gate[:, :2], s.starts, EXPERTS)
