"""TIMIT is read in both layouts; losses and labels of the phone problem are those written out."""

import io
import shutil
import sys
import wave

import numpy as np
import pytest

import hgcore as hg
from hgcore import data
from hgcore.data import speech
from hgcore.papers import franceschi2017_phones as phones

timit = sys.modules["hgcore.data.timit"]
RNG = np.random.default_rng(0)
SOUND = RNG.integers(-9000, 9000, size=2000).astype("<i2")
MARKS = "0 400 h#\n400 700 sh\n700 1000 q\n1000 1900 ix\n"  # 100 samples after the last one
LICENSED = ("TRAIN/DR1/FCJF0/SX37", "TEST/DR2/FAEM0/SX42", "TEST/DR1/MDAB0/SI1039")
SAMPLE = ("timit/dr5-fbjl0/sx11", "timit/dr6-fapb0/si2", "timit/dr7-mdlm0/si1")
TRAIN, VALID, _ = phones.generated_frames(hg.Torch(), 4, [6, 3, 3], (0,), radius=1, noise=0.5)


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


@pytest.fixture
def corpus(tmp_path, monkeypatch):
    """Put utterances at HGCORE_TIMIT: names without ending, sounds in turn, a zip or a folder."""

    def put(names, sounds, pack=False):
        path, contents = tmp_path / "set", {"timit/readme.doc": b"", "x/._sa1.phn": b""}
        for name, sound in zip(names, sounds, strict=True):
            for end, content in ((".wav", sound), (".phn", MARKS.encode())):
                contents[name + (end.upper() if name.isupper() else end)] = content
        for name, content in contents.items():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes(content)
        place = shutil.make_archive(path, "zip", path) if pack else str(path)
        monkeypatch.setenv("HGCORE_TIMIT", place)

    return put


@pytest.mark.parametrize("pack", [False, True], ids=["folder", "zip"])
@pytest.mark.parametrize("names", [LICENSED, SAMPLE], ids=["licensed", "sample"])
def test_both_layouts_and_formats_are_read(names, pack, corpus):
    """Names in letters of either case, SPHERE of either byte order, RIFF."""
    corpus(names, [sphere("01"), sphere("10"), riff()], pack)
    found = {one.split: one for one in data.timit()}
    assert "HGCORE_TIMIT" in data.used() and set(found) == {"train", "valid", "test"}
    for split, name in zip(("train", "valid", "test"), names, strict=True):
        one = found[split]
        assert np.array_equal(one.samples, SOUND) and one.sentence == name.lower().split("/")[-1]
        assert one.phones == ["h#", "sh", "q", "ix"] and one.ends.tolist() == [400, 700, 1000, 1900]


def test_other_codings_are_refused(corpus):
    for sound, words in (sphere(coding="shorten"), "sph2pipe"), (riff(width=1), "sample_n_bytes"):
        corpus(LICENSED[:1], [sound])
        with pytest.raises(data.DataError, match=words):
            list(data.timit())


def test_frames_have_the_label_of_their_center():
    """Of 39 classes without q, or of 61 phones in three parts; and the phones around it."""
    starts, ends, names = zip(*(line.split() for line in MARKS.splitlines()), strict=True)
    marks = np.array(starts, int), np.array(ends, int), names
    one = data.Utterance("train", 1, "fcjf0", "sx37", SOUND, *marks)
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


def test_features_show_the_pitch_and_its_change():
    """A tone lies in the band of its frequency; a slope is that of a line."""
    tone = (8000 * np.sin(2 * np.pi * 2000 * np.arange(8000) / 16_000)).astype("int16")
    features = data.speech_features(tone, derivatives=2)
    assert features.shape == (len(speech.centers(8000)), 123) == (48, 123)
    band = np.argmax(speech.mel_filters(40)[:, round(2000 * 512 / 16_000)])
    assert (features[:, :40].argmax(axis=1) == band).all()
    assert abs(features[:, 41 + band]).max() < 1e-3
    assert np.allclose(speech.slope(np.outer(np.arange(9.0), [2, -3]))[2:-2], [2, -3])


def test_frames_are_standardized_by_training(corpus):
    corpus(LICENSED, [sphere(), riff(), sphere("10")])
    parts = phones.timit_frames(hg.Torch(), radius=5, derivatives=2, states=True)
    assert [part.inputs(np.arange(11)).shape for part in parts] == 3 * [(11, 1353)]
    for train in (parts[0], TRAIN):
        assert abs(train.features.mean(0)).max() < 1e-4
        assert abs(train.features.std(0, correction=0) - 1).max() < 1e-4
    assert abs(VALID.features.mean(0)).max() > 1e-4


def test_windows_stay_in_their_utterance():
    """And frames of class -1 are seen, not asked for."""
    parts = [(np.arange(3.0)[:, None], np.array([[1, 0, 0], [-1, 0, 0], [2, 0, 0]]))]
    parts += [(10 + np.arange(2.0)[:, None], np.array([[0, 0, 0], [1, 0, 0]]))]
    frames = phones.joined(parts, radius=1)
    assert frames.inputs([0, 1]).tolist() == [[0, 0, 1], [1, 2, 2]]
    assert frames.inputs([2, 3]).tolist() == [[10, 10, 11], [10, 11, 11]]
    assert frames.labels[:, 0].tolist() == [1, 2, 0, 1] and frames.majority() == 50


def test_losses_are_those_written_out():
    """Of a minibatch: cross-entropy, and half the squared error of the embeddings."""
    net, rows = phones.PhoneNet(24, [5, 4], 4, 3), data.batch((0, 1), 2, 20, len(TRAIN.labels))
    settings = dict(phones=4, stream=0, batch=20, valid_frames=30)
    case = phones.phone_problem(hg.Torch(), net, TRAIN, VALID, **settings)(0)
    weights = case.initial_state([0.0] * 3)[0] + 0.1
    first, second = np.random.default_rng([0, 2]).normal(0, 0.5**0.5, (2, 4, 3))
    w = {name: block.numpy() for name, block in net.layout.split(weights).items()}
    x = np.array([np.concatenate(list(TRAIN.features[TRAIN.windows[row]])) for row in rows])
    for layer in (1, 2):
        x = np.maximum(x @ w[f"weights {layer}"] + w[f"biases {layer}"], 0)
    scores = x @ w["class weights"] + w["class biases"]
    classes, before, after = TRAIN.labels[rows].T
    primary = np.log(np.exp(scores).sum(1)) - scores[np.arange(20), classes]
    gaps = x @ w["context weights"] + w["context biases"] - first[before] - second[after]
    expected = primary.mean() + 0.7 * (gaps**2).mean() / 2
    found = case.inner_loss(weights, hg.Torch().array([0.1, 0.5, 0.7]), 2)
    assert float(found) == pytest.approx(expected, rel=1e-12)


def test_accuracy_is_the_same_in_chunks(monkeypatch):
    backend, net = hg.Torch(), phones.PhoneNet(24, [5], 4, 3)
    weights = backend.array(net.initial_weights((0, 0)))
    scores, _ = net(weights, TRAIN.inputs(np.arange(len(TRAIN.labels))))
    right = scores.numpy().argmax(1) == TRAIN.labels[:, 0]
    monkeypatch.setattr(phones, "CHUNK", 7)
    assert TRAIN.accuracy(net, weights, backend) == pytest.approx(100 * right.mean())
