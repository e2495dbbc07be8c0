"""One execution of a notebook: its scale, its backend, and the record that it leaves."""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import platform
import re
import subprocess
import time
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import SimpleNamespace

import numpy as np

import hgcore as hg
from hgcore.checkpoint import write_atomically
from hgcore.data import used
from hgcore.suite import figures, notebooks

PROFILES = ("quick", "reduced", "paper")
LIBRARIES = ("numpy", "torch", "autograd", "matplotlib")
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")


@dataclass(frozen=True)
class Run:
    """A running notebook. scale: the table of its profile; figures: what suite.save was given."""

    name: str
    profile: str
    backend_name: str
    device: str
    seed: int
    overrides: dict
    scale: SimpleNamespace
    root: Path
    first_input: int | None  # of the kernel's inputs, the cell that called suite.start
    clock: float = field(default_factory=time.perf_counter)
    figures: dict = field(default_factory=dict)

    @cached_property
    def backend(self):
        """The backend, made at first use; float64 unless the scale table has another dtype."""
        return make_backend(self.backend_name, self.device, getattr(self.scale, "dtype", "float64"))

    @property
    def parameters(self) -> dict:
        """What papermill was given."""
        given = {"profile": self.profile, "backend": self.backend_name, "device": self.device}
        return given | {"seed": self.seed, "overrides": self.overrides}

    @property
    def folder(self) -> Path:
        """Where the figures and the record go: below runs/ unless it is the committed notebook."""
        own = "overrides" if self.overrides else "" if self._as_saved else "unsaved"
        if own:
            print(f"{own}: figures and record go to runs/{own}, not to figures/")
        out = Path(os.environ.get("HGCORE_OUT", self.root))
        return folder_of(self.name, self.profile, out, own)

    @property
    def _as_saved(self) -> bool:
        """Whether the cells executed since suite.start are those of the file, in order."""
        if self.first_input is None:
            return False
        executed = [source.strip() for source in _inputs()[self.first_input :] if source.strip()]
        return executed == notebooks.code(self.name, self.root)[: len(executed)]

    def write_record(self, claims: list[dict]) -> None:
        """Write all figures of the run, then its record."""
        if not self.figures:
            raise ValueError(f"{self.name} saved no figure: call suite.save before suite.check")
        folder, data = self.folder, used()
        for name, saved in self.figures.items():
            for suffix, content in saved.files.items():
                write_atomically(folder / f"{name}.{suffix}", content)
        record = {
            "notebook": self.name,
            **self.parameters,
            "key": notebooks.key(self.name, self.parameters, data, self.root),
            "data": data,
            "commit": _commit(self.root, notebooks.path(self.name, self.root)),
            "seconds": round(time.perf_counter() - self.clock, 1),
            "device_name": _device_name(self.device),
            "versions": {"python": platform.python_version(), "hgcore": hg.__version__}
            | {library: installed(library) for library in LIBRARIES},
            "threads": {name: os.environ.get(name) for name in THREADS},
            "claims": claims,
            "figures": {name: saved.entry for name, saved in self.figures.items()},
        }
        name = f"{self.name.rpartition('/')[2]}.json"
        write_atomically(folder / name, as_text(record | {"digest": digest(record)}).encode())


def make_backend(name: str, device: str = "cpu", dtype: str = "float64"):
    """Return hg.Torch(device, dtype), or hg.Autograd() for the name "autograd"."""
    if name == "torch":
        return hg.Torch(device, dtype)
    if (device, dtype) != ("cpu", "float64"):
        found = f"got {device}, {dtype}; use backend torch"
        raise ValueError(f"the autograd backend runs on cpu in float64, {found}")
    return hg.Autograd()


def start(
    name: str,
    profile: str,
    backend: str,
    device: str,
    seed: int,
    overrides: dict,
    *,
    quick: dict,
    paper: dict,
    reduced: dict | None = None,
) -> Run:
    """Check the parameters, set the style, print the scale table; return the run.

    quick, reduced, paper: the settings of each profile, the same names in all. Raises ValueError
    that names what is wrong.
    """
    tables = {"quick": quick, "reduced": reduced, "paper": paper}
    tables = {name: table for name, table in tables.items() if table is not None}
    root = notebooks.find_root()
    _require("profile", profile, list(tables))
    _require("backend", backend, ["torch", "autograd"])
    _require("device", device, ["cpu", "cuda"])
    _require("notebook", name, notebooks.discover(root))
    if type(seed) is not int or seed < 0:
        raise ValueError(f"seed must be an integer >= 0, got {seed!r}")
    scale = _overridden(tables, profile, overrides)
    _print_table(tables | {"this run": scale})
    figures.use_style()
    np.set_printoptions(precision=4, suppress=True)
    inputs = _inputs()
    first = len(inputs) - 1 if inputs else None
    table = SimpleNamespace(**scale)
    return Run(name, profile, backend, device, seed, overrides, table, root, first)


def _require(what: str, value, allowed: list) -> None:
    if value not in allowed:
        close = difflib.get_close_matches(str(value), allowed, n=1)
        meant = f", meant {close[0]}?" if close else ""
        raise ValueError(f"{what} must be one of {', '.join(allowed)}; got {value!r}{meant}")


def _overridden(tables: dict, profile: str, overrides: dict) -> dict:
    names = list(tables["quick"])
    for other, table in tables.items():
        if set(table) != set(names):
            raise ValueError(f"{other} and quick differ in {sorted(set(table) ^ set(names))}")
    for name, value in overrides.items():
        _require("override", name, names)
        kinds = {_kind(table[name]) for table in tables.values()}
        kinds |= {int} if float in kinds else set()
        if type(None) not in kinds and _kind(value) not in kinds:
            like = f"like {tables[profile][name]!r}"
            raise ValueError(f"override {name} must be {like}, got {value!r}")
    return tables[profile] | overrides


def _kind(value) -> type:
    return list if isinstance(value, tuple) else type(value)


def _print_table(columns: dict) -> None:
    rows = [["name", *columns]]
    rows += [[name, *(_shown(t[name]) for t in columns.values())] for name in columns["quick"]]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(map(str.ljust, row, widths)).rstrip())


def _shown(value) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def folder_of(name: str, profile: str, out: Path, own: str = "") -> Path:
    """Return the folder of a notebook's record and figures; own: of those below runs/."""
    group = name.split("/")[0] if "/" in name else "tour"
    if own:
        return out / "runs" / own / profile / group
    return out / "figures" / ("" if profile == "paper" else profile) / group


def digest(record: dict) -> str:
    """Return the SHA-256 of a record without its digest."""
    rest = {name: value for name, value in record.items() if name != "digest"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def as_text(record: dict) -> str:
    """Return indented JSON with each innermost list on one line."""
    text = json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False)
    innermost = re.compile(r"\[\n *([^][{}]*?)\n *\]")
    return innermost.sub(lambda m: f"[{re.sub(chr(10) + ' *', ' ', m[1])}]", text) + "\n"


def _inputs() -> list[str]:
    """Return what the kernel executed, the running cell last; nothing outside of a kernel."""
    try:
        from IPython import get_ipython
    except ImportError:
        return []
    shell = get_ipython()
    return list(shell.history_manager.input_hist_raw) if shell else []


def installed(library: str) -> str:
    """Return the version of a library, `absent` without it."""
    try:
        return version(library)
    except PackageNotFoundError:
        return "absent"


def _commit(root: Path, notebook: Path) -> str:
    """Return the commit, with -dirty if the package or the notebook differ from it."""
    git, of = ["git", "-C", str(root)], ["--", "hgcore", str(notebook)]
    try:
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True)
        changed = subprocess.run([*git, "diff", "--quiet", "HEAD", *of], capture_output=True)
    except OSError:
        return "unknown"
    dirty = "-dirty" if changed.returncode == 1 else ""
    return head.stdout[:12] + dirty if head.stdout else "unknown"


def _device_name(device: str) -> str:
    if device == "cuda":
        import torch

        return torch.cuda.get_device_name()
    file = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.*)", file.read_text() if file.exists() else "")
    return names[0] if names else platform.processor() or platform.machine()
