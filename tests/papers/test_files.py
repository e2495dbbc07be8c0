"""No byte is read unverified, nothing half done looks done, and every refusal says what to do."""

import gzip
import hashlib
import http.server
import os
import sys
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
REAL = pooch.HTTPDownloader


def sha(content):
    return hashlib.sha256(content).hexdigest()


def entry(folders=("http://one.invalid/",)):
    return data.File(sha(CONTENT), len(CONTENT), folders)


def put(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


@pytest.fixture
def cached(monkeypatch, tmp_path):
    """The place of NAME in an empty cache, without mirror or network."""
    monkeypatch.setenv("HGCORE_DATA", str(tmp_path / "a cache"))
    monkeypatch.delenv("HGCORE_DATA_MIRROR", raising=False)
    monkeypatch.setattr(files, "FILES", {NAME: entry()})
    monkeypatch.setattr(files, "_used", {})
    no_network = Mock(side_effect=ConnectionError("no network"))
    monkeypatch.setattr(pooch, "HTTPDownloader", lambda **_: no_network)
    return tmp_path / "a cache" / NAME


@pytest.fixture
def mirrored(monkeypatch, tmp_path):
    """The good file of NAME in a mirror."""
    monkeypatch.setenv("HGCORE_DATA_MIRROR", str(tmp_path / "mirror"))
    put(tmp_path / "mirror" / NAME, CONTENT)
    return tmp_path / "mirror" / NAME


def refusal(*parts):
    """Fetching NAME is refused with a message that holds every part."""
    with pytest.raises(data.DataError) as caught:
        data.fetch(NAME)
    assert [part for part in map(str, parts) if part not in str(caught.value)] == []


@pytest.mark.parametrize("where, remedy", [("cache", "Delete it"), ("mirror", "Repair the mirror")])
@pytest.mark.parametrize(
    "bad", [CONTENT[:-1], FLIPPED, CONTENT + b"x"], ids=["short", "flipped", "long"]
)
def test_altered_file_is_refused_and_left_alone(cached, mirrored, bad, where, remedy):
    path = cached if where == "cache" else mirrored
    put(path, bad)
    refusal(path, "12,000 bytes", sha(CONTENT), remedy)
    assert path.read_bytes() == bad and data.used() == {}
    assert list(cached.parent.iterdir()) == ([cached] if where == "cache" else [])


def test_mirror_may_be_gzipped(cached, mirrored):
    """What it holds is verified unpacked, then cached for all users of the machine."""
    mirrored.unlink()
    packed = mirrored.with_name("file.bin.gz")
    for bad in (gzip.compress(FLIPPED), gzip.compress(CONTENT)[:-9], b"no gzip"):
        put(packed, bad)
        refusal(packed, "is altered")
    put(packed, gzip.compress(CONTENT))
    assert data.fetch(NAME) == CONTENT == cached.read_bytes()
    assert data.used() == {NAME: sha(CONTENT)} and cached.stat().st_mode & 0o777 == 0o644


def test_file_known_by_md5_only(cached, mirrored, monkeypatch):
    md5 = hashlib.md5(CONTENT).hexdigest()
    monkeypatch.setattr(files, "FILES", {NAME: data.File("", len(CONTENT), (), md5=md5)})
    put(mirrored, FLIPPED)
    refusal(mirrored, f"md5 {md5}", "is altered")
    put(mirrored, CONTENT)
    assert data.fetch(NAME) == CONTENT and data.used() == {NAME: sha(CONTENT)}


def test_cache_that_cannot_be_written(cached, mirrored, monkeypatch):
    """A file in its place, a full disk."""
    put(cached.parent.parent, b"a file where the folder should be")
    refusal(cached.parent, "cannot be written", "HGCORE_DATA")
    cached.parent.parent.unlink()
    full = OSError(28, "No space left on device")
    monkeypatch.setattr(Path, "write_bytes", Mock(side_effect=full))
    refusal(cached, "No space left")


def test_what_is_no_file_is_not_read(cached, mirrored):
    """A folder, a pipe without end, and 30 GB are refused before a byte is read."""
    cached.mkdir(parents=True)
    refusal(cached, "is not a file")
    cached.rmdir()
    mirrored.unlink()
    os.mkfifo(mirrored)
    refusal(mirrored, "is not a file")
    mirrored.unlink()
    with mirrored.open("wb") as file:
        file.truncate(30 * 10**9)
    refusal(mirrored, "found 30,000,000,000 bytes")


@pytest.mark.parametrize("error", [KeyboardInterrupt, ConnectionError])
def test_broken_download_never_looks_finished(cached, monkeypatch, error):
    """Nor does a killed one: nothing has the right name before it is whole."""
    seen = []

    def download(address, target, _):
        Path(target).write_bytes(CONTENT[:100])
        seen.append(cached.exists())
        raise error

    monkeypatch.setattr(pooch, "HTTPDownloader", lambda **_: download)
    with pytest.raises((KeyboardInterrupt, data.DataError)):
        data.fetch(NAME)
    assert seen == [False] and list(cached.parent.iterdir()) == []


def test_concurrent_fetches_do_not_disturb_each_other(cached, mirrored):
    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(data.fetch, 8 * [NAME])) == {CONTENT}
    assert list(cached.parent.iterdir()) == [cached]


def test_download_goes_on_to_the_next_address(cached, tmp_path, monkeypatch):
    monkeypatch.setattr(pooch, "HTTPDownloader", REAL)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    put(tmp_path / "served/short/file.bin", CONTENT[:500])
    put(tmp_path / "served/good/file.bin", CONTENT)
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=tmp_path / "served")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        at = f"http://127.0.0.1:{server.server_port}"
        folders = [f"{at}/absent/", f"{at}/short/", f"{at}/good/"]
        monkeypatch.setattr(files, "FILES", {NAME: entry(folders[:2])})
        refusal("404", sha(CONTENT[:500]), *folders[:2])
        monkeypatch.setattr(files, "FILES", {NAME: entry(folders)})
        assert data.fetch(NAME) == CONTENT and list(cached.parent.iterdir()) == [cached]
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


def test_altered_package_is_refused(monkeypatch):
    monkeypatch.setattr(sys.modules["hgcore.data.mnist"], "MNIST_SMALL", 64 * "0")
    with pytest.raises(data.DataError, match="altered.*force-reinstall"):
        data.splits("mnist_small", (10,))


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
