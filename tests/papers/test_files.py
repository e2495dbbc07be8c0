"""No byte is read unverified, nothing half done looks done, and every refusal says what to do."""

import gzip
import hashlib
import http.server
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pooch
import pytest

from hgcore import data
from hgcore.data import files

NAME, CONTENT = "set/file.bin", b"a small file" * 1000
FLIPPED = CONTENT[:50] + bytes([CONTENT[50] ^ 1]) + CONTENT[51:]
SHA = hashlib.sha256(CONTENT).hexdigest()
ENTRY = data.File(SHA, len(CONTENT), ("http://one.invalid/",))
REAL = pooch.HTTPDownloader


@pytest.fixture
def place(monkeypatch, tmp_path):
    """The places of NAME in an empty cache and an empty mirror, without network."""
    monkeypatch.setenv("HGCORE_DATA", str(tmp_path / "a cache"))
    monkeypatch.setenv("HGCORE_DATA_MIRROR", str(tmp_path / "mirror"))
    monkeypatch.setattr(files, "FILES", {NAME: ENTRY})
    monkeypatch.setattr(files, "_used", {})
    no_network = Mock(side_effect=ConnectionError("no network"))
    monkeypatch.setattr(pooch, "HTTPDownloader", lambda **_: no_network)
    cached, mirrored = tmp_path / "a cache" / NAME, tmp_path / "mirror" / NAME
    return {"cache": cached, "mirror": mirrored, "mirror.gz": mirrored.with_name("file.bin.gz")}


def put(path, content) -> None:
    """Make a file of these bytes, or what the function `content` makes of the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content) if isinstance(content, bytes) else content(path)


def large(path) -> None:
    with path.open("wb") as file:
        file.truncate(30 * 10**9)


def refusal(*parts) -> None:
    """Fetching NAME is refused with a message that holds every part."""
    with pytest.raises(data.DataError) as caught:
        data.fetch(NAME)
    assert [part for part in map(str, parts) if part not in str(caught.value)] == []


DELETE, REPAIR = "Delete it", "Repair the mirror"
SIZES = CONTENT[:-1], FLIPPED, CONTENT + b"x"
BAD = [  # place, its content, words of the error
    *(("cache", content, "is altered", DELETE) for content in SIZES),
    *(("mirror", content, "is altered", REPAIR) for content in SIZES),
    ("mirror.gz", gzip.compress(FLIPPED), "is altered", REPAIR),
    ("mirror.gz", gzip.compress(CONTENT)[:-9], "is altered", REPAIR),
    ("mirror.gz", b"no gzip", "is altered", REPAIR),
    ("cache", Path.mkdir, "is not a file", DELETE),
    ("mirror", os.mkfifo, "is not a file", REPAIR),
    ("mirror", large, "found 30,000,000,000 bytes", REPAIR),
]


@pytest.mark.parametrize("where, content, words, remedy", BAD, ids=range(len(BAD)))
def test_bad_file_is_refused_and_left_alone(place, where, content, words, remedy):
    """What is no file is refused before a byte is read, what is far too long after few."""
    if where == "cache":
        put(place["mirror"], CONTENT)
    put(place[where], content)
    refusal(place[where], "12,000 bytes", SHA, words, remedy)
    assert not isinstance(content, bytes) or place[where].read_bytes() == content
    left = [place["cache"]] if where == "cache" else []
    assert data.used() == {} and list(place["cache"].parent.iterdir()) == left


BY_MD5 = data.File("", len(CONTENT), (), hashlib.md5(CONTENT).hexdigest())
WAYS = ("mirror", bytes, ENTRY), ("mirror", bytes, BY_MD5), ("mirror.gz", gzip.compress, ENTRY)


@pytest.mark.parametrize("where, pack, entry", WAYS)
def test_file_of_a_mirror_is_cached(place, where, pack, entry, monkeypatch):
    """Verified unpacked, readable for all users; fetches at once do not disturb each other."""
    monkeypatch.setattr(files, "FILES", {NAME: entry})
    put(place[where], pack(FLIPPED))
    refusal(place[where], " ".join(entry.checksum), "is altered")
    put(place[where], pack(CONTENT))
    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(data.fetch, 8 * [NAME])) == {CONTENT}
    assert data.used() == {NAME: SHA} and place["cache"].read_bytes() == CONTENT
    assert place["cache"].stat().st_mode & 0o777 == 0o644
    assert list(place["cache"].parent.iterdir()) == [place["cache"]]


def test_cache_that_cannot_be_written(place, monkeypatch):
    """A file in its place, a full disk."""
    put(place["mirror"], CONTENT)
    folder = place["cache"].parent
    put(folder.parent, b"a file where the folder should be")
    refusal(folder, "cannot be written", "HGCORE_DATA")
    folder.parent.unlink()
    full = OSError(28, "No space left on device")
    monkeypatch.setattr(Path, "write_bytes", Mock(side_effect=full))
    refusal(place["cache"], "No space left")


def test_download_goes_on_to_the_next_address(place, tmp_path, monkeypatch):
    """Of a broken download nothing is left that looks whole."""
    monkeypatch.setattr(pooch, "HTTPDownloader", REAL)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    put(tmp_path / "served/short/file.bin", CONTENT[:500])
    put(tmp_path / "served/good/file.bin", CONTENT)
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=tmp_path / "served")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        folders = [f"http://127.0.0.1:{server.server_port}/{x}/" for x in ("no", "short", "good")]
        files.FILES[NAME] = ENTRY._replace(folders=folders[:2])
        refusal("404", hashlib.sha256(CONTENT[:500]).hexdigest(), *folders[:2])
        assert list(place["cache"].parent.iterdir()) == []
        files.FILES[NAME] = ENTRY._replace(folders=folders)
        assert data.fetch(NAME) == CONTENT
        assert list(place["cache"].parent.iterdir()) == [place["cache"]]
        server.shutdown()


def test_cache_folder(monkeypatch, tmp_path):
    """HGCORE_DATA before HGCORE_ROOT before the repository that one is in."""
    for name in ("here", "other"):
        put(tmp_path / name / "pyproject.toml", b"")
        (tmp_path / name / "notebooks/paper").mkdir(parents=True)
    for name in ("HGCORE_DATA", "HGCORE_ROOT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path / "here/notebooks/paper")
    assert data.cache() == tmp_path / "here/data"
    monkeypatch.setenv("HGCORE_ROOT", "../../../other")
    assert data.cache() == tmp_path / "other/data"
    monkeypatch.setenv("HGCORE_DATA", "near")
    assert data.cache() == tmp_path / "here/notebooks/paper/near"


def test_streams_have_an_address():
    draws = [data.batch(*where, 50, 1000) for where in ((3, 7), ((3,), 7), (3, 8), ((3, 1), 7))]
    assert np.array_equal(draws[0], draws[1])
    assert len({draw.tobytes() for draw in draws}) == 3
    assert set(data.batch(0, 0, 200, 3).tolist()) == {0, 1, 2}
    expected = np.random.RandomState(0x7AE3E68B).rand(3).tolist()  # of the MD5 of "(0, 1, 2)"
    for where in ((0, 1, 2), (np.int64(0), 1, np.int32(2))):
        assert data.authors_rng(*where).rand(3).tolist() == expected


def test_readme_gives_every_checksum():
    text = (Path(__file__).parents[2] / "data/README.md").read_text()
    for name, file in data.FILES.items():
        assert f"| `{name}` | {file.size:,} | `{file.checksum[1]}` |" in text
        assert all(folder in text for folder in file.folders)
    assert data.MNIST_SMALL in text and data.BOSTON in text
