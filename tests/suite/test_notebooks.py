"""Notebooks as files."""

import json

import pytest

from hgcore.suite import notebooks


def change(toy, cell, source):
    file = notebooks.path("toy/one", toy.root)
    nb = json.loads(file.read_text())
    next(c for c in nb["cells"] if c["id"] == cell)["source"] = source
    file.write_text(json.dumps(nb))


def test_select(toy):
    for name in ("fig01_one", "fig02_two", "_draft"):
        toy.add(name)
    one, two = both = ["toy/fig01_one", "toy/fig02_two"]
    for words, found in (
        ([], both),
        (["fig01"], [one]),
        (["*two"], [two]),
        (["toy"], both),
        (["notebooks/toy/fig02_two.ipynb", "fig02"], [two]),
    ):
        assert notebooks.select(words, toy.root) == found
    with pytest.raises(ValueError, match="did you mean fig01_one"):
        notebooks.select(["fig1_one"], toy.root)


def test_key_depends_on_code_parameters_and_data(toy):
    toy.add("one")

    def key(profile="quick", **data):
        return notebooks.key("toy/one", {"profile": profile}, data, toy.root)

    keys = [key(), key("paper"), key(file="sha")]
    change(toy, "parameters", "profile = 'other'")  # papermill replaces that cell
    assert key() == keys[0]
    change(toy, "compute", "value = 0.5")
    assert len({*keys, key()}) == 4


def test_key_depends_on_the_scale_table_of_its_profile(toy):
    toy.add("one")
    start = "run = suite.start(\n    profile,\n    quick=dict(n=1),\n    paper=dict(\n        n={},\n    ),\n)"
    keys = {}
    for n in (10, 20):
        change(toy, "compute", start.format(n))
        for profile in ("quick", "paper"):
            keys[profile, n] = notebooks.key("toy/one", {"profile": profile}, {}, toy.root)
    assert keys["quick", 10] == keys["quick", 20] and len(set(keys.values())) == 3


def test_normalized_is_idempotent(toy):
    toy.add("one")
    nb = notebooks.read(notebooks.path("toy/one", toy.root))
    text = {"output_type": "stream", "name": "stdout", "text": "a\n"}
    result = {"output_type": "execute_result", "data": {}, "metadata": {"x": 1}}
    outputs = [text, text | {"name": "stderr"}, text, result | {"execution_count": 9}]
    nb["cells"][1] |= {"outputs": outputs, "metadata": {"papermill": {}, "tags": []}}
    nb["cells"].insert(1, {**nb["cells"][0], "metadata": {"tags": ["injected-parameters"]}})
    once = notebooks.normalized(nb)
    assert notebooks.normalized(once) == once and len(once["cells"]) == 5
    stream, result = once["cells"][1]["outputs"]
    assert stream["text"] == "a\na\n" and result["execution_count"] == 2


@pytest.mark.parametrize("content", ["{", "[]", '{"cells": 3}'])
def test_not_a_notebook(toy, content):
    file = notebooks.path("toy/one", toy.root)
    file.write_text(content)
    with pytest.raises(ValueError, match=r"one\.ipynb is not a notebook"):
        notebooks.read(file)


def test_copy_has_a_name_of_its_own(toy, run):
    toy.add("one")
    assert run("copy", "one", "mine")[0] == 0
    assert "own/mine" in notebooks.code("own/mine", toy.root)[0]
    status, text = run("copy", "one", "mine")
    assert status == 2 and "exists" in text
    assert run("copy", "one", "../x")[0] == 2
