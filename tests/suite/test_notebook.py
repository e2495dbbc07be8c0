"""Notebook files: read without running, committed without noise, and tied to their records by content."""

import copy
import json

import nbformat
import pytest
import yaml
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from hgcore.suite import figures, notebook

PARAMETERS = 'profile: str = "quick"  # quick or paper\nseed: int = 0  # base random seed\noverrides: dict = {}  # any name of the table'
SETUP = (
    "import hgcore as hg\nfrom hgcore.suite import profiles\n"
    'run = profiles.start("some2015/fig01", profile=profile, seed=seed, overrides=overrides,\n'
    '    quick=dict(steps=3, rate=2**-3, names=["a"]), paper={"steps": 50, "rate": -0.5, "names": ["a", "b"]})'
)
ASKED = dict(profile="quick", backend="torch", device="cpu", seed=0, overrides={})
NAME = "some2015/fig01"


def made(*sources, parameters=PARAMETERS):
    cells = [
        new_markdown_cell("# Title", id="title"),
        new_code_cell(parameters, id="parameters", metadata={"tags": ["parameters"]}),
    ]
    return new_notebook(
        cells=cells + [new_code_cell(source, id=f"cell-{i}") for i, source in enumerate(sources)]
    )


def put(nb, root, name=NAME):
    notebook.write(nb, notebook.path(name, root))


@pytest.fixture
def root(tmp_path):
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "hgcore"\nversion = "1.2"\n')
    put(made(SETUP, "x = 1"), tmp_path)
    return tmp_path


def recorded(root, figure="fig01", siblings=("fig01",), verdict="HOLDS", **asked):
    asked = ASKED | asked
    folder = notebook.destination(NAME, asked["profile"], asked["overrides"], root)
    products = {
        suffix: figures.write(folder / f"{figure}.{suffix}", f"{figure} {suffix}".encode())
        for suffix in ("png", "pdf")
    }
    record = asked | {
        "figure": f"some2015/{figure}",
        "siblings": [f"some2015/{name}" for name in siblings],
        "notebook": NAME,
        "key": notebook.key(NAME, **asked, root=root),
        "products": products,
        "claims": [{"id": "a", "verdict": verdict}],
    }
    figures.write(folder / f"{figure}.json", json.dumps(record).encode())
    return record


# ---- where


def test_the_root_is_found_from_below_or_told(root, monkeypatch, tmp_path_factory):
    monkeypatch.delenv("HGCORE_ROOT", raising=False)
    assert notebook.find_root(root / "notebooks" / "some2015") == root.resolve()
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    with pytest.raises(FileNotFoundError, match="HGCORE_ROOT"):
        notebook.find_root(elsewhere)
    monkeypatch.setenv("HGCORE_ROOT", str(root))
    monkeypatch.chdir(elsewhere)
    assert notebook.find_root() == root.resolve()
    for wrong in (elsewhere, root / "notebooks"):
        monkeypatch.setenv("HGCORE_ROOT", str(wrong))
        with pytest.raises(FileNotFoundError, match=f"HGCORE_ROOT is {wrong}, where there is no"):
            notebook.find_root()


def test_discover_skips_what_is_nobodys(root):
    for name in ("00_tour", "some2015/.ipynb_checkpoints/fig01-checkpoint", "_draft", "a2/b"):
        put(made(), root, name)
    assert notebook.discover(root) == ["00_tour", "a2/b", "some2015/fig01"]


@pytest.mark.parametrize(
    "name, profile, overrides, folder",
    [
        (NAME, "paper", {}, "figures/some2015"),
        (NAME, "quick", {}, "figures/quick/some2015"),
        ("00_tour", "paper", {}, "figures/tour"),
        (NAME, "paper", {"steps": 1}, "runs/overrides/paper/some2015"),
    ],
)
def test_destination(tmp_path, name, profile, overrides, folder):
    assert notebook.destination(name, profile, overrides, tmp_path) == tmp_path / folder


# ---- what it says


def test_parameters_and_scale_are_read_without_running(root):
    nb = notebook.read(NAME, root)
    assert notebook.parameters(nb) == {"profile": "quick", "seed": 0, "overrides": {}}
    assert notebook.scale(nb) == {
        "quick": {"steps": 3, "rate": ..., "names": ["a"]},
        "paper": {"steps": 50, "rate": -0.5, "names": ["a", "b"]},
    }


@pytest.mark.parametrize(
    "source", ["seed = 0", "seed: int", "import os", "seed: int = 0\nprint(seed)"]
)
def test_parameters_are_annotated_assignments(root, source):
    with pytest.raises(ValueError, match="write each parameter as"):
        notebook.parameters(made(parameters=source))


def test_there_is_one_parameters_cell():
    with pytest.raises(ValueError, match="exactly one cell tagged parameters, this one has 0"):
        notebook.parameters(new_notebook(cells=[new_code_cell("seed: int = 0")]))


@pytest.mark.parametrize(
    "source, message",
    [
        ("%matplotlib inline", "no profiles.start"),
        ("profiles.start('a', quick=table, paper=table)", "write the scale table"),
        ("profiles.start('a', quick=dict(a=1))", "as paper=dict"),
        ("profiles.start('a', quick=dict(**a), paper={})", "as quick=dict"),
    ],
)
def test_a_scale_that_cannot_be_read_is_refused(source, message):
    with pytest.raises(ValueError, match=message):
        notebook.scale(made(source))


def test_no_json_no_notebook(root):
    notebook.path(NAME, root).write_text('{"cells": [')
    with pytest.raises(ValueError, match="fig01.ipynb is no notebook"):
        notebook.read(NAME, root)


# ---- the committed form


def executed():
    nb = made(SETUP, "x", "", "boom")
    nb.metadata = {
        "papermill": {"duration": 3},
        "kernelspec": {"name": "mine"},
        "language_info": {"name": "python", "version": "3.11.7"},
    }
    banner = new_markdown_cell("failed", metadata={"tags": ["papermill-error-cell-tag"]})
    injected = new_code_cell("seed = 3", metadata={"tags": ["injected-parameters"]})
    nb.cells = [banner, *nb.cells[:2], injected, *nb.cells[2:]]
    for count, cell in enumerate((cell for cell in nb.cells if cell.cell_type == "code"), 7):
        cell.execution_count = count
        cell.metadata |= {"papermill": {"status": "completed"}, "execution": {}}
    nb.cells[4].outputs = [
        new_output("stream", name="stdout", text="a\n"),
        new_output("stream", name="stderr", text="50 %"),
        new_output("stream", name="stdout", text="b\n"),
        new_output("stream", name="stdout", text="c\n"),
    ]
    nb.cells[5].outputs = [
        new_output(
            "execute_result", data={"text/plain": "1"}, execution_count=9, metadata={"x": 1}
        ),
        new_output(
            "display_data", data={"image/png": "aGk=\n"}, metadata={"needs_background": "light"}
        ),
    ]
    return nb


def test_normalise_drops_the_noise_and_keeps_the_rest():
    nb = executed()
    before = copy.deepcopy(nb)
    clean = notebook.normalise(nb)
    assert nb == before and isinstance(clean, nbformat.NotebookNode)
    nbformat.validate(nbformat.from_dict(clean))
    assert clean["metadata"] == notebook_metadata()
    assert [cell["id"] for cell in clean["cells"]] == [
        "title",
        "parameters",
        "cell-0",
        "cell-1",
        "cell-3",
    ]
    assert [cell.get("execution_count") for cell in clean["cells"]] == [None, 1, 2, 3, 4]
    assert [cell["metadata"] for cell in clean["cells"]] == [
        {},
        {"tags": ["parameters"]},
        {},
        {},
        {},
    ]
    assert [output["text"] for output in clean["cells"][2]["outputs"]] == ["a\nb\nc\n"]
    assert clean["cells"][3]["outputs"][0]["execution_count"] == 3
    assert all(output["metadata"] == {} for output in clean["cells"][3]["outputs"])


def notebook_metadata():
    return {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }


def test_normalise_is_a_no_op_on_its_own_result(tmp_path):
    clean = notebook.normalise(executed())
    assert notebook.normalise(clean) == clean
    notebook.write(clean, tmp_path / "a.ipynb")
    text = (tmp_path / "a.ipynb").read_bytes()
    notebook.write(notebook.normalise(nbformat.read(tmp_path / "a.ipynb", 4)), tmp_path / "a.ipynb")
    assert (tmp_path / "a.ipynb").read_bytes() == text and text.endswith(b"}\n")


def test_an_invalid_notebook_is_not_written(tmp_path):
    nb = made()
    nb.cells[0]["cell_type"] = "odd"
    with pytest.raises(nbformat.ValidationError):
        notebook.write(nb, tmp_path / "a.ipynb")
    assert not list(tmp_path.iterdir())


# ---- the key


def keyed(root, **asked):
    return notebook.key(NAME, **ASKED | asked, root=root)


def packaged(tmp_path_factory, monkeypatch, **modules):
    """A package hgcore of these modules and what SETUP calls, in place of the true one."""
    package = tmp_path_factory.mktemp("lib") / "hgcore"
    (package / "suite").mkdir(parents=True)
    (package / "suite" / "__init__.py").touch()
    (package / "suite" / "profiles.py").write_text("def start():\n    pass\n")
    for name, source in modules.items():
        (package / f"{name}.py").write_text(source)
    (package / "__init__.py").write_text(
        "".join(f"from hgcore import {name}\n" for name in modules)
    )
    monkeypatch.setattr(notebook, "PACKAGE", package)
    return package


def test_the_key_holds_what_a_figure_depends_on(root, tmp_path_factory, monkeypatch):
    package = packaged(tmp_path_factory, monkeypatch, solvers="a = 1\n", report="a = 1\n")
    put(made(SETUP, "hg.solvers.a"), root)
    seen = [keyed(root)]
    for asked in (
        {"profile": "paper"},
        {"backend": "autograd"},
        {"device": "cuda"},
        {"seed": 1},
        {"overrides": {"steps": 3}},
    ):
        seen.append(keyed(root, **asked))
    put(made(SETUP, "x = hg.solvers.a"), root)
    seen.append(keyed(root))
    (package / "solvers.py").write_text("a = 2\n")
    seen.append(keyed(root))
    entry = {
        "id": "a",
        "notebook": NAME,
        "figure": "fig01",
        "statement": "s",
        "place": "p",
        "paper": {"value": 1, "known": "read off a plot"},
        "accept": {"quick": {"max": 1}},
    }
    (root / "notebooks" / "some2015" / "claims.yml").write_text(yaml.safe_dump([entry]))
    seen.append(keyed(root))
    (root / "pyproject.toml").write_text('[project]\nversion = "1.3"\n')
    seen.append(keyed(root))
    assert len(set(seen)) == len(seen)


def test_the_key_holds_nothing_else(root, tmp_path_factory, monkeypatch):
    package = packaged(tmp_path_factory, monkeypatch, solvers="def f():\n    return 1\n")
    put(made(SETUP, "x = hg.solvers.f()"), root)
    before = keyed(root)
    (package / "solvers.py").write_text(
        '"""A file."""\ndef g():\n    pass\n\ndef f():\n    """Words.\n\n    More."""\n    # why\n    return 1  # so\n'
    )
    (package / "solvers.py").rename(package / "moved.py")
    (package / "__init__.py").write_text("from hgcore import moved as solvers\n")
    (package / "report.py").write_text("a = 2\n")
    nb = made(
        SETUP,
        "# a comment\nx = hg.solvers.f()  # one",
        parameters=PARAMETERS.replace("base", "some"),
    )
    nb.cells[0].source = "# Another title"
    nb.cells[2].update(execution_count=3, outputs=[new_output("stream", text="out")])
    nb.cells.append(new_code_cell(" "))
    nb.cells.insert(2, new_code_cell("seed = 9", metadata={"tags": ["injected-parameters"]}))
    put(nb, root)
    other = {
        "id": "a",
        "notebook": "some2015/fig02",
        "figure": "fig02",
        "statement": "s",
        "place": "p",
        "paper": {"value": 1, "known": "read off a plot"},
        "accept": {"quick": {"max": 1}},
    }
    (root / "notebooks" / "some2015" / "claims.yml").write_text(yaml.safe_dump([other]))
    assert keyed(root) == before


# ---- done


def test_done_until_something_changes(root):
    assert not notebook.done(NAME, **ASKED, root=root)
    record = recorded(root)
    assert notebook.done(NAME, **ASKED, root=root) and notebook.fresh(record, root)
    assert not notebook.done(NAME, **ASKED | {"seed": 1}, root=root)
    put(made(SETUP, "x = 2"), root)
    assert not notebook.done(NAME, **ASKED, root=root) and not notebook.fresh(record, root)
    notebook.path(NAME, root).unlink()
    assert not notebook.fresh(record, root)


@pytest.mark.parametrize("suffix", ["png", "pdf"])
def test_killed_between_picture_and_record(root, suffix):
    record = recorded(root)
    picture = notebook.destination(NAME, "quick", {}, root) / f"fig01.{suffix}"
    picture.write_bytes(b"of the next run")
    assert not notebook.done(NAME, **ASKED, root=root) and not notebook.fresh(record, root)
    picture.unlink()
    assert not notebook.done(NAME, **ASKED, root=root)


def test_all_siblings_or_none(root):
    recorded(root, "fig01", ("fig01", "fig02"))
    assert not notebook.done(NAME, **ASKED, root=root)
    recorded(root, "fig02", ("fig01", "fig02"))
    assert notebook.done(NAME, **ASKED, root=root)
    (notebook.destination(NAME, "quick", {}, root) / "fig02.json").write_text(
        '{"figure": "some2015/fig02", "sib'
    )
    assert not notebook.done(NAME, **ASKED, root=root)


def test_an_orphan_of_an_older_run_does_not_stand_in_the_way(root):
    recorded(root, "fig00", ("fig00",))
    put(made(SETUP, "x = 3"), root)
    recorded(root)
    assert notebook.done(NAME, **ASKED, root=root)


def test_a_claim_that_fails_is_not_done(root):
    recorded(root, verdict="FAILS")
    assert not notebook.done(NAME, **ASKED, root=root)
    recorded(root, verdict="FAILS", overrides={"steps": 1})
    assert notebook.done(
        NAME, **ASKED | {"overrides": {"steps": 1}}, root=root
    )  # the user's own experiment


def test_records_of_both_profiles_without_the_users_own(root):
    recorded(root)
    recorded(root, profile="paper")
    recorded(root, overrides={"steps": 1})
    (root / "figures" / "some2015" / "broken.json").write_text("{")
    (root / "figures" / "some2015" / "other.json").write_text("[]")
    assert [record["profile"] for record in notebook.records(root)] == ["paper", "quick"]
