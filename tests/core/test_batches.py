"""Batches by the number of a step: replayed, drawn again, converted."""

import pickle
import random
from collections import namedtuple

import numpy as np
import pytest
import torch
from torch.utils import data

import hgcore as hg
from hgcore.modules.draws import generators

draw, keep = hg.batches.draw, hg.batches.keep
INPUTS, LABELS = torch.arange(10.0), torch.arange(10)
Batch = namedtuple("Batch", "inputs names")


class Augmented(data.Dataset):
    def __len__(self):
        return 10

    def __getitem__(self, i):
        noise = float(torch.rand(())) + random.random() + np.random.rand()
        return {"inputs": INPUTS[i] + noise, "labels": LABELS[i]}


def loader(**options):
    return data.DataLoader(Augmented(), 4, **options)


def test_kept_batches_come_again():
    kept = keep(loader(shuffle=True))
    assert torch.equal(kept(1)["inputs"], kept(4)["inputs"])
    assert sorted(kept(None)["labels"].tolist()) == list(range(10))
    assert keep([Batch(INPUTS.numpy(), LABELS)] * 2)(None).inputs.shape == (20,)


@pytest.mark.parametrize("shuffle", [True, False])
def test_drawn_batches_are_those_of_their_address(shuffle):
    """Each epoch holds every example, augmented anew; generators are not disturbed."""
    drawn, before = draw(loader(shuffle=shuffle), seed=3), generators(INPUTS)
    batches = [drawn(t) for t in range(6)]
    assert before == generators(INPUTS)
    assert all(torch.equal(drawn(t)["inputs"], batches[t]["inputs"]) for t in (5, 0, 2))
    assert not torch.equal(batches[0]["inputs"], batches[3]["inputs"])  # of two epochs
    epochs = [torch.cat([b["labels"] for b in batches[i : i + 3]]) for i in (0, 3)]
    assert all(sorted(epoch.tolist()) == list(range(10)) for epoch in epochs)
    assert torch.equal(*epochs) != shuffle
    assert drawn(None)["labels"].tolist() == list(range(10))


@pytest.mark.parametrize("way", [draw, keep])
def test_batches_are_converted_and_pickled(way):
    batch = way(loader(), backend=hg.Torch())
    kinds = {name: part.dtype for name, part in batch(0).items()}
    assert kinds == {"inputs": torch.float64, "labels": torch.int64}
    assert torch.equal(pickle.loads(pickle.dumps(batch))(1)["inputs"], batch(1)["inputs"])


def mixed(examples):
    inputs = torch.stack([example["inputs"] for example in examples])
    return Batch(inputs + np.random.beta(1.0, 1.0) * inputs.flip(0), ["name"] * len(examples))


def test_drawn_batches_of_other_kinds():
    """Arrays, dropped rests, fewer examples than a batch, draws in collate_fn, large seeds."""
    inputs, labels = draw((INPUTS.numpy(), LABELS), size=4)(2)
    assert len(labels) == 2 and np.array_equal(inputs, labels)
    assert len(draw(loader(drop_last=True))(2)["labels"]) == 4
    assert len(draw(data.DataLoader(Augmented(), 99))(4)["labels"]) == 10
    drawn = draw(loader(collate_fn=mixed), np.int64(3), seed=2**40, backend=hg.Torch())
    first, again = drawn(0), drawn(0)
    assert torch.equal(first.inputs, again.inputs) and first.names == ["name"] * 3


REPLACED = data.RandomSampler(Augmented(), replacement=True)
WEIGHTED = data.WeightedRandomSampler([1.0], 10)
REFUSED = [  # a call, words of the error
    (lambda: keep([]), "at least one batch"),
    (lambda: keep([INPUTS])(-1), "t must be a whole number of steps >= 0, got"),
    (lambda: keep([INPUTS])(torch.tensor(1)), "t must be a whole number of steps >= 0, got"),
    (lambda: draw((INPUTS,), 2)(-1), "t must be a whole number of steps >= 0, got"),
    (lambda: draw((INPUTS,), 2)(1.5), "t must be a whole number of steps >= 0, got"),
    (lambda: keep([["name"]] * 2)(None), "joins batches of tensors, got str"),
    (lambda: draw((INPUTS, LABELS), 11), r"size=, .* must lie in 1\.\.10, got 11"),
    (lambda: draw((INPUTS, LABELS)), "got None"),
    (lambda: draw((INPUTS, LABELS[:3]), 2), r"one length, got \[10, 3\]"),
    (lambda: draw(data.ChainDataset([]), 2), "use keep for a stream"),
    (lambda: draw({"x": torch.zeros(3)}, 2), "tuple of arrays, got a dict"),
    (lambda: draw(loader(sampler=WEIGHTED)), "cannot follow WeightedRandomSampler; use keep"),
    (lambda: draw(loader(sampler=REPLACED)), "cannot follow RandomSampler with replacement"),
    (lambda: draw(data.DataLoader(INPUTS, batch_sampler=[[0]])), "cannot follow list; use keep"),
    (lambda: draw(data.DataLoader(INPUTS, batch_size=None)), "batch_size=None"),
    (lambda: draw(data.DataLoader(INPUTS, batch_size=11, drop_last=True)), "got 11"),
]


@pytest.mark.parametrize("call, words", REFUSED)
def test_batches_refuse(call, words):
    with pytest.raises((TypeError, ValueError), match=words):
        call()
