"""Penn Treebank as words, as Mikolov et al. (2011) prepared it: 10,000 words, in lower case."""

from collections import Counter
from typing import NamedTuple

import numpy as np

from hgcore.data.files import fetch

EOS, UNKNOWN = "<eos>", "<unk>"


class Text(NamedTuple):
    """train, valid, test: (N,) int64, words as numbers; words: the word of each number."""

    train: np.ndarray
    valid: np.ndarray
    test: np.ndarray
    words: list[str]


def ptb(words: int = 10_000) -> Text:
    """Return Penn Treebank: 929,589, 73,760 and 82,430 words, with <eos> at the end of each line.

    Words are numbered by falling frequency in the training text, ties in alphabetical order. words:
    size of the vocabulary, 3 to 10,000; other words become <unk>, which is word 1.
    """
    parts = [_words(f"ptb/ptb.{part}.txt") for part in ("train", "valid", "test")]
    return numbered(*parts, words=words)


def numbered(train: list[str], valid: list[str], test: list[str], *, words: int) -> Text:
    """Return three texts as numbers of words; see `ptb`.

    Raises ValueError if `words` is more than there are, or too few to keep <unk>.
    """
    counts = Counter(train)
    known = sorted(counts, key=lambda word: (-counts[word], word))[:words]
    if UNKNOWN not in known or words > len(counts):
        rank = "too few to keep <unk>" if UNKNOWN not in known else "more than there are"
        raise ValueError(f"words must lie in 3..{len(counts):,}, got {words}: {rank}")
    number = {word: i for i, word in enumerate(known)}
    other = number[UNKNOWN]
    parts = (np.array([number.get(word, other) for word in part]) for part in (train, valid, test))
    return Text(*parts, known)


def _words(name: str) -> list[str]:
    return fetch(name).decode("ascii").replace("\n", f" {EOS} ").split()
