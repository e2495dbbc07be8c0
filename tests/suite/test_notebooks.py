"""Notebooks as files."""

import json

import pytest

from hgcore.suite import cli, notebooks


def change(toy, name, cell, source):
    file = notebooks.path(name, toy.root)
    nb = json.loads(file.read_text())
    nb["cells"][[c["id"] for c in nb["cells"]].index(cell)]["source"] = source
    file.write_text(json.dumps(nb))


def test_select(toy):
    for name in ("fig01_one", "fig02_two", "_draft"):
        toy.add(name)
    both = ["toy/fig01_one", "toy/fig02_two"]
    for words, found in (
        ([], both),
        (["fig01"], both[:1]),
        (["*two"], both[1:]),
        (["toy"], both),
        (["notebooks/toy/fig02_two.ipynb", "fig02"], both[1:]),
    ):
        assert notebooks.select(words, toy.root) == found
    with pytest.raises(ValueError, match="did you mean fig01_one"):
        notebooks.select(["fig1_one"], toy.root)


def test_key_depends_on_code_parameters_and_data(toy):
    toy.add("one")
    parameters = {"profile": "quick"}
    keys = [notebooks.key("toy/one", parameters, {}, toy.root)]
    change(toy, "toy/one", "parameters", "profile = 'other'")  # papermill replaces that cell
    assert notebooks.key("toy/one", parameters, {}, toy.root) == keys[0]
    keys.append(notebooks.key("toy/one", {"profile": "paper"}, {}, toy.root))
    keys.append(notebooks.key("toy/one", parameters, {"file": "sha"}, toy.root))
    change(toy, "toy/one", "compute", "value = 0.5")
    keys.append(notebooks.key("toy/one", parameters, {}, toy.root))
    assert len(set(keys)) == 4


def test_normalized_is_idempotent(toy):
    toy.add("one")
    nb = notebooks.read("toy/one", toy.root)
    text = {"output_type": "stream", "name": "stdout", "text": "a\n"}
    result = {"output_type": "execute_result", "data": {}, "metadata": {"x": 1}}
    nb["cells"][1] |= {
        "outputs": [text, text | {"name": "stderr"}, text, result | {"execution_count": 9}],
        "metadata": {"papermill": {}, "tags": []},
    }
    nb["cells"].insert(1, {**nb["cells"][0], "metadata": {"tags": ["injected-parameters"]}})
    once = notebooks.normalized(nb)
    assert notebooks.normalized(once) == once and len(once["cells"]) == 5
    assert once["cells"][1]["outputs"][0]["text"] == "a\na\n"
    assert once["cells"][1]["outputs"][1]["execution_count"] == 2


def test_not_a_notebook(toy):
    file = notebooks.path("toy/one", toy.root)
    for content in ("{", "[]", '{"cells": 3}'):
        file.write_text(content)
        with pytest.raises(ValueError, match=r"one\.ipynb is not a notebook"):
            notebooks.read("toy/one", toy.root)


def test_root_is_found(toy, monkeypatch, tmp_path):
    assert notebooks.find_root() == toy.root
    monkeypatch.delenv("HGCORE_ROOT")
    monkeypatch.chdir(toy.root / "notebooks")
    assert notebooks.find_root() == toy.root
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="set HGCORE_ROOT"):
        notebooks.find_root()


def test_copy_has_a_name_of_its_own(toy, capsys):
    toy.add("one")
    assert cli.main(["copy", "one", "mine"]) == 0
    assert "own/mine" in notebooks.code("own/mine", toy.root)[0]
    assert cli.main(["copy", "one", "mine"]) == 2 and "exists" in capsys.readouterr().err
    assert cli.main(["copy", "one", "../x"]) == 2
