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
SEVEN, MANY = (language.regularizers(UNITS, many) for many in (False, True))
RNG = np.random.default_rng(0)
HYPER = {7: RNG.normal(-1, 0.5, 7), MANY.size: RNG.normal(-1, 0.5, MANY.size)}
TRAIN, VALID = (
    language.windows(BACKEND, RNG.integers(WORDS, size=40), BATCH, LENGTH) for _ in range(2)
)


def problem(layout):
    """Return training on three tiny batches."""
    given = dict(optimizer=hg.GradientDescent(3.0, clip=0.25), seed=0)
    at = language.language_problem(BACKEND, NET, START, layout, TRAIN, VALID, **given)
    return replace(at(0), steps=3)


def written_out(weights, hyper, batch, seed):
    """Return `training_loss` of seven regularizers, cell by cell, from the same random numbers."""
    p, h = NET.layout.split(weights), SEVEN.split(hyper)
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
    loss = loss + torch.exp(h["activation"]) * (signal**2).mean()
    return loss + torch.exp(h["temporal"]) * ((output[1:] - output[:-1]) ** 2).mean()


def test_reverse_equals_the_unrolled_loop():
    """Whose loss is that of other code."""
    hyper, found = BACKEND.array(HYPER[7]), hg.Reverse()(problem(SEVEN), HYPER[7])
    loss = lambda w, h, t: written_out(w, h, TRAIN(t), (0, t))  # noqa: E731
    value, grad = unrolled(replace(problem(SEVEN), inner_loss=loss), hyper)
    assert gap(found.value, value) < 1e-10 and gap(found.grad, grad) < 1e-8


def test_derivatives_equal_finite_differences():
    report = hg.check(problem(MANY), HYPER[MANY.size])
    assert report.ok, report


def test_rates_of_units_may_be_equal():
    blocks = dict(zip(SEVEN.shapes, HYPER[7], strict=True)) | {"activation": -80, "temporal": -80}
    spread = {name: np.full(shape, blocks[name]) for name, shape in MANY.shapes.items()}
    one, each = (
        float(problem(layout).inner_loss(START, BACKEND.array(layout.join(part)), 0))
        for layout, part in ((SEVEN, blocks), (MANY, spread))
    )
    assert one == pytest.approx(each, rel=1e-12)


def test_windows_cover_the_text():
    """In columns; perplexity carries the states over them."""
    window = language.windows(BACKEND, np.arange(20), 2, 3)
    words, targets = window(1)
    assert window.count == 3 and words.tolist() == [[3, 13], [4, 14], [5, 15]]
    assert targets.tolist() == [4, 14, 5, 15, 6, 16]
    assert window(4)[0].tolist() == words.tolist()
    text = RNG.integers(WORDS, size=40)
    short, whole = (language.windows(BACKEND, text, 2, n) for n in (3, 18))
    found, expected = (language.perplexity(NET, START, each) for each in (short, whole))
    assert found == pytest.approx(expected, rel=1e-12)
