"""An outer step on disk: a loop that was killed goes on from it with the same bits."""

from __future__ import annotations

import io
import json
import os
import tempfile
import zipfile
import zlib
from pathlib import Path

import numpy as np

from hgcore.backend import Backend
from hgcore.outer import OuterStep

# what NumPy, zip files and JSON raise on bytes that are not theirs (ValueError: also JSON's)
_DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, OSError, LookupError, TypeError, ValueError)


def save(path: str | Path, step: OuterStep) -> None:
    """Write `step` to `path`, a file of NumPy arrays (.npz), whole or not at all.

    for step in hg.descend(..., resume=hg.load(path, backend) if path.exists() else None):
        hg.save(path, step)
    """
    arrays, file = {}, io.BytesIO()
    tree = [_leaf(part, arrays) for part in step]
    kinds = sorted({str(array.dtype) for array in arrays.values() if array.dtype.kind == "f"})
    if len(kinds) > 1:
        found = " and ".join(kinds)
        raise TypeError(f"a checkpoint has one precision, got {found}: keep all vectors like hyper")
    np.savez(file, tree=np.array(json.dumps(tree)), **arrays)
    write_atomically(Path(path), file.getvalue())


def load(path: str | Path, backend: Backend) -> OuterStep:
    """Return the step that `save` wrote, for `resume=`.

    Raises ValueError for a damaged file, another file, or another precision than the backend's.
    """
    content = Path(path).read_bytes()
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        tree = json.loads(str(arrays.pop("tree")))
        step = OuterStep(*(_grown(leaf, arrays, backend) for leaf in tree))
    except (*_DAMAGE, RuntimeError) as error:
        why = "is damaged, or was not written by hgcore.save; delete it to start afresh"
        raise ValueError(f"{path} {why}") from error
    for array in arrays.values():
        if array.dtype.kind == "f" and str(array.dtype) != backend.dtype:
            raise ValueError(f"{path} holds {array.dtype}, this backend is {backend.dtype}")
    return step


def write_atomically(path: Path, content: bytes) -> None:
    """Put `content` at `path`, whole or not at all; make the folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, part = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            os.fchmod(file.fileno(), 0o644)  # mkstemp gives 0600, git wants it readable
        os.replace(part, path)
    except BaseException:
        os.unlink(part)
        raise


def _leaf(part, arrays: dict):
    """Return JSON for one part of a step: a tuple as a list, a vector by its name in `arrays`."""
    if type(part) is tuple:
        return [_leaf(one, arrays) for one in part]
    part = part.item() if isinstance(part, np.generic) else part
    if isinstance(part, bool | int | float | str | None):
        return {"plain": part}
    if not hasattr(part, "dtype"):
        kind = type(part).__name__
        raise TypeError(f"a checkpoint holds plain tuples, numbers and vectors, got {kind}")
    name = f"array {len(arrays)}"
    arrays[name] = part.detach().cpu().numpy() if hasattr(part, "detach") else np.asarray(part)
    return {"array": name}


def _grown(leaf, arrays: dict, backend: Backend):
    if isinstance(leaf, list):
        return tuple(_grown(one, arrays, backend) for one in leaf)
    if "plain" in leaf:
        return leaf["plain"]
    array = arrays[leaf["array"]]
    return backend.array(array) if array.dtype.kind == "f" else backend.xp.asarray(array)
