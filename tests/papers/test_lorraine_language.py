"""The LSTM language model of Lorraine et al. (2020) and the hypergradients of its regularizers."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from catalogue import gap, unrolled

import hgcore as hg
from hgcore import papers
from hgcore.modules.draws import drawn_from
from hgcore.papers import lorraine2020_language as language
from hgcore.suite import resume, session

BACKEND, WORDS, UNITS, LENGTH, BATCH = hg.Torch(), 5, 2, 4, 3
START, NET = language.language_model(WORDS, UNITS, (0,))
START = BACKEND.array(5 * START)
SEVEN, MANY = (language.regularizers(UNITS, many) for many in (False, True))
RNG = np.random.default_rng(0)
HYPER = {7: RNG.normal(-1, 0.5, 7), MANY.size: RNG.normal(-1, 0.5, MANY.size)}
TRAIN, VALID = (
    language.windows(BACKEND, RNG.integers(WORDS, size=40), BATCH, LENGTH) for _ in range(2)
)


def tuned(layout, **settings):
    """Return k -> Problem of tiny batches, with `settings` of the Problem."""
    given = dict(optimizer=hg.GradientDescent(3.0, clip=0.25), seed=0)
    at = language.language_problem(BACKEND, NET, START, layout, TRAIN, VALID, **given)
    return lambda k: replace(at(k), **settings)


def test_counts_are_the_papers():
    with torch.device("meta"):
        module = language.LanguageModel(10_000, 650)
    assert sum(p.numel() for p in module.parameters()) == 13_280_400
    assert language.regularizers(650, many=True).size == 1_691_951
    assert language.regularizers(650).size == 7


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


def test_loss_is_that_written_out():
    weights, hyper = START + 0.1, BACKEND.array(HYPER[7])
    args = weights, hyper, TRAIN(1), (0, 1)
    assert gap(language.training_loss(NET, SEVEN, *args), written_out(*args)) < 1e-12


@pytest.mark.parametrize("layout", [SEVEN, MANY], ids=["seven", "many"])
def test_reverse_equals_the_unrolled_loop(layout):
    problem, hyper = tuned(layout, steps=3)(0), BACKEND.array(HYPER[layout.size])
    found = hg.Reverse()(problem, hyper)
    if layout is SEVEN:  # by other code, too
        loss = lambda w, h, t: written_out(w, h, TRAIN(t), (0, t))  # noqa: E731
        problem = replace(problem, inner_loss=loss)
    value, grad = unrolled(problem, hyper)
    assert gap(found.value, value) < 1e-10 and gap(found.grad, grad) < 1e-8


def test_implicit_equals_differences_of_the_minimum():
    """1e-4; an L2 penalty makes the minimum a point."""
    problem, hyper = tuned(MANY)(0), BACKEND.array(HYPER[MANY.size])
    loss = problem.inner_loss

    def penalized(weights, hyper, t):
        return loss(weights, hyper, None) + 0.01 * weights @ weights

    def minimum(hyper, near, newton):
        case = replace(problem, initial=lambda h: near)
        return papers.newton_minimum(case, hyper, newton)[0]

    problem = replace(problem, inner_loss=penalized)
    near = hg.train(replace(problem, optimizer=hg.Adam(0.1), steps=300), hyper)[0]
    best, way = minimum(hyper, near, 4), BACKEND.array(RNG.normal(size=MANY.size))
    slope = problem.objective(hyper).gradient(best, None)
    assert float(slope @ slope) < 1e-20
    grad = hg.Implicit(hg.DenseSolve())(problem, hyper, (best,)).grad
    up, down = (problem.outer_loss(minimum(hyper + e * way, best, 2), hyper) for e in (1e-4, -1e-4))
    assert float(grad @ way) == pytest.approx(float(up - down) / 2e-4, rel=1e-4)


def test_rates_of_all_units_add_up():
    """To the single ones."""
    blocks = dict(zip(SEVEN.shapes, HYPER[7], strict=True)) | {"activation": -80, "temporal": -80}
    spread = {name: np.full(shape, blocks[name]) for name, shape in MANY.shapes.items()}
    each, single = (
        hg.Reverse()(tuned(layout, steps=3)(0), layout.join(part))
        for layout, part in ((MANY, spread), (SEVEN, blocks))
    )
    assert gap(each.value, single.value) < 1e-12
    assert gap(MANY.sums(each.grad), single.grad[:5]) < 1e-10


def test_rates_have_their_share_of_zeros():
    """And keep the mean; the same for all words of a sequence."""
    with drawn_from((0,)):
        masked = language.dropped(
            torch.ones(7, 300, 100), torch.logit(torch.tensor(0.3)), (1, 300, 100)
        )
    assert float((masked < 0.5).float().mean()) == pytest.approx(0.3, abs=0.02)
    assert float(masked.mean()) == pytest.approx(1, abs=0.02)
    assert bool((masked == masked[:1]).all())


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
    with pytest.raises(ValueError, match="no window of 2 x 20"):
        language.windows(BACKEND, text, 2, 20)


def test_generated_texts_are_one_chain():
    """Whose words are not evenly spread; the same for one seed."""
    parts, again = (language.generated_text(12, [3000, 40], (seed,)) for seed in (1, 1))
    assert [len(part) for part in parts] == [3000, 40] and np.array_equal(parts[0], again[0])
    pairs = np.zeros((12, 12))
    np.add.at(pairs, (parts[0][:-1], parts[0][1:]), 1)
    shares = pairs.max(axis=1) / pairs.sum(axis=1)
    assert 2 / 12 < np.median(shares) < 0.9
    assert not np.array_equal(parts[1], language.generated_text(12, [3000, 40], (2,))[1])


def test_a_killed_run_goes_on(tmp_path, monkeypatch):
    """With the same bits."""
    monkeypatch.setattr(resume, "PAUSE", 0)
    monkeypatch.setenv("HGCORE_OUT", str(tmp_path))
    name = "lorraine2020/table4_lstm"
    run = session.start(name, "quick", "torch", "cpu", 0, {}, quick={"steps": 5})
    settings = dict(optimizer=hg.Adam(0.1), steps=6, every=2)

    def loop(kept):
        solver = hg.Implicit(hg.Identity())
        return hg.alternate(solver, tuned(SEVEN), HYPER[7], **settings, resume=kept)

    def measure(step, killed_at=None):
        if step.k == killed_at:
            raise KeyboardInterrupt
        return float(step.value), *step.updated.tolist()

    expected = [measure(step) for step in loop(None)]
    with pytest.raises(KeyboardInterrupt):
        resume.resumable(run, "seven", loop, lambda step: measure(step, 3))
    assert resume.resumable(run, "seven", loop, measure)[0].tolist() == list(map(list, expected))
