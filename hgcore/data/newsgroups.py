"""20 newsgroups, split by date (Lang 1995): 18,846 posts of Usenet, as texts and as features.

scikit-learn is imported when it is needed.
"""

import io
import tarfile
from collections.abc import Sequence

import numpy as np

from hgcore.data.files import fetch, in_reach

# the same posts: as published, packed by gzip; a mirror may hold them packed anew by xz
NEWS, NEWS_XZ = (f"20newsgroups/20news-bydate.tar.{packed}" for packed in ("gz", "xz"))


def newsgroups() -> tuple[list[str], np.ndarray, list[str]]:
    """Return texts with headers, labels (N,) and the 20 names of the groups, sorted.

    Posts come in the order of their paths: those for testing, then those for training, by group, by
    number. The first archive that the cache or the mirror has is read, else the first downloaded.
    """
    name = next(filter(in_reach, (NEWS, NEWS_XZ)), NEWS)
    posts: dict[tuple[str, str, str], str] = {}
    with tarfile.open(fileobj=io.BytesIO(fetch(name))) as archive:
        for member in archive:
            parts = tuple(member.name.removeprefix("./").split("/"))
            if member.isfile() and len(parts) == 3:
                posts[parts] = archive.extractfile(member).read().decode("latin1")
    places = sorted(posts)
    names, labels = np.unique([group for _, group, _ in places], return_inverse=True)
    return [posts[place] for place in places], labels, names.tolist()


def tfidf_svd(texts: Sequence[str], features: int) -> np.ndarray:
    """Return (N, features): TF-IDF of the words (log counts, no English stop words, in at least two
    texts), then its projection onto the largest singular vectors. Repeats on one machine.

    Uses the bodies only: a header names the group.
    """
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer

    bodies = [text.partition("\n\n")[2] for text in texts]
    counts = TfidfVectorizer(sublinear_tf=True, stop_words="english", min_df=2)
    return TruncatedSVD(features, random_state=0).fit_transform(counts.fit_transform(bodies))
