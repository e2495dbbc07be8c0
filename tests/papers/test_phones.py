"""TIMIT is read in both layouts; the phone problem's derivatives equal an unrolled loop."""

import io
import os
import sys
import wave
import zipfile
from collections import Counter

import numpy as np
import pytest
from catalogue import gap, unrolled

import hgcore as hg
from hgcore import data
from hgcore.data import files, speech
from hgcore.papers import franceschi2017_phones as phones
from hgcore.suite import resume, session

timit = sys.modules["hgcore.data.timit"]
RNG = np.random.default_rng(0)
SOUND = RNG.integers(-9000, 9000, size=2000).astype("<i2")
MARKS = "0 400 h#\n400 700 sh\n700 1000 q\n1000 1900 ix\n"  # 100 samples after the last one
ZERO = [0.0, 2.0**-16, 0.0]


def riff(width=2):
    file = io.BytesIO()
    with wave.open(file, "wb") as sound:
        sound.setparams((1, width, 16000, 0, "NONE", ""))
        sound.writeframes(SOUND.tobytes())
    return file.getvalue()


def sphere(order="01", coding="pcm"):
    lines = ["NIST_1A", "   1024", "channel_count -i 1", "sample_rate -i 16000"]
    lines += ["sample_n_bytes -i 2", f"sample_byte_format -s2 {order}"]
    lines += [f"sample_coding -s{len(coding)} {coding}", "end_head", ""]
    sound = SOUND.astype(">i2" if order == "10" else "<i2")
    return "\n".join(lines).encode().ljust(1024) + sound.tobytes()


LICENSED = ("TRAIN/DR1/FCJF0/SX37", "TEST/DR2/FAEM0/SX42", "TEST/DR1/MDAB0/SI1039")
SAMPLE = ("timit/dr5-fbjl0/sx11", "timit/dr6-fapb0/si2", "timit/dr7-mdlm0/si1")


def zipped(contents):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in contents.items():
            archive.writestr(name, content)
    return file.getvalue()


@pytest.fixture
def corpus(tmp_path, monkeypatch):
    """Put utterances at HGCORE_TIMIT: names without ending, sounds in turn, a zip or a folder."""

    def put(names, sounds, pack=False, marks=MARKS):
        contents = {"timit/readme.doc": b"", "x/._sa1.phn": b""}
        upper = names[0].isupper()
        for name, sound in zip(names, sounds, strict=True):
            contents |= {name + (".WAV" if upper else ".wav"): sound}
            contents |= {name + (".PHN" if upper else ".phn"): marks.encode()}
        path = tmp_path / "timit"
        if pack:
            path.write_bytes(zipped(contents))
        for name, content in {} if pack else contents.items():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes(content)
        monkeypatch.setenv("HGCORE_TIMIT", str(path))

    return put


@pytest.mark.parametrize("pack", [False, True], ids=["folder", "zip"])
@pytest.mark.parametrize("names", [LICENSED, SAMPLE], ids=["licensed", "sample"])
def test_both_layouts_and_formats_are_read(names, pack, corpus, monkeypatch):
    """Names in letters of either case, SPHERE of either byte order, RIFF."""
    monkeypatch.setattr(files, "_used", {})
    letters = LICENSED if names is LICENSED else [name.lower() for name in names]
    corpus(letters, [sphere("01"), sphere("10"), riff()], pack)
    found = {utterance.split: utterance for utterance in data.timit()}
    assert list(data.used()) == ["HGCORE_TIMIT"]
    for split, name in zip(("train", "valid", "test"), names, strict=True):
        one = found.pop(split)
        assert np.array_equal(one.samples, SOUND) and one.sentence == name.lower().split("/")[-1]
        assert one.phones == ["h#", "sh", "q", "ix"] and one.ends.tolist() == [400, 700, 1000, 1900]
    assert not found


def test_damaged_sets_are_refused(corpus, monkeypatch, tmp_path):
    cases = {
        "sph2pipe": dict(sounds=[sphere(coding="shorten")]),
        "neither SPHERE nor RIFF": dict(sounds=[b"sound"]),
        "'sample_n_bytes': 1": dict(sounds=[riff(width=1)]),
        "found {'zz'}": dict(sounds=[riff()], marks="0 2000 zz"),
        "start end phone": dict(sounds=[riff()], marks="0 2000"),
        "found none": dict(sounds=[riff()], marks=" "),
    }
    for message, given in cases.items():
        corpus(LICENSED[:1], **given)
        with pytest.raises(data.DataError, match=message):
            list(data.timit())
    for path, message in ((tmp_path / "none", "neither a folder nor a zip"), (tmp_path, "no .wav")):
        monkeypatch.setenv("HGCORE_TIMIT", str(path))
        (tmp_path / "timit" / f"{LICENSED[0]}.WAV").unlink(missing_ok=True)
        with pytest.raises(data.DataError, match=message):
            list(data.timit())


def test_frames_have_the_label_of_their_center():
    """Of 39 classes without q, or of 61 phones in three parts; and the phones around it."""
    rows = [line.split() for line in MARKS.splitlines()]
    starts, ends = (np.array([int(row[i]) for row in rows]) for i in range(2))
    names = [row[2] for row in rows]
    one = data.Utterance("train", 1, "fcjf0", "sx37", SOUND, starts, ends, names)
    at = np.array([399, 400, 699, 700, 1300, 1899, 1950])

    def shown(known, labels):
        return " ".join("-" if i < 0 else known[i] for i in labels)

    labels = data.frame_labels(one, at)
    assert shown(timit.CLASSES, labels[:, 0]) == "sil sh sh - ih ih sil"
    assert shown(timit.CLASSES, labels[[0, 1, 4, 6], 1]) == "sil sil sh ih"
    assert shown(timit.CLASSES, labels[[0, 1, 4, 6], 2]) == "sh ih sil sil"
    labels = data.frame_labels(one, at, states=True)
    assert shown(timit.PHONES, labels[:, 0] // 3) == "h# sh sh q ix ix h#"
    assert (labels[:, 0] % 3).tolist() == [2, 0, 2, 0, 1, 2, 1]
    assert shown(timit.PHONES, labels[[1, 3, 4], 1]) == "h# sh q"
    assert len(timit.CLASSES) == 39 and len(timit.PHONES) == 61


@pytest.mark.skipif(not os.environ.get("HGCORE_DATA_MIRROR"), reason="needs HGCORE_DATA_MIRROR")
def test_sample_has_the_expected_counts(monkeypatch):
    monkeypatch.delenv("HGCORE_TIMIT", raising=False)
    utterances = list(data.timit())
    assert len(utterances) == 160 and len({one.speaker for one in utterances}) == 16
    assert sum(len(one.phones) for one in utterances) == 6185
    assert round(sum(len(one.samples) for one in utterances) / 16_000, 1) == 490.1
    counts, classes = Counter(), Counter()
    for one in utterances:
        labels = data.frame_labels(one, speech.centers(len(one.samples)))[:, 0]
        counts["all"] += len(labels)
        counts[one.split] += (labels >= 0).sum()
        classes.update(labels[labels >= 0].tolist())
    assert counts == {"all": 48_695, "train": 23_262, "valid": 5478, "test": 9402, "": 9559}
    smallest = {timit.CLASSES[i]: n for i, n in classes.most_common()[-2:]}
    assert smallest == {"uh": 113, "b": 127} and classes[timit.CLASSES.index("sil")] == 11_003


def test_features_show_the_pitch_and_its_change():
    """A tone lies in the band of its frequency; a slope is that of a line."""
    tone = (8000 * np.sin(2 * np.pi * 2000 * np.arange(8000) / 16_000)).astype("int16")
    features = data.speech_features(tone, derivatives=2)
    assert features.shape == (len(speech.centers(8000)), 123) == (48, 123)
    band = np.argmax(speech.mel_filters(40)[:, round(2000 * 512 / 16_000)])
    assert (features[:, :40].argmax(axis=1) == band).all()
    assert abs(features[:, 41 + band]).max() < 1e-3
    line = np.outer(np.arange(9.0), [2, -3])
    assert np.allclose(speech.slope(line)[2:-2], [2, -3])


# ---- the problem


def small(backend, radius=1):
    return phones.generated_frames(backend, 4, [6, 3, 3], (0,), radius=radius, noise=0.5)


def problem(backend, **settings):
    train, valid, _ = small(backend)
    net = phones.PhoneNet(24, [5, 4], 4, 3)
    given = dict(phones=4, stream=0, batch=20, valid_frames=30) | settings
    return phones.phone_problem(backend, net, train, valid, **given)


@pytest.mark.parametrize("solver", [hg.Forward(), hg.Reverse()], ids=["forward", "reverse"])
def test_hypergradient_equals_the_unrolled_loop(solver, backend):
    """1e-9, of rate, momentum and task weight."""
    case = problem(backend, steps=7)(3)
    hyper = case.as_hyper([0.2, 0.7, 0.9])
    value, slope = unrolled(case, hyper)
    found = solver(case, hyper)
    assert gap(backend.numpy(found.value), value) < 1e-11
    assert gap(backend.numpy(found.grad), slope) < 1e-9
    assert abs(slope[2]) > 1e-4


def test_losses_are_those_written_out():
    backend, rows = hg.Torch(), data.batch((0, 1), 2, 20, len(small(hg.Torch())[0].labels))
    case, frames = problem(backend)(0), small(backend)[0]
    net, weights = phones.PhoneNet(24, [5, 4], 4, 3), case.initial_state([0.0] * 3)[0] + 0.1
    first, second, x = *np.random.default_rng([0, 2]).normal(0, 0.5**0.5, (2, 4, 3)), []
    w = {name: block.numpy() for name, block in net.layout.split(weights).items()}
    for row in rows:
        x.append(np.concatenate([frames.features[i].numpy() for i in frames.windows[row]]))
    for layer in (1, 2):
        x = np.maximum(x @ w[f"weights {layer}"] + w[f"biases {layer}"], 0)
    scores = x @ w["class weights"] + w["class biases"]
    classes, before, after = frames.labels[rows].T
    primary = np.log(np.exp(scores).sum(1)) - scores[np.arange(20), classes]
    gaps = x @ w["context weights"] + w["context biases"] - first[before] - second[after]
    expected = primary.mean() + 0.7 * (gaps**2).mean() / 2
    hyper = backend.array([0.1, 0.5, 0.7])
    assert float(case.inner_loss(weights, hyper, 2)) == pytest.approx(expected, rel=1e-12)


def test_licensed_set_has_states(corpus, backend):
    """Standardized by the training part."""
    corpus(LICENSED, [sphere(), riff(), sphere("10")])
    parts = phones.timit_frames(backend, radius=5, derivatives=2, states=True)
    assert [len(part.labels) for part in parts] == 3 * [len(speech.centers(2000))]
    assert parts[0].inputs(np.arange(2)).shape == (2, 1353)
    features = backend.numpy(parts[0].features)
    assert abs(features.mean(axis=0)).max() < 1e-4 and abs(features.std(axis=0) - 1).max() < 1e-4
    assert {timit.PHONES[i] for i in parts[2].labels[:, 0] // 3} == {"h#", "sh", "q", "ix"}


def test_windows_stay_in_their_utterance():
    """And frames of class -1 are seen, not asked for."""
    parts = [(np.arange(3.0)[:, None], [[1, 0, 0], [-1, 0, 0], [2, 0, 0]])]
    parts += [(10 + np.arange(2.0)[:, None], [[0, 0, 0], [1, 0, 0]])]
    frames = phones.joined([(x, np.array(labels)) for x, labels in parts], radius=1)
    assert frames.inputs(np.arange(4)).tolist() == [
        [0, 0, 1],
        [1, 2, 2],
        [10, 10, 11],
        [10, 11, 11],
    ]
    assert frames.labels[:, 0].tolist() == [1, 2, 0, 1] and frames.majority() == 50


def test_accuracy_counts_all_chunks_or_some(monkeypatch):
    backend, (frames, *_) = hg.Torch(), small(hg.Torch())
    net = phones.PhoneNet(24, [5], 4, 3)
    weights = backend.array(net.initial_weights((0, 0)))
    everything = frames.accuracy(net, weights, backend)
    monkeypatch.setattr(phones, "CHUNK", 7)
    assert frames.accuracy(net, weights, backend) == pytest.approx(everything, abs=1e-12)
    few = frames._replace(windows=frames.windows[::3], labels=frames.labels[::3])
    some = frames.accuracy(net, weights, backend, most=len(frames.labels) // 3)
    assert some == pytest.approx(few.accuracy(net, weights, backend), abs=1e-12)


def test_all_three_rise_from_zero(backend):
    """Within their constraints."""
    project = phones.constraints()
    assert project(backend.array([-1.0, 0.0, -2.0])).tolist() == ZERO
    assert project(backend.array([5.0, 1.0, 7.0])).tolist() == [5.0, 0.99, 7.0]
    settings = dict(optimizer=hg.Adam(0.01), steps=4, every=3, project=project)
    steps = list(hg.realtime(problem(backend), backend.array(ZERO), **settings))
    hypers = np.array([backend.numpy(step.updated) for step in steps])
    assert (np.diff(hypers[:, 0]) > 0).all() and hypers[-1, 1] > 2.0**-16


def test_a_killed_run_goes_on(tmp_path, monkeypatch):
    """With the same bits."""
    monkeypatch.setattr(resume, "PAUSE", 0)
    monkeypatch.setenv("HGCORE_OUT", str(tmp_path))
    name = "franceschi2017/table3_fig3_phone_classification"
    run = session.start(name, "quick", "torch", "cpu", 0, {}, quick={"steps": 5})
    settings = dict(optimizer=hg.Adam(0.05), steps=8, every=3, project=phones.constraints())

    def loop(kept):
        return hg.realtime(problem(run.backend), ZERO, **settings, resume=kept)

    def measure(step, killed_at=None):
        if step.k == killed_at:
            raise KeyboardInterrupt
        return float(step.value), *step.updated.tolist()

    expected = [list(measure(step)) for step in loop(None)]
    with pytest.raises(KeyboardInterrupt):
        resume.resumable(run, "zero", loop, lambda step: measure(step, 5))
    assert resume.resumable(run, "zero", loop, measure)[0].tolist() == expected


def test_random_search_ends_with_its_clock():
    """And a trial when its first column has not risen for a while."""
    settled = phones.is_settled(2, 0.1)
    cases = [1], [1, 0, 1], [1, 2, 1], [1, 1.05, 1.09], [1, 1.05, 1.2]
    assert [settled([(x, 0) for x in case]) for case in cases] == [0, 1, 0, 1, 0]
    given = []

    def trial(number, hyper, left):
        given.append((number, left))
        return np.zeros((min(3, left), 2))

    trials = phones.random_search(trial, phones.draws(0), 8)
    assert given == [(0, 8), (1, 5), (2, 2)] and [len(rows) for rows in trials] == [3, 3, 2]
