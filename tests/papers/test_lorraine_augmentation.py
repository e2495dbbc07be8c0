"""Learned augmentation: draws, and derivatives against finite differences and a torch loop."""

from dataclasses import replace

import numpy as np
import torch
from catalogue import gap
from torch import nn

import hgcore as hg
from hgcore import data, papers
from hgcore.papers import lorraine2020_augmentation as lorraine
from hgcore.papers.lorraine2020_nets import seeded


def convolution():
    return nn.Sequential(nn.Conv2d(3, 2, 3), nn.Tanh(), nn.Flatten(), nn.Linear(8, 10))


def setting(side=4, augmented=True, **changes):
    """Return (Augmentation of ten random images, hyper (6659,))."""
    backend, rng = hg.Torch(), np.random.default_rng(0)
    draws = (rng.standard_normal((10, 3, side, side)) for _ in range(2))
    train, valid = (data.Split(images, np.eye(10)).on(backend) for images in draws)
    (start, net), (hyper, augment) = (seeded(backend, m, 0) for m in (convolution, lorraine.UNet))
    fields = dict(optimizer=lorraine.Nesterov(0.1, 0.9), batch=5, every=3, seed=7, samples=3)
    black = backend.array(np.full((3, 1, 1), -2.0))
    nets = net, start, augment if augmented else None
    return lorraine.Augmentation(backend, *nets, train, valid, black, **fields | changes), hyper


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


def test_derivatives_equal_finite_differences():
    case, hyper = setting()
    report = hg.check(case.problem(1), hyper)
    assert report.ok, report


def test_training_in_parts_is_training():
    """Also when it is resumed."""
    case, given = setting(augmented=False)[0], dict(steps=3, every=3)
    first, _, last = papers.train_in_parts(case.problem, [0.0], **given)
    *_, again = papers.train_in_parts(case.problem, [0.0], **given, resume=first)
    whole = torch.cat(hg.train(replace(case.problem(0), steps=9), [0.0]))
    assert torch.equal(last.state, again.state) and torch.equal(last.state, whole)


def test_draws_have_addresses():
    """A step sees a picture in one way whenever it is asked for, another step in other ways."""
    case, hyper = setting(side=16)
    case.train.images[:] = case.train.images[0].clone()
    first, again, other = (case.inputs(hyper, t)[0] for t in (0, 0, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_crop_and_flip_moves_images():
    images = torch.arange(2.0, 26.0).reshape(1, 1, 4, 6).repeat(40, 1, 1, 1)
    moved = lorraine.crop_and_flip(images, 1, torch.full((1, 1, 1), -1.0), (0,))
    seen = {tuple(image.ravel().tolist()) for image in moved}
    padded = nn.functional.pad(images[:1], (1,) * 4, value=-1.0)[0, 0]
    crops = [padded[i : i + 4, j : j + 6] for i in range(3) for j in range(3)]
    crops += [crop.flip(1) for crop in crops]
    assert len(seen) > 9 and seen <= {tuple(crop.ravel().tolist()) for crop in crops}


def test_accuracy_averages_scores():
    """Of the clean image and five augmented ones."""
    case, hyper = setting()
    copies = case.copies(hyper, case.valid.images, 5, (lorraine.TEST, 7, 0))
    scores = sum(case.net(case.start, images) for images in (case.valid.images, *copies))
    expected = 1 - hg.nets.error_rate(scores, case.valid.labels)
    assert replace(case, batch=10).accuracies(case.start, hyper, [case.valid]) == [expected]


def test_pictures_are_standardized():
    """By the mean and deviation of the first split; black and white, too."""
    splits = [data.Split(np.random.default_rng(n).random((n, 784)), None) for n in (5, 4)]
    (train, valid), (black, white) = lorraine.pictures(splits, pool=2)
    assert np.allclose(train.images.mean((0, 2, 3)), 0) and np.allclose(train.images.std(), 1)
    squares = splits[1].images.reshape(4, 1, 14, 2, 14, 2).mean((3, 5))
    assert np.allclose(valid.images, black + squares * (white - black))
