"""Data sets, verified before they are read, and random streams by address: `hg.data.mnist()`,
`hg.data.omniglot([...])`, ...
"""

from hgcore.data.digits import MNIST_SMALL, SOURCES, Images, Split, idx, mnist, mnist_small, splits
from hgcore.data.files import FILES, DataError, File, cache, fetch, used
from hgcore.data.fonts import FONT_ALPHABETS, font_alphabets
from hgcore.data.houses import BOSTON, boston
from hgcore.data.letters import OMNIGLOT, omniglot
from hgcore.data.streams import authors_rng, batch
