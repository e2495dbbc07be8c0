"""Batches by the number of a step: replayed, drawn again, converted."""

import pickle
import random
from collections import namedtuple

import numpy as np
import pytest
import torch
from torch.utils import data

import hgcore as hg

INPUTS, LABELS = torch.arange(10.0), torch.arange(10)


class Augmented(data.Dataset):
    def __len__(self):
        return 10

    def __getitem__(self, i):
        noise = float(torch.rand(())) + random.random() + np.random.rand()
        return {"inputs": INPUTS[i] + noise, "labels": LABELS[i]}


def loader(**options):
    return data.DataLoader(Augmented(), 4, **options)


def test_kept_batches_come_again():
    kept = hg.batches.keep(loader(shuffle=True))
    assert torch.equal(kept(1)["inputs"], kept(4)["inputs"])
    assert sorted(kept(None)["labels"].tolist()) == list(range(10))
    with pytest.raises(ValueError, match="at least one batch"):
        hg.batches.keep([])
    for batch in (hg.batches.keep([INPUTS]), hg.batches.draw((INPUTS,), size=2)):
        for t in (-1, 1.5, torch.tensor(1)):
            with pytest.raises(ValueError, match="t must be a whole number of steps >= 0, got"):
                batch(t)


@pytest.mark.parametrize("shuffle", [True, False])
def test_drawn_batches_are_those_of_their_address(shuffle):
    """Each epoch holds every example; augmentations repeat; the generators are not disturbed."""
    drawn = hg.batches.draw(loader(shuffle=shuffle), seed=3)
    random.seed(0), np.random.seed(0), torch.manual_seed(0)
    before = random.random(), np.random.rand(), float(torch.rand(()))
    random.seed(0), np.random.seed(0), torch.manual_seed(0)
    batches = [drawn(t) for t in range(6)]
    assert before == (random.random(), np.random.rand(), float(torch.rand(())))
    assert all(torch.equal(drawn(t)["inputs"], batches[t]["inputs"]) for t in (5, 0, 2))
    epochs = [torch.cat([b["labels"] for b in batches[i : i + 3]]) for i in (0, 3)]
    assert all(sorted(epoch.tolist()) == list(range(10)) for epoch in epochs)
    assert torch.equal(*epochs) != shuffle
    assert drawn(None)["labels"].tolist() == list(range(10))


def test_batches_are_converted_and_sent_to_processes():
    for way in (hg.batches.draw, hg.batches.keep):
        batch = way(loader(), backend=hg.Torch())
        kinds = {name: part.dtype for name, part in batch(0).items()}
        assert kinds == {"inputs": torch.float64, "labels": torch.int64}
        assert torch.equal(pickle.loads(pickle.dumps(batch))(1)["inputs"], batch(1)["inputs"])


Batch = namedtuple("Batch", "inputs names")


def mixed(examples):
    inputs = torch.stack([example["inputs"] for example in examples])
    return Batch(inputs + np.random.beta(1.0, 1.0) * inputs.flip(0), ["name"] * len(examples))


def test_batches_of_other_kinds():
    """Arrays, named tuples, strings, draws in collate_fn, large seeds, dropped rests."""
    inputs, labels = hg.batches.draw((INPUTS.numpy(), LABELS), size=4)(2)
    assert len(labels) == 2 and np.array_equal(inputs, labels)
    assert len(hg.batches.draw(loader(drop_last=True))(2)["labels"]) == 4
    assert len(hg.batches.draw(data.DataLoader(Augmented(), 99))(4)["labels"]) == 10
    drawn = hg.batches.draw(loader(collate_fn=mixed), size=np.int64(3), seed=2**40)
    first, again = drawn(0), drawn(0)
    assert torch.equal(first.inputs, again.inputs) and first.names == ["name"] * 3
    kept = hg.batches.keep([Batch(INPUTS, ["name"])] * 2, hg.Torch())
    with pytest.raises(TypeError, match="joins batches of tensors, got str"):
        kept(None)
    assert hg.batches.keep([Batch(INPUTS.numpy(), LABELS)] * 2)(None).inputs.shape == (20,)


REPLACED = data.RandomSampler(Augmented(), replacement=True)
WEIGHTED = data.WeightedRandomSampler([1.0], 10)
SOURCES = [  # arguments of draw, words of the error
    (((INPUTS, LABELS), 11), r"size=, .* must lie in 1\.\.10, got 11"),
    (((INPUTS, LABELS),), "got None"),
    (((INPUTS, LABELS[:3]), 2), r"one length, got \[10, 3\]"),
    ((data.ChainDataset([]), 2), "use keep for a stream"),
    (({"x": torch.zeros(3)}, 2), "tuple of arrays, got a dict"),
    ((loader(sampler=WEIGHTED),), "cannot follow WeightedRandomSampler; use keep"),
    ((loader(sampler=REPLACED),), "cannot follow RandomSampler with replacement"),
    ((data.DataLoader(INPUTS, batch_sampler=[[0, 1], [2]]),), "cannot follow list; use keep"),
    ((data.DataLoader(INPUTS, batch_size=None),), "batch_size=None"),
    ((data.DataLoader(INPUTS, batch_size=11, drop_last=True),), "got 11"),
]


@pytest.mark.parametrize("arguments, words", SOURCES)
def test_draw_refuses(arguments, words):
    with pytest.raises(ValueError, match=words):
        hg.batches.draw(*arguments)
