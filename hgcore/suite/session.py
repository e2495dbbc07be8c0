"""One execution of a notebook: its scale, its backend, and the record that it leaves."""

import ast
import difflib
import json
import os
import platform
import re
import subprocess
import sys
import time
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import SimpleNamespace

import numpy as np

import hgcore as hg
from hgcore.checkpoint import write_atomically
from hgcore.data import find_root, used
from hgcore.suite import figures, notebooks

PROFILES = ("quick", "reduced", "paper")
LIBRARIES = ("numpy", "torch", "autograd", "matplotlib")
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")


@dataclass(frozen=True)
class Job:
    """One notebook with its parameters. update: write the outputs into notebooks/, too."""

    name: str
    profile: str = "quick"
    backend_name: str = "torch"
    device: str = "cpu"
    seed: int = 0
    overrides: dict = field(default_factory=dict)
    update: bool = False

    @property
    def parameters(self) -> dict:
        """What papermill is given."""
        given = {"profile": self.profile, "backend": self.backend_name, "device": self.device}
        return given | {"seed": self.seed, "overrides": self.overrides}

    @property
    def own(self) -> str:
        """The folder below runs/ of a copy, or of other settings; "" for figures/."""
        other = self.backend_name != "torch" or self.device != "cpu"
        changed = self.overrides or self.seed or other
        return "overrides" if changed else "own" if self.name.startswith("own/") else ""

    def folder(self, out: Path) -> Path:
        """Return the folder of figures and record; out: the repository or another for results."""
        group = self.name.split("/")[0] if "/" in self.name else "tour"
        if group == "own":
            group = self.name  # two copies of one notebook have figures of one name
        if own := self.own:
            return Path(out, "runs", own, self.profile, group)
        return Path(out, "figures", "" if self.profile == "paper" else self.profile, group)

    def record(self, out: Path) -> Path:
        """Return the file of the record."""
        return self.folder(out) / f"{self.name.rpartition('/')[2]}.json"

    def executed(self, out: Path) -> Path:
        """Return the file of the executed notebook; its log lies beside it."""
        return Path(out, "runs", self.own, self.profile, f"{self.name}.ipynb")


@dataclass(frozen=True, kw_only=True)
class Run(Job):
    """A running notebook.

    scale: the table of its profile; figures: by name (files by suffix, entry of the record).
    loops: the files from which its loops would resume.
    """

    scale: SimpleNamespace
    root: Path
    first_input: int | None  # of the kernel's inputs, the cell that called suite.start
    clock: float = field(default_factory=time.perf_counter)
    figures: dict = field(default_factory=dict)
    loops: set[Path] = field(default_factory=set)

    @cached_property
    def backend(self):
        """The backend, made at first use; float64 unless the scale table has another dtype."""
        return make_backend(self.backend_name, self.device, getattr(self.scale, "dtype", "float64"))

    @property
    def own(self) -> str:
        """As of a job; "unsaved" if the kernel ran other cells than the file's, or out of order."""
        if super().own or self.first_input is None:
            return super().own or "unsaved"
        cells, executed = notebooks.code(self.name, self.root), [x.strip() for x in inputs()]
        known = [x in cells or _sets_parameters(x) for x in executed[: self.first_input]]
        since = list(filter(None, executed[self.first_input :]))
        return "" if all(known) and since == cells[: len(since)] else "unsaved"

    def write_record(self, claims: list[dict]) -> None:
        """Write all figures of the run, then its record: not below figures/ if it is our own."""
        if not self.figures:
            raise ValueError(f"{self.name} saved no figure: call suite.save before suite.check")
        if own := self.own:
            cure = "; restart the kernel and run the saved cells in order" * (own == "unsaved")
            print(f"{own}: figures and record go to runs/{own}, not to figures/{cure}")
        file = self.record(Path(os.environ.get("HGCORE_OUT", self.root)))
        for name, (files, _) in self.figures.items():
            for suffix, content in files.items():
                write_atomically(file.with_name(f"{name}.{suffix}"), content)
        data = used()
        record = {
            "notebook": self.name,
            **self.parameters,
            "key": notebooks.key(self.name, self.parameters, data, self.root),
            "data": data,
            "commit": _commit(self.root, notebooks.path(self.name, self.root)),
            "seconds": round(time.perf_counter() - self.clock, 1),
            "device_name": self._device_name(),
            "versions": {"python": platform.python_version(), "hgcore": hg.__version__}
            | {library: installed(library) for library in LIBRARIES},
            "threads": {name: os.environ.get(name) for name in THREADS},
            "claims": claims,
            "figures": {name: entry for name, (_, entry) in self.figures.items()},
        }
        write_atomically(file, signed(record).encode())

    def _device_name(self) -> str:
        if self.device == "cuda":
            return self.backend.xp.cuda.get_device_name()
        file = Path("/proc/cpuinfo")
        names = re.findall(r"model name\s*: (.*)", file.read_text() if file.exists() else "")
        return names[0] if names else platform.processor() or platform.machine()


def _sets_parameters(source: str) -> bool:
    """Return whether a cell only gives literal values to the parameters of a notebook."""
    try:
        for one in ast.parse(source).body:
            (target,) = one.targets if isinstance(one, ast.Assign) else [one.target]
            ast.literal_eval(one.value)
            if target.id not in Job("").parameters:
                return False
    except (SyntaxError, ValueError, AttributeError):
        return False
    return True


def make_backend(name: str, device: str = "cpu", dtype: str = "float64"):
    """Return hg.Torch(device, dtype), or hg.Autograd() for the name "autograd"."""
    if name == "torch":
        return hg.Torch(device, dtype)
    if (device, dtype) != ("cpu", "float64"):
        found = f"got {device}, {dtype}; use backend torch"
        raise ValueError(f"the autograd backend runs on cpu in float64, {found}")
    return hg.Autograd()


def start(
    name: str, profile: str, backend: str, device: str, seed: int, overrides: dict, **tables: dict
) -> Run:
    """Check the parameters, set the style, print the scale table; return the run.

    tables: quick=, paper= and, where there is one, reduced=, the settings of each profile, the same
    names in all. Raises ValueError that names what is wrong.
    """
    for table in tables:
        _require("table", table, list(PROFILES))
    tables = {profile: tables[profile] for profile in PROFILES if profile in tables}
    root, executed = find_root(), inputs()
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
    parameters = name, profile, backend, device, seed, overrides
    first = len(executed) - 1 if executed else None
    return Run(*parameters, scale=SimpleNamespace(**scale), root=root, first_input=first)


def _require(what: str, value, allowed: list) -> None:
    if value not in allowed:
        close = difflib.get_close_matches(str(value), allowed, n=1)
        meant = f"; did you mean {close[0]}?" if close else ""
        raise ValueError(f"{what} must be one of {', '.join(allowed)}; got {value!r}{meant}")


def _overridden(tables: dict, profile: str, overrides: dict) -> dict:
    for other, table in tables.items():
        if odd := sorted(set(table) ^ set(tables[profile])):
            raise ValueError(f"{other} and {profile} differ in {odd}")
    for name, value in overrides.items():
        _require("override", name, list(tables[profile]))
        known = [table[name] for table in tables.values()]
        kinds = set(map(_kind, known))
        kinds |= {int} if float in kinds else set()
        if type(None) not in kinds and _kind(value) not in kinds:
            like = f"like {tables[profile][name]!r}"
            raise ValueError(f"override {name} must be {like}, got {value!r}")
        if all(map(_not_negative, known)) and not _not_negative(value):
            raise ValueError(f"override {name} must be neither negative nor empty, got {value!r}")
    return tables[profile] | overrides


def _kind(value) -> type:
    return list if isinstance(value, tuple) else type(value)


def _not_negative(value) -> bool:
    """Return whether a whole number is not negative, and a list not empty and of such."""
    if isinstance(value, (list, tuple)):
        return len(value) > 0 and all(map(_not_negative, value))
    return not isinstance(value, int) or value >= 0


def _print_table(columns: dict) -> None:
    rows = [["name", *columns]]
    for name in columns["this run"]:
        values = [table[name] for table in columns.values()]
        rows.append([name, *(f"{x:.6g}" if isinstance(x, float) else str(x) for x in values)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(map(str.ljust, row, widths)).rstrip())


def digest(record: dict) -> str:
    """Return the SHA-256 of a record without its digest."""
    return notebooks.sha256({name: x for name, x in record.items() if name != "digest"})


def signed(record: dict) -> str:
    """Return the record with its digest as indented JSON, each innermost list on one line."""
    record = record | {"digest": digest(record)}
    text = json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False)
    innermost = re.compile(r"\[\n *([^][{}]*?)\n *\]")
    return innermost.sub(lambda m: f"[{re.sub(chr(10) + ' *', ' ', m[1])}]", text) + "\n"


def inputs() -> list[str]:
    """Return what the kernel executed, the running cell last; nothing outside of a kernel."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
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
