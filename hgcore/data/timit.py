"""TIMIT: read sentences in which each phone is marked by hand (Garofolo et al. 1993).

The freely distributed sample of 16 speakers, or the licensed set of 630 (LDC93S1).
"""

import hashlib
import io
import os
import re
import wave
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from hgcore.data.files import DataError, fetch, in_reach, note, refusing
from hgcore.data.speech import RATE

SAMPLE, NLTK = "timit/timit.zip", "timit-nltk/timit.zip"
# Lee and Hon (1989): what is one class of 39, named as its first phone; q is in none of them.
_CLASSES = """
aa,ao ae ah,ax,ax-h aw ay b ch d dh dx eh er,axr ey f g hh,hv ih,ix iy jh k l,el m,em n,en,nx
ng,eng ow oy p r s sh,zh t th uh uw,ux v w y z sil,h#,pau,epi,bcl,dcl,gcl,kcl,pcl,tcl
"""
_PHONES = [names.split(",") for names in _CLASSES.split()]
FOLDED = {phone: names[0] for names in _PHONES for phone in names}  # for 60 of the 61 phones
CLASSES = sorted(set(FOLDED.values()))
PHONES = sorted({*FOLDED, "q"} - {"sil"})
CORE_TEST = (  # testset.doc of TIMIT: two men and one woman of each region
    "mdab0 mwbt0 felc0 mtas1 mwew0 fpas0 mjmp0 mlnt0 fpkt0 mlll0 mtls0 fjlm0 mbpm0 mklt0 fnlp0"
    " mcmj0 mjdh0 fmgd0 mgrt0 mnjm0 fdhc0 mjln0 mpam0 fmld0"
).split()
_NAME = re.compile(r"(?:(train|test)/)?dr([1-8])[-/]([fm][a-z]{3}\d)/(s[aix]\d+)\.phn$")


class Utterance(NamedTuple):
    """A sentence: samples (N,) int16 at 16 kHz, and where each of its S phones starts and ends.

    part: train or test, of the sample "". region: 1 to 8. sentence: sa1, sx116, ... starts, ends:
    (S,), in samples; phones: S of PHONES.
    """

    part: str
    region: int
    speaker: str
    sentence: str
    samples: np.ndarray
    starts: np.ndarray
    ends: np.ndarray
    phones: list[str]

    @property
    def split(self) -> str:
        """train, valid or test; the sentences sa1 and sa2, which everyone reads, are in none: "".

        Licensed set: TRAIN is train; in TEST the core test set is test, the rest valid.
        Sample: regions 1 to 5 are train, 6 is valid, 7 and 8 are test.
        """
        if self.sentence.startswith("sa"):
            return ""
        if self.part:
            held_out = "test" if self.speaker in CORE_TEST else "valid"
            return "train" if self.part == "train" else held_out
        return "train" if self.region <= 5 else "valid" if self.region == 6 else "test"


def timit() -> Iterator[Utterance]:
    """Yield the utterances, in the order of their names; raise DataError for a damaged set.

    HGCORE_TIMIT: a folder or zip laid out as the licensed set (TRAIN/DR1/FCJF0/SA1.WAV) or as the
    sample (dr1-fvmh0/sa1.wav), in letters of either case. Without it: the sample.
    """
    files, digest = _files(), hashlib.sha256()
    names = sorted(name for name in files if _NAME.search(name))
    if not names:
        raise DataError("no file named like TRAIN/DR1/FCJF0/SA1.PHN or dr1-fvmh0/sa1.phn in TIMIT")
    for name in names:
        sound = next((s for s in (".wav", ".wav.wav") if name[:-4] + s in files), None)
        if sound is None:
            raise DataError(f"{name} has no .wav beside it")
        with refusing(f"{name} or its sound cannot be read"):
            contents = files[name](), files[name[:-4] + sound]()
            utterance = _utterance(name, *contents)
        digest.update(b"".join([name.encode(), *contents]))
        yield utterance
    if os.environ.get("HGCORE_TIMIT"):
        note("HGCORE_TIMIT", digest.hexdigest())


def _files() -> dict[str, Callable]:
    """Return {path in small letters: () -> content}."""
    own = os.environ.get("HGCORE_TIMIT")
    if own and (root := Path(own)).is_dir():
        paths = [path for path in root.rglob("*") if path.is_file()]
        return {path.relative_to(root).as_posix().lower(): path.read_bytes for path in paths}
    file = own or io.BytesIO(fetch(SAMPLE if in_reach(SAMPLE) else NLTK))
    with refusing(f"{own or 'the sample of TIMIT'} is neither a folder nor a zip"):
        archive = zipfile.ZipFile(file)
    return {name.lower(): partial(archive.read, name) for name in archive.namelist()}


def _utterance(name: str, marks: bytes, sound: bytes) -> Utterance:
    part, region, speaker, sentence = _NAME.search(name).groups()
    rows = [line.split() for line in marks.decode("ascii").splitlines() if line.strip()]
    with refusing(f"{name} is not made of lines 'start end phone'"):
        starts, ends = (np.array([int(row[i]) for row in rows]) for i in range(2))
        phones = [row[2] for row in rows]
    if not phones or (unknown := set(phones) - set(PHONES)):
        raise DataError(f"{name}: expected phones of TIMIT, found {unknown if phones else 'none'}")
    samples = _samples(name, sound)
    if ends[-1] > len(samples) + RATE // 10:  # a little longer is usual
        raise DataError(f"{name} ends at sample {ends[-1]}, its sound at {len(samples)}")
    return Utterance(part or "", int(region), speaker, sentence, samples, starts, ends, phones)


def _samples(name: str, sound: bytes) -> np.ndarray:
    """Return the samples of a RIFF or NIST SPHERE file: 16 bits, 16 kHz, one channel."""
    expected = {"channel_count": 1, "sample_n_bytes": 2, "sample_rate": RATE}
    if sound.startswith(b"NIST_1A"):
        size = int(sound[8:16])
        lines = (line.split() for line in sound[16:size].decode("latin1").splitlines())
        fields = {line[0]: line[2] for line in lines if len(line) == 3}
        found = {key: int(fields.get(key, 1)) for key in expected}
        kind, coding = fields.get("sample_byte_format", "01"), fields.get("sample_coding", "pcm")
    else:
        with refusing(f"the sound of {name} is neither SPHERE nor RIFF"):
            file = wave.open(io.BytesIO(sound))
        found = dict(zip(expected, file.getparams()[:3], strict=True))
        sound, size, kind, coding = file.readframes(file.getnframes()), 0, "01", "pcm"
    if found != expected or coding != "pcm":
        how = "convert it to plain 16-bit samples with sph2pipe -f wav"
        raise DataError(f"the sound of {name} is {coding} with {found}; {how}")
    order = ">i2" if kind == "10" else "<i2"
    with refusing(f"the sound of {name} is cut off"):
        return np.frombuffer(sound, order, offset=size).astype(np.int16)


def frame_labels(utterance: Utterance, at: np.ndarray, states: bool = False) -> np.ndarray:
    """Return (n, 3): the class at each sample `at` (n,), that of the phone before and of the next.

    Classes are numbers of CLASSES; q is left out, and -1 where it is spoken itself. With `states`
    phones are numbers of PHONES, and the class of a sample is 3 * phone + its third of the segment,
    so 183 in all. Before the first and after the last phone there is silence.
    """
    number = {phone: CLASSES.index(name) for phone, name in FOLDED.items()}
    if states:
        number = {phone: i for i, phone in enumerate(PHONES)}
    own = np.array([number.get(phone, -1) for phone in (*utterance.phones, "h#")])
    kept = np.flatnonzero(own >= 0)
    place, spoken = np.searchsorted(kept, np.arange(len(own))), np.r_[own[-1], own[kept], own[-1]]
    segment = np.searchsorted(utterance.ends, at, side="right")
    before, after = spoken[place], spoken[np.minimum(place + 2, len(spoken) - 1)]
    classes = own[segment]
    if states:
        last = utterance.ends[-1]
        start = np.append(utterance.starts, last)[segment]
        end = np.append(utterance.ends, max(len(utterance.samples), last + 1))[segment]
        classes = 3 * classes + np.clip(3 * (at - start) // (end - start), 0, 2)
    return np.column_stack([classes, before[segment], after[segment]])
