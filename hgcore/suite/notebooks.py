"""Notebooks as files: which there are, their key, and the form in which they are committed."""

import difflib
import fnmatch
import hashlib
import json
import re
from pathlib import Path

from hgcore import __version__
from hgcore.checkpoint import write_atomically

KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}
METADATA = {"kernelspec": KERNEL, "language_info": {"name": "python"}}
NOT_KEYED = {"parameters", "injected-parameters"}
# one profile's table in a call of suite.start, as ruff formats it
TABLE = re.compile(r"^    (quick|reduced|paper)=dict\((?:[^\n]*|\n.*?^    )\),\n", re.M | re.S)


def path(name: str, root: Path) -> Path:
    """Return the file of the notebook `name`."""
    return Path(root, "notebooks", f"{name}.ipynb")


def discover(root: Path) -> list[str]:
    """Return the names of all notebooks; files and folders that begin with . or _ are ignored."""
    folder = Path(root, "notebooks")
    found = [file.relative_to(folder).with_suffix("") for file in folder.rglob("*.ipynb")]
    return sorted(n.as_posix() for n in found if not any(part[0] in "._" for part in n.parts))


def select(words: list[str], root: Path) -> list[str]:
    """Return the notebooks that the words name: names, beginnings, patterns; all for no words."""
    names = discover(root)
    return sorted({name for word in words for name in _named(word, names)}) if words else names


def _named(word: str, names: list[str]) -> list[str]:
    given, word = word, word.removeprefix("./").removeprefix("notebooks/").removesuffix(".ipynb")
    both = [(name, part) for name in names for part in (name, name.rpartition("/")[2])]
    exact = [name for name, part in both if part == word]
    loose = [n for n, part in both if part.startswith(word) or fnmatch.fnmatchcase(part, word)]
    if given and (exact or loose):
        return exact or loose
    close = difflib.get_close_matches(word, [part for _, part in both], 3, 0.4)
    hint = f"did you mean {' or '.join(close)}?" if close else "no name is similar."
    raise ValueError(f"no notebook is called {word!r}; {hint} `python -m hgcore list` shows all")


def read(file: Path) -> dict:
    """Return a notebook as JSON, the source of each cell as one string."""
    try:
        nb = json.loads(file.read_text(encoding="utf-8"))
        for cell in nb["cells"]:
            cell |= {"metadata": cell["metadata"], "source": "".join(cell["source"])}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file} is not a notebook: {error}") from None
    return nb


def code(name: str, root: Path) -> list[str]:
    """Return the sources of the code cells after the parameters."""
    cells = [c for c in read(path(name, root))["cells"] if c["cell_type"] == "code"]
    return [c["source"].strip() for c in cells if c["source"].strip() and not NOT_KEYED & tags(c)]


def tags(cell: dict) -> set[str]:
    """Return the tags of a cell."""
    return set(cell["metadata"].get("tags", ()))


def key(name: str, parameters: dict, data: dict, root: Path) -> str:
    """Return the SHA-256 of what a record depends on: code, parameters, data, hgcore's version.

    The scale tables of other profiles do not count.
    """
    profile = parameters["profile"]
    cells = [TABLE.sub(lambda m: m[0] if m[1] == profile else "", c) for c in code(name, root)]
    return sha256([__version__, cells, parameters, data])


def sha256(value) -> str:
    """Return the SHA-256 of a value as JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def normalized(nb: dict) -> dict:
    """Return the notebook as it is committed: no stderr, no run's metadata, counts from one."""
    cells, count = [], 0
    for cell in nb["cells"]:
        if "injected-parameters" in tags(cell) or not cell["source"].strip():
            continue
        cell = {**cell, "metadata": {"tags": sorted(tags(cell))} if tags(cell) else {}}
        if cell["cell_type"] == "code":
            count += 1
            shown = [x for x in cell["outputs"] if x.get("name") != "stderr"]
            cell |= {"execution_count": count, "outputs": [_output(x, count) for x in shown]}
        cells.append(cell)
    return {**nb, "metadata": METADATA, "cells": cells}


def _output(output: dict, count: int) -> dict:
    new = {"metadata": {}, "execution_count": count}
    return output | {name: new[name] for name in new if name in output}


def write(nb: dict, file: Path) -> None:
    """Write a valid notebook, whole or not at all."""
    import nbformat

    nb = nbformat.from_dict(nb)
    nbformat.validate(nb)
    write_atomically(file, f"{nbformat.writes(nb)}\n".encode())


def copy(name: str, new: str, root: Path) -> Path:
    """Write notebooks/own/<new>.ipynb, a copy of a notebook that has no claims."""
    if not new.isidentifier() or new[0] == "_":
        raise ValueError(f"the name must be letters, digits and _, a letter first, got {new!r}")
    nb, target = read(path(name, root)), path(f"own/{new}", root)
    if target.exists():
        raise FileExistsError(f"{target} exists; choose another name")
    for cell in nb["cells"]:
        cell["source"] = cell["source"].replace(f'"{name}"', f'"own/{new}"')
        if cell["cell_type"] == "code":
            cell |= {"outputs": [], "execution_count": None}  # they have the verdicts of `name`
    write(nb, target)
    return target
