"""The start of every notebook: which scale it runs at, on what, and where its figures go."""

import difflib
import os
import platform
import time
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from hgcore.data import used
from hgcore.suite import figures, notebook
from hgcore.suite.content import installed, version

PROFILES, BACKENDS, DEVICES, DTYPES = (
    ("quick", "paper"),
    ("torch", "autograd"),
    ("cpu", "cuda"),
    ("float64", "float32"),
)
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")


@dataclass(frozen=True)
class Run:
    """One execution of a notebook.

    `scale` holds the profile's table with the overrides applied; figures.save fills `figures`.
    """

    name: str
    profile: str
    backend_name: str
    device: str
    dtype: str
    seed: int
    overrides: dict
    scale: SimpleNamespace
    root: Path
    key: str
    threads: dict
    clock: float = field(default_factory=time.perf_counter)
    figures: dict = field(default_factory=dict)

    @cached_property
    def backend(self):
        """The backend, made on first use."""
        from hgcore.suite.backends import make

        return make(self.backend_name, self.device, self.dtype)

    @property
    def destination(self) -> Path:
        """The folder of this run's figures and records."""
        return notebook.destination(self.name, self.profile, self.overrides, self.root)

    def full(self, figure: str) -> str:
        """A figure's name with its paper."""
        return f"{notebook.paper(self.name)}/{figure}"

    def facts(self) -> dict:
        """What a record says about the run itself."""
        return {
            "notebook": self.name,
            "profile": self.profile,
            "backend": self.backend_name,
            "device": self.device,
            "device_name": _device_name(self.device),
            "dtype": self.dtype,
            "seed": self.seed,
            "overrides": self.overrides,
            "versions": {
                "python": platform.python_version(),
                "hgcore": version(self.root),
                **{
                    library: installed(library)
                    for library in ("numpy", "torch", "autograd", "matplotlib")
                },
            },
            "threads": self.threads,
            "data": used(),
            "key": self.key,
        }


def start(
    name: str,
    *,
    profile: str,
    backend: str,
    device: str,
    seed: int,
    overrides: dict,
    quick: dict,
    paper: dict,
) -> Run:
    """Check what was asked for, set style and print options, print the scale table; return the run.

    ValueError names what is wrong.
    """
    _known("profile", profile, PROFILES)
    _known("backend", backend, BACKENDS)
    _known("device", device, DEVICES)
    if backend == "autograd" and device != "cpu":
        raise ValueError(
            f"backend autograd runs on the cpu only, got device {device!r}; use backend torch there"
        )
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise ValueError(f"seed must be an integer from 0 up, got {seed!r}")
    root = notebook.find_root()
    _known("notebook", name, notebook.discover(root))
    table = apply({"quick": quick, "paper": paper}, profile, overrides)
    _known("dtype", dtype := table.get("dtype", "float64"), DTYPES)
    run = Run(
        name,
        profile,
        backend,
        device,
        dtype,
        seed,
        overrides,
        SimpleNamespace(**table),
        root,
        key=notebook.key(name, profile, backend, device, seed, overrides, root),
        threads=_pinned(backend),
    )
    figures.use()
    np.set_printoptions(precision=4, suppress=True)
    print(_printed(quick, paper, table))
    return run


def apply(scale: dict[str, dict], profile: str, overrides: dict) -> dict:
    """The table of `profile` with `overrides`; ValueError on a name that is not in it, or on
    another kind of value than its defaults.

    `scale` is {"quick": {...}, "paper": {...}}. A default of `...` (unknown) takes any kind, and so
    does None.
    """
    quick, paper = scale["quick"], scale["paper"]
    if set(quick) != set(paper):
        raise ValueError(
            "quick and paper must have the same names; "
            f"only one of them has {', '.join(sorted(set(quick) ^ set(paper)))}"
        )
    if not isinstance(overrides, dict):
        raise ValueError(f'overrides must be a dict such as {{"steps": 20}}, got {overrides!r}')
    for name, value in overrides.items():
        _known("override", name, sorted(quick))
        if not any(_alike(default, value) for default in (quick[name], paper[name])):
            raise ValueError(
                f"override {name} must be like its default {scale[profile][name]!r}, "
                f"got {value!r} ({type(value).__name__})"
            )
    return {**scale[profile], **overrides}


def _known(what: str, value, allowed) -> None:
    if value not in allowed:
        close = difflib.get_close_matches(str(value), allowed, n=1)
        raise ValueError(
            f"{what} must be one of {', '.join(allowed) or '(there are none)'}; "
            f"got {value!r}{f', meant {close[0]}?' if close else ''}"
        )


def _alike(default, value) -> bool:
    if default is None or default is ...:
        return True
    if isinstance(default, bool) or isinstance(value, bool):
        return isinstance(default, bool) and isinstance(value, bool)
    if isinstance(default, float):
        return isinstance(value, int | float)
    if isinstance(default, list | tuple):
        return isinstance(value, list | tuple) and all(
            not len(default) or any(_alike(one, part) for one in default) for part in value
        )
    return isinstance(value, type(default))


def _printed(quick: dict, paper: dict, table: dict) -> str:
    rows = [
        ("name", "quick", "paper", "this run"),
        *((name, *(_shown(column[name]) for column in (quick, paper, table))) for name in quick),
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def _shown(value) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _pinned(backend: str) -> dict:
    """The thread counts, torch's fixed to what it is: rewinding a run needs the same sums on the
    way back.
    """
    threads = {name: os.environ.get(name) for name in THREADS}
    if backend == "torch":
        import torch

        torch.set_num_threads(torch.get_num_threads())
        threads["torch"] = torch.get_num_threads()
    return threads


def _device_name(device: str) -> str:
    if device == "cuda":
        import torch

        return torch.cuda.get_device_name()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())
