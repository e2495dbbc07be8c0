"""The LSTM language model of Lorraine et al. (2020) and the hypergradients of its regularizers."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from catalogue import gap, unrolled

import hgcore as hg
from hgcore.modules.draws import drawn_from
from hgcore.papers import lorraine2020_language as language

BACKEND, WORDS, UNITS, LENGTH, BATCH = hg.Torch(), 5, 2, 4, 3
START, NET = language.language_model(WORDS, UNITS, (0,))
START = BACKEND.array(5 * START)
LAYOUTS = {name: language.regularizers(UNITS, name == "many") for name in ("seven", "many")}
RNG = np.random.default_rng(0)
TRAIN, VALID = (
    language.windows(BACKEND, RNG.integers(WORDS, size=40), BATCH, LENGTH) for _ in range(2)
)


def written_out(layout, weights, hyper, batch, seed):
    """Return `training_loss`, cell by cell, from the same random numbers."""
    p, h = NET.layout.split(weights), layout.split(hyper)
    words, targets = batch

    def mask(name, *shape):
        u, rate = torch.rand(shape, dtype=weights.dtype), 1 / (1 + torch.exp(-h[name]))
        odds = torch.log(rate / (1 - rate)) + torch.log(u / (1 - u))
        return (1 - torch.sigmoid(odds / 0.1)) / (1 - rate)

    def lstm(name, signal):
        recurrent = p[f"{name}.weight_hh_l0"] * mask("connections", 4 * UNITS, UNITS)
        state, cell, outputs = 2 * [torch.zeros(BATCH, UNITS, dtype=weights.dtype)] + [[]]
        for x in signal:
            gates = x @ p[f"{name}.weight_ih_l0"].T + p[f"{name}.bias_ih_l0"]
            gates = (gates + state @ recurrent.T + p[f"{name}.bias_hh_l0"]).chunk(4, 1)
            into, forget, out = (torch.sigmoid(gates[i]) for i in (0, 1, 3))
            cell = forget * cell + into * torch.tanh(gates[2])
            outputs.append(state := out * torch.tanh(cell))
        return torch.stack(outputs)

    with drawn_from(seed):
        signal = (p["embeddings"] * mask("embedding", WORDS, 1))[words]
        signal = signal * mask("input", 1, BATCH, UNITS)
        signal = lstm("first", signal) * mask("hidden", 1, BATCH, UNITS)
        output = lstm("second", signal)
        signal = output * mask("output", 1, BATCH, UNITS)
    scores = (signal @ p["embeddings"].T + p["bias"]).reshape(-1, WORDS)
    loss = torch.nn.functional.cross_entropy(scores, targets)
    if "activation" in h:
        loss = loss + torch.exp(h["activation"]) * (signal**2).mean()
        loss = loss + torch.exp(h["temporal"]) * ((output[1:] - output[:-1]) ** 2).mean()
    return loss


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_reverse_equals_the_unrolled_loop(layout):
    """The unrolled loop uses the loss that this file writes out; outer_loss is left to hg.check."""
    given = dict(optimizer=hg.GradientDescent(3.0, clip=0.25), seed=0)
    at = language.language_problem(BACKEND, NET, START, layout, TRAIN, VALID, **given)
    problem = replace(at(0), steps=3)
    hyper = BACKEND.array(np.random.default_rng(1).normal(-1, 0.5, layout.size))
    assert hg.check(problem, hyper).ok
    loss = lambda w, h, t: written_out(layout, w, h, TRAIN(t), (0, t))  # noqa: E731
    value, grad = unrolled(replace(problem, inner_loss=loss), hyper)
    found = hg.Reverse()(problem, hyper)
    assert gap(found.value, value) < 1e-10 and gap(found.grad, grad) < 1e-8


def test_windows_cover_the_text():
    """In columns; perplexity carries the states over them."""
    window = language.windows(BACKEND, np.arange(20), 2, 3)
    words, targets = window(1)
    assert window.count == 3 and words.tolist() == [[3, 13], [4, 14], [5, 15]]
    assert targets.tolist() == [4, 14, 5, 15, 6, 16]
    assert window(4)[0].tolist() == words.tolist()
    text = np.random.default_rng(2).integers(WORDS, size=40)
    short, whole = (language.windows(BACKEND, text, 2, n) for n in (3, 18))
    found, expected = (language.perplexity(NET, START, each) for each in (short, whole))
    assert found == pytest.approx(expected, rel=1e-12)
