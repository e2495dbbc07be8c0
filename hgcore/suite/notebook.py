"""Notebooks as files: which there are, what they promise, and whether the records of a run still
belong to them.
"""

import ast
import hashlib
import json
import os
from pathlib import Path

from hgcore.suite import claims
from hgcore.suite.content import code, installed, version
from hgcore.suite.reach import reached

# one door for all that is done to a notebook
from hgcore.suite.tidy import normalise, tags, write  # noqa: F401

PACKAGE = Path(__file__).parents[1]
# no figure depends on these
NOT_KEYED = {
    "runner.py",
    "report.py",
    "__main__.py",
    "cli.py",
    "notebook.py",
    "tidy.py",
    "content.py",
    "jobs.py",
    "live.py",
    "pages.py",
    "reach.py",
    "readme.py",
}
NOT_CODE = {"parameters", "injected-parameters"}
RECORD = {
    "figure",
    "notebook",
    "siblings",
    "profile",
    "backend",
    "device",
    "seed",
    "overrides",
    "key",
    "products",
    "claims",
}


# ---- where things are


def find_root(start: Path | None = None) -> Path:
    """The repository: HGCORE_ROOT, else the nearest folder above `start` (the working directory)
    with pyproject.toml and notebooks/.
    """
    given = os.environ.get("HGCORE_ROOT")
    start = Path(given or start or Path.cwd()).resolve()
    for folder in (start, *start.parents)[: 1 if given else None]:
        if (folder / "pyproject.toml").is_file() and (folder / "notebooks").is_dir():
            return folder
    if given:
        raise FileNotFoundError(
            f"HGCORE_ROOT is {given}, where there is no pyproject.toml or no notebooks/: "
            "set it to the repository, or not at all"
        )
    raise FileNotFoundError(
        f"no folder with pyproject.toml and notebooks/ at or above {start}; "
        "go into the repository or set HGCORE_ROOT"
    )


def paper(name: str) -> str:
    """The paper that a notebook belongs to; tour for the notebooks at the top."""
    return name.split("/")[0] if "/" in name else "tour"


def path(name: str, root: Path) -> Path:
    """The file of the notebook `name`."""
    return Path(root) / "notebooks" / f"{name}.ipynb"


def destination(name: str, profile: str, overrides: dict, root: Path) -> Path:
    """Where the figures of a run go; an overridden run is the user's own and goes below runs/."""
    if overrides:
        return Path(root) / "runs" / "overrides" / profile / paper(name)
    return Path(root) / "figures" / ("quick" if profile == "quick" else "") / paper(name)


def discover(root: Path) -> list[str]:
    """The names of all notebooks, sorted; what begins with a dot or an underscore is nobody's."""
    folder = Path(root) / "notebooks"
    found = (file.relative_to(folder).with_suffix("") for file in folder.rglob("*.ipynb"))
    return sorted(
        name.as_posix() for name in found if not any(part[0] in "._" for part in name.parts)
    )


# ---- what a notebook says


def read(name: str, root: Path) -> dict:
    """The notebook as plain JSON, every cell's source one string.

    (Importing nbformat can cost 2 s.)
    """
    file = path(name, root)
    try:
        nb = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is no notebook: {error}") from None
    if not isinstance(nb, dict) or not isinstance(nb.get("cells"), list):
        raise ValueError(f"{file} is no notebook: it has no list of cells")
    return {**nb, "cells": [{**cell, "source": "".join(cell["source"])} for cell in nb["cells"]]}


def parameters(nb: dict) -> dict[str, object]:
    """Name and default of each parameter, from the one cell tagged `parameters`, which holds
    annotated assignments of literals only.
    """
    cells = [cell["source"] for cell in nb["cells"] if "parameters" in tags(cell)]
    if len(cells) != 1:
        raise ValueError(
            f"a notebook needs exactly one cell tagged parameters, this one has {len(cells)}"
        )
    lines = ast.parse(cells[0]).body
    if not all(isinstance(line, ast.AnnAssign) and line.value is not None for line in lines):
        raise ValueError(
            "write each parameter as `seed: int = 0  # what it is`, and nothing else in its cell; "
            f"got:\n{cells[0]}"
        )
    return {line.target.id: ast.literal_eval(line.value) for line in lines}


def scale(nb: dict) -> dict[str, dict[str, object]]:
    """The tables quick= and paper= of the notebook's profiles.start(...), unexecuted; a value that
    is no literal is `...`.
    """
    for source in source_cells(nb):
        for node in ast.walk(ast.parse(_plain(source))):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("profiles.start"):
                tables = {word.arg: word.value for word in node.keywords}
                return {
                    profile: _table(tables.get(profile), profile) for profile in ("quick", "paper")
                }
    raise ValueError("this notebook has no profiles.start(..., quick=dict(...), paper=dict(...))")


def source_cells(nb: dict) -> list[str]:
    """The sources of the code cells, those with parameters and those with nothing left out."""
    return [
        cell["source"]
        for cell in nb["cells"]
        if cell["cell_type"] == "code" and cell["source"].strip() and not NOT_CODE & tags(cell)
    ]


# ---- what belongs to what: content, never dates


def key(
    name: str,
    profile: str,
    backend: str,
    device: str,
    seed: int,
    overrides: dict,
    root: Path,
    versions: dict | None = None,
) -> str:
    """sha256 of all that a figure depends on: notebook code, what it reaches in the package,
    claims, parameters, numpy and torch.

    versions: of hgcore, numpy and torch; those of today if None.
    """
    versions = versions or {
        "hgcore": version(root),
        **{library: installed(library) for library in ("numpy", "torch")},
    }
    cells = source_cells(read(name, root))
    content = {
        "cells": [code(source) for source in cells],
        "package": sorted(
            set(reached("\n".join(map(_plain, cells)), PACKAGE, NOT_KEYED).values())
        ),  # wherever it stands
        "claims": claims.entries(name, root),
        "parameters": [profile, backend, device, seed, overrides],
        "versions": [
            versions["hgcore"],
            *(".".join(versions[library].split(".")[:2]) for library in ("numpy", "torch")),
        ],
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def done(
    name: str, profile: str, backend: str, device: str, seed: int, overrides: dict, root: Path
) -> bool:
    """Whether a run of this content stands complete: every sibling's record, pictures as recorded,
    no claim that FAILS (without overrides).
    """
    wanted, folder = (
        key(name, profile, backend, device, seed, overrides, root),
        destination(name, profile, overrides, root),
    )
    found = [
        record
        for record in _folder(folder)
        if record["key"] == wanted and record["notebook"] == name
    ]
    siblings = {sibling for record in found for sibling in record["siblings"]}
    return (
        bool(found)
        and siblings == {record["figure"] for record in found}
        and all(_intact(record, folder) for record in found)
        and (
            bool(overrides)
            or not any(
                claim["verdict"] == "FAILS" for record in found for claim in record["claims"]
            )
        )
    )


def records(root: Path) -> list[dict]:
    """The records below figures/, by figure, paper before quick."""
    found = [
        record
        for folder in sorted({file.parent for file in (Path(root) / "figures").rglob("*.json")})
        for record in _folder(folder)
    ]
    return sorted(found, key=lambda record: (record["figure"], record["profile"]))


def fresh(record: dict, root: Path, versions: dict | None = None) -> bool:
    """Whether a record's notebook, package and pictures are still those of its run; with `versions`
    as they were in it, whatever is installed.
    """
    asked = [record[field] for field in ("profile", "backend", "device", "seed", "overrides")]
    folder = destination(record["notebook"], record["profile"], record["overrides"], root)
    return (
        path(record["notebook"], root).exists()
        and _intact(record, folder)
        and key(record["notebook"], *asked, root, versions) == record["key"]
    )


# ---- details


def _plain(source: str) -> str:
    """The source of a cell; where it is no plain Python (magics), code that could call anything in
    the package.
    """
    try:
        ast.parse(source)
    except SyntaxError:
        parts = sorted(file.parent.name for file in PACKAGE.glob("*/__init__.py"))
        imports = [PACKAGE.name, *(f"{PACKAGE.name}.{part}" for part in parts)]
        return "\n".join([*(f"import {name}" for name in imports), *imports])
    return source


def _table(node: ast.AST | None, profile: str) -> dict[str, object]:
    if (
        isinstance(node, ast.Call)
        and ast.unparse(node.func) == "dict"
        and not node.args
        and all(word.arg for word in node.keywords)
    ):
        return {word.arg: _literal(word.value) for word in node.keywords}
    if isinstance(node, ast.Dict) and all(isinstance(name, ast.Constant) for name in node.keys):
        return {
            name.value: _literal(value) for name, value in zip(node.keys, node.values, strict=True)
        }
    raise ValueError(
        f"write the scale table inside profiles.start as {profile}=dict(name=value, ...): "
        "it is read without running the notebook"
    )


def _literal(node: ast.AST) -> object:
    try:
        return ast.literal_eval(node)
    except ValueError:
        return ...


def _folder(folder: Path) -> list[dict]:
    return [record for file in sorted(folder.glob("*.json")) if (record := _loaded(file))]


def _loaded(file: Path) -> dict | None:
    """The record in `file`; None if it is none, whatever else it may be."""
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    whole = isinstance(record, dict) and set(record) >= RECORD
    return (
        record
        if whole and isinstance(record["siblings"], list) and isinstance(record["claims"], list)
        else None
    )


def _intact(record: dict, folder: Path) -> bool:
    stem = record["figure"].rpartition("/")[2]
    return set(record["products"]) == {"png", "pdf"} and all(
        _sha256(folder / f"{stem}.{suffix}") == recorded
        for suffix, recorded in record["products"].items()
    )


def _sha256(file: Path) -> str | None:
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else None
