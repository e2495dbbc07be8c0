"""Data sets, verified before they are read, and random streams by address: `data.splits(...)`,
`data.omniglot([...])`, ...
"""

from hgcore.data.addresses import authors_rng, batch
from hgcore.data.boston import BOSTON, boston
from hgcore.data.features import image_features
from hgcore.data.files import FILES, DataError, File, cache, fetch, find_root, used
from hgcore.data.fonts import font_alphabets
from hgcore.data.mnist import MNIST_SMALL
from hgcore.data.newsgroups import newsgroups, tfidf_svd
from hgcore.data.omniglot import OMNIGLOT, omniglot
from hgcore.data.ptb import Text, ptb
from hgcore.data.speech import speech_features
from hgcore.data.splits import SOURCES, Split, splits
from hgcore.data.timit import Utterance, frame_labels, timit
