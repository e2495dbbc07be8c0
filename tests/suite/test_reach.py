"""What a notebook can reach in the package: enough, by looking at what runs, and no more than it names."""

import sys
from pathlib import Path

import pytest

from hgcore import benchmarks, papers  # noqa: F401  so that no import is watched
from hgcore.suite import notebook
from hgcore.suite.reach import reached

ROOT = Path(__file__).parents[2]


def package(folder, **modules):
    (folder / "lib").mkdir()
    for name, source in modules.items():
        (folder / "lib" / f"{name}.py").write_text(source)
    return folder / "lib"


@pytest.mark.parametrize(
    "source, expected",
    [
        ("import lib\nlib.f()", "a:f a:g b:ONE"),
        ("import lib as x\nx.a.g(2)", "a:g b:ONE"),
        ("from lib import b", ""),
        ("from lib import b\nb.ONE", "b:ONE"),
        ("from lib.b import TWO as two\nprint(two)", "b:ONE b:TWO"),
        ("from lib import b\nx = b", "b:ONE b:TWO b:Kind b:Kind.method b:Kind.other b:Based"),
        ("import lib.b\nlib.b.Kind().method()", "b:Kind b:Kind.method b:TWO b:ONE"),
        ("import lib.b\nlib.b.Kind()", "b:Kind"),
        (
            "import lib.b\ngetattr(lib.b.Kind(), 'other')",
            "b:Kind b:Kind.other b:Kind.method b:TWO b:ONE",
        ),
        ("import lib.b\nlib.b.Based()", "b:Based b:Kind b:TWO b:ONE"),
        ("import lib\nlib.made_at_run_time", "a:f a:g b:ONE"),
        ("import lib\nlib.late()", "a:late b:ONE"),
        ("import lib\nlib.tool.anything()", ""),
        ("def f():\n    import lib\n    return lib.b.ONE", "b:ONE"),
        ("x = ONE", ""),
        ("from lib.c import local\nlocal()", "c:local"),
        ("from lib.c import mixed\nmixed()", "c:mixed c:g"),
    ],
)
def test_definitions_are_followed_by_name(tmp_path, source, expected):
    lib = package(
        tmp_path,
        __init__="from lib import b, tool\nfrom lib.a import f, late\n",
        tool="x = 1\n",
        a="from lib import b, tool\ndef f():\n    return g(1)\ndef g(x):\n    return b.ONE\n"
        "def late():\n    from lib.b import ONE\n    return ONE, tool.x\n",
        c="g = 2\ndef local(g):\n    return [g for _ in g]\ndef mixed():\n    def f():\n        g = 1\n        return g\n    return f, g\n",
        b="ONE = 1\nTWO = ONE + 1\nclass Kind:\n    @property\n    def method(self):\n        return TWO\n\n    def other(self):\n        return self.method\n"
        "class Based(Kind):\n    def more(self):\n        return ONE + TWO\n",
    )
    found = set(reached(source, lib, {"tool.py"}))
    wanted = {f"lib.{place}" for place in expected.split()}
    assert found == wanted if "made_at_run_time" not in source else wanted <= found


def test_what_a_module_does_outside_of_definitions_counts_with_anything_in_it(tmp_path):
    lib = package(
        tmp_path, __init__="", a="import sys\nX = {}\nX.update(a=1)\nif X:\n    sys.argv\n"
    )
    assert reached("from lib.a import X\nX", lib, set()) == {
        "lib.a:": "X.update(a=1)\nif X:\n    sys.argv",
        "lib.a:X": "X = {}",
    }


@pytest.mark.parametrize(
    "name",
    [
        "00_tour",
        "maclaurin2015/fig01_meta_trajectories",
        "maclaurin2015/fig04_initial_hypergradient",
    ],
)
def test_nothing_else_is_called_when_a_notebook_runs(name, tmp_path, monkeypatch):
    cells = notebook.source_cells(notebook.read(name, ROOT))
    keyed = reached("\n".join(cells), notebook.PACKAGE, notebook.NOT_KEYED)
    for part in ("notebooks", "pyproject.toml"):
        (tmp_path / part).symlink_to(ROOT / part)
    monkeypatch.setenv("HGCORE_ROOT", str(tmp_path))
    called, scope = (
        set(),
        {"profile": "quick", "backend": "torch", "device": "cpu", "seed": 0, "overrides": {}},
    )

    def watch(frame, event, _):
        if event == "call" and (module := frame.f_globals.get("__name__", "")).startswith(
            "hgcore."
        ):
            called.add((module, *frame.f_code.co_qualname.split(".")[:2]))

    sys.setprofile(watch)
    try:
        for cell in cells:
            exec(compile(cell, name, "exec"), scope)
    finally:
        sys.setprofile(None)
    outside = {f"hgcore.suite.{Path(file).stem}" for file in notebook.NOT_KEYED}
    apart = {
        place.rpartition(".")[0] for place in keyed if "." in place.split(":")[1]
    }  # classes of which the methods count one by one
    missed = set()
    for module, first, *method in called:
        place = f"{module}:{first}"
        if module not in outside and first.isidentifier() and not first.startswith("__"):
            missed.add(
                f"{place}.{method[0]}"
                if place in apart and method and method[0].isidentifier() and method[0][:2] != "__"
                else place
            )
    missed -= set(keyed)
    assert missed <= {"hgcore.data.files:used"}  # the list of files read, for the record
    assert len(called) > 30
