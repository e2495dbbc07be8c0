"""Save an outer step to disk: a killed loop resumes from it with the same bits."""

import io
import json
import uuid
from pathlib import Path

import numpy as np

from hgcore.arrays import require_instance
from hgcore.backend import Backend
from hgcore.outer import OuterStep


def save(path: str | Path, step: OuterStep) -> None:
    """Write `step` to `path`, a file of NumPy arrays (.npz), whole or not at all.

    for step in hg.descend(..., resume=hg.load(path, backend) if path.exists() else None):
        hg.save(path, step)
    """
    require_instance("step", step, OuterStep, "those that hg.descend yields")
    arrays, file = {}, io.BytesIO()
    tree = json.dumps(_to_json(tuple(step), arrays))
    kinds = {str(array.dtype) for array in arrays.values() if array.dtype.kind == "f"}
    if len(kinds) > 1:
        found = " and ".join(sorted(kinds))
        raise TypeError(f"a checkpoint has one precision, got {found}: keep all vectors like hyper")
    np.savez(file, tree=np.array(tree), **arrays)
    write_atomically(Path(path), file.getvalue())


def load(path: str | Path, backend: Backend) -> OuterStep:
    """Return the step that `save` wrote, for `resume=`.

    Raises ValueError for a damaged file, another file, or another precision than the backend's.
    """
    require_instance("backend", backend, "linearize", "hg.Torch()")
    content = Path(path).read_bytes()
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as file:
            arrays = dict(file)
        tree = json.loads(str(arrays.pop("tree")))
        step = OuterStep(*_from_json(tree, arrays, backend))
    except Exception as error:  # NumPy, zip files and JSON raise many kinds
        why = "is damaged, or was not written by hgcore.save; delete it to start afresh"
        raise ValueError(f"{path} {why}") from error
    for array in arrays.values():
        if array.dtype.kind == "f" and str(array.dtype) != backend.dtype:
            raise ValueError(f"{path} holds {array.dtype}, this backend is {backend.dtype}")
    return step


def write_atomically(path: Path, content: bytes) -> None:
    """Put `content` at `path`, whole or not at all; make the folders."""
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(content)
        part.replace(path)
    except OSError as error:  # a full disk does not say where
        raise OSError(error.errno, f"cannot write: {error.strerror}", str(path)) from error
    finally:
        part.unlink(missing_ok=True)


def _to_json(part, arrays: dict):
    """Return a tuple as a list, and a vector as {"array": its name in `arrays`}."""
    if type(part) is tuple:
        return [_to_json(one, arrays) for one in part]
    part = part.item() if isinstance(part, np.generic) else part
    if isinstance(part, bool | int | float | str | None):
        return part
    if not hasattr(part, "dtype"):
        kind = type(part).__name__
        raise TypeError(f"a checkpoint holds plain tuples, numbers and vectors, got {kind}")
    name = f"array {len(arrays)}"
    arrays[name] = part.detach().cpu().numpy() if hasattr(part, "detach") else np.asarray(part)
    return {"array": name}


def _from_json(part, arrays: dict, backend: Backend):
    """Undo `_to_json`."""
    if isinstance(part, list):
        return tuple(_from_json(one, arrays, backend) for one in part)
    if not isinstance(part, dict):
        return part
    array = arrays[part["array"]]
    return backend.array(array) if array.dtype.kind == "f" else backend.xp.asarray(array)
