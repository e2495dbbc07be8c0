"""Learned augmentation: counts, draws, derivatives against finite differences and a torch loop."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from catalogue import gap
from torch import nn

import hgcore as hg
from hgcore import data, papers
from hgcore.fixed_point import round_decay
from hgcore.papers import lorraine2020_augmentation as lorraine
from hgcore.papers.lorraine2020_nets import seeded

SOLVERS = {
    "identity": hg.Implicit(hg.Identity(0.1)),
    "Neumann": hg.Implicit(hg.Neumann(3, 0.1, growth=np.inf)),
    "unrolled": hg.Reverse(hg.Truncated(3)),
}


def convolution():
    return nn.Sequential(nn.Conv2d(3, 2, 3), nn.Tanh(), nn.Flatten(), nn.Linear(8, 3))


def setting(make=convolution, side=4, augmented=True, dtype="float64", **changes):
    """Return (Augmentation of ten random images, hyper (6659,))."""
    backend, rng = hg.Torch(dtype=dtype), np.random.default_rng(0)
    labels = np.eye(3)[np.arange(10) % 3]
    train, valid = (
        data.Split(rng.standard_normal((10, 3, side, side)), labels).on(backend) for _ in range(2)
    )
    (start, net), (hyper, augment) = (seeded(backend, m, 0) for m in (make, lorraine.UNet))
    fields = dict(optimizer=lorraine.Nesterov(0.1, 0.9), batch=5, every=3, seed=7, samples=3)
    black = backend.array(np.full((3, 1, 1), -2.0))
    nets = net, start, augment if augmented else None
    return lorraine.Augmentation(backend, *nets, train, valid, black, **fields | changes), hyper


def test_numbers_of_weights():
    """Of the paper's U-net, and of ResNet18 for CIFAR-10."""
    sizes = [len(hg.nets.functional(make())[0]) for make in (lorraine.UNet, lorraine.resnet18)]
    assert sizes == [6659, 11_173_962]


def test_training_equals_torch_sgd():
    """With Nesterov's momentum, weight decay and a falling rate; 1e-4 for decays of 2**-16."""
    rate = lorraine.falling(0.1, [3, 5])
    case, hyper = setting(augmented=False, optimizer=lorraine.Nesterov(rate, 0.9))
    w = case.start.clone().requires_grad_()
    theirs = torch.optim.SGD([w], 0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
    falls = torch.optim.lr_scheduler.MultiStepLR(theirs, [3, 5], 0.2)
    for t in range(7):
        images, labels = case.inputs(hyper, t)
        theirs.zero_grad()
        nn.functional.cross_entropy(case.net(w, images), labels).backward()
        theirs.step()
        falls.step()
    ours = hg.train(replace(case.problem(0), steps=7), hyper)[0]
    assert gap(ours, w.detach()) < 1e-4 and not case.optimizer.reversible


def unrolled(problem, hyper, state, steps):
    """Return the hypergradient of a torch loop from a constant state on."""
    hyper, (w, v) = hyper.clone().requires_grad_(), state
    w, decay = w.requires_grad_(), round_decay(0.9)
    for t in steps:
        (g,) = torch.autograd.grad(problem.inner_loss(w, hyper, t), w, create_graph=True)
        v = decay * v + g
        w = w - 0.1 * (g + decay * v)
    return torch.autograd.grad(problem.outer_loss(w, hyper), hyper)[0]


@pytest.mark.parametrize("make, side", [(convolution, 4), (lambda: lorraine.resnet18(1), 8)])
def test_reverse_equals_a_torch_loop(make, side):
    case, hyper = setting(make, side)
    if side == 8:  # ResNet18 has ten classes
        more = {"train": case.train, "valid": case.valid}
        wide = {k: x._replace(labels=nn.functional.pad(x.labels, (0, 7))) for k, x in more.items()}
        case = replace(case, **wide)
    start = case.problem(0).initial_state(hyper)
    found = hg.Reverse()(case.problem(0), hyper).grad
    assert gap(found, unrolled(case.problem(0), hyper, start, range(3))) < 1e-8
    still = {"optimizer": hg.GradientDescent(0.0), "steps": 2, "every": 3}
    _, second = hg.alternate(SOLVERS["unrolled"], case.problem, hyper, **still)
    state = hg.train(case.problem(0), hyper, start, range(3))
    assert gap(second.grad, unrolled(case.problem(1), hyper, state, range(3, 6))) < 1e-8


def newton(problem, hyper, weights):
    """Return the minimum of the inner loss near `weights`."""
    for _ in range(4):
        now = problem.objective(hyper).linearize(weights, None)
        weights = weights - hg.DenseSolve()(now.hvp, now.gradient)
    return weights


def test_implicit_equals_finite_differences():
    """Of the outer loss at the converged weights, along random directions and for one weight."""
    case, hyper = setting(weight_decay=0.1, batch=10)
    whole = case.problem(0)
    fixed = replace(
        whole,
        inner_loss=lambda w, h, t: whole.inner_loss(w, h, None),
        optimizer=hg.HeavyBall(0.2, 0.9),
        steps=300,
    )
    best = newton(fixed, hyper, hg.train(fixed, hyper)[0])
    grad = hg.Implicit(hg.DenseSolve())(fixed, hyper, (best, 0 * best)).grad
    rng = np.random.default_rng(1)
    directions = [torch.as_tensor(rng.standard_normal(len(hyper))) for _ in range(3)]
    directions.append((grad.abs() == grad.abs().max()).to(grad))
    for direction in directions:
        values = []
        for step in (1e-7, -1e-7):  # short, because ReLUs have kinks
            moved = hyper + step * direction
            values.append(float(fixed.outer_loss(newton(fixed, moved, best), moved)))
        assert gap((values[0] - values[1]) / 2e-7, grad @ direction) < 1e-4


@pytest.mark.parametrize("name", [*SOLVERS, "none"])
def test_resumed_gives_the_same_bits(name, tmp_path):
    """After a step that was written to disk and read again."""
    case, hyper = setting(augmented=name != "none", dtype="float32")
    hyper = hyper if case.augment else [0.0]

    def loop(resume=None):
        if case.augment is None:
            return papers.train_in_parts(case.problem, hyper, steps=3, every=3, resume=resume)
        given = {"optimizer": lorraine.Nesterov(0.1, 0.9), "steps": 3, "every": 3}
        return hg.alternate(SOLVERS[name], case.problem, hyper, **given, resume=resume)

    first, _, last = loop()
    hg.save(tmp_path / "step.npz", first)
    *_, again = loop(hg.load(tmp_path / "step.npz", case.backend))
    pairs = [(last.state, again.state), (last.updated, again.updated)]
    assert all(torch.equal(a, b) for a, b in pairs) and not torch.equal(first.state, last.state)


def test_draws_have_addresses():
    """A step sees the same images whenever it is asked for, another step others."""
    case, hyper = setting(side=16)
    first, again, other = (case.inputs(hyper, t)[0] for t in (0, 0, 2))  # 0 and 2: two epochs
    assert torch.equal(first, again) and not torch.equal(first, other)
    copies = case.copies(hyper, case.valid.images, 2, (1, 2))
    assert copies.shape == (2, 10, 3, 16, 16) and not torch.equal(*copies)


def test_crop_and_flip_moves_images():
    images = torch.arange(2.0, 26.0).reshape(1, 1, 4, 6).repeat(40, 1, 1, 1)
    moved = lorraine.crop_and_flip(images, 1, torch.full((1, 1, 1), -1.0), (0,))
    seen = {tuple(image.ravel().tolist()) for image in moved}
    padded = nn.functional.pad(images[:1], (1,) * 4, value=-1.0)[0, 0]
    crops = [padded[i : i + 4, j : j + 6] for i in range(3) for j in range(3)]
    crops += [crop.flip(1) for crop in crops]
    assert len(seen) > 9 and seen <= {tuple(crop.ravel().tolist()) for crop in crops}


def test_accuracy_averages_scores():
    """Of the clean image and five augmented ones; batch statistics are those of training."""
    case, hyper = setting()
    scores = case.net(case.start, case.valid.images)
    copies = case.copies(hyper, case.valid.images, 5, (lorraine.TEST, 7, 0))
    scores = (scores + sum(case.net(case.start, copy) for copy in copies)) / 6
    expected = 1 - hg.nets.error_rate(scores, case.valid.labels)
    assert replace(case, batch=10).accuracies(case.start, hyper, [case.valid]) == [expected]


def test_pictures_are_standardized():
    rng = np.random.default_rng(0)
    splits = [data.Split(rng.random((n, 784)), np.eye(10)[:n]) for n in (5, 4)]
    (train, valid), ends = lorraine.pictures(splits, pool=2)
    assert train.images.shape == (5, 3, 14, 14) and valid.images.shape == (4, 3, 14, 14)
    assert np.allclose(train.images.mean((0, 2, 3)), 0) and np.allclose(train.images.std(), 1)
    square = splits[1].images[1].reshape(28, 28)[2:4, 6:8].mean()
    raw = [split.images.reshape(-1, 14, 2, 14, 2).mean((2, 4)) for split in splits]
    assert valid.images[1, 2, 1, 3] == pytest.approx((square - raw[0].mean()) / raw[0].std())
    assert ends.shape == (2, 3, 1, 1)
    assert ends[:, 0, 0, 0] == pytest.approx((np.arange(2) - raw[0].mean()) / raw[0].std())
