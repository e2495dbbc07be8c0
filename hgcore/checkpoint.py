"""An outer step on disk: a loop that was killed goes on from it with the same bits."""

from __future__ import annotations

import io
import json
import zipfile
import zlib
from pathlib import Path

import numpy as np

from hgcore.backend import Backend
from hgcore.figures import write
from hgcore.outer import OuterStep


def save(path: str | Path, step: OuterStep) -> None:
    """Write `step` to `path`, a file of NumPy arrays (.npz), whole or not at all.

    for step in hg.alternate(..., resume=hg.load(path, backend) if path.exists() else None): hg.save(path, step)
    """
    arrays, file = {}, io.BytesIO()
    tree = [_leaf(part, arrays) for part in step]
    np.savez(file, tree=np.array(json.dumps(tree)), **arrays)
    write(Path(path), file.getvalue())


def load(path: str | Path, backend: Backend) -> OuterStep:
    """The step that `save` wrote, for `resume=`.  ValueError: not such a file, damaged, or of another precision than `backend`."""
    tree, arrays = _read(path)
    return OuterStep(*(_grown(leaf, arrays, backend) for leaf in tree))


def _read(path) -> tuple[list, dict]:
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        return json.loads(str(arrays.pop("tree"))), arrays
    except (zipfile.BadZipFile, zlib.error, EOFError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged, or was not written by hgcore.save; delete it to start afresh") from error


def _leaf(part, arrays: dict):
    """JSON for one part of a step: a tuple as a list, a number as it is, a vector by its name among `arrays`."""
    if isinstance(part, tuple):
        return [_leaf(one, arrays) for one in part]
    if not hasattr(part, "dtype"):
        if not isinstance(part, bool | int | float | str | None):
            raise TypeError(f"a checkpoint holds tuples, numbers and vectors, got {type(part).__name__}: let the rule's memory be of these")
        return {"plain": part}
    name = f"array {len(arrays)}"
    arrays[name] = part.detach().cpu().numpy() if hasattr(part, "detach") else np.asarray(part)
    return {"array": name}


def _grown(leaf, arrays: dict, backend: Backend):
    if isinstance(leaf, list):
        return tuple(_grown(one, arrays, backend) for one in leaf)
    if "plain" in leaf:
        return leaf["plain"]
    array = arrays[leaf["array"]]
    if str(array.dtype) != backend.dtype:
        raise ValueError(f"the checkpoint holds {array.dtype}, this backend is {backend.dtype}: the run would go on with other bits;"
                         f" make the backend with dtype={str(array.dtype)!r}")
    return backend.array(array)
