"""Notebooks as files."""

import pytest

from hgcore.suite import notebooks


def test_select(toy):
    for name in ("fig01_one", "fig02_two", "_draft"):
        toy.add(name)
    one, two = "toy/fig01_one", "toy/fig02_two"
    last_two = ["notebooks/toy/fig02_two.ipynb", "fig02"]
    assert notebooks.select([], toy.root) == notebooks.select(["toy"], toy.root) == [one, two]
    for words, found in (["fig01"], one), (["*two"], two), (last_two, two):
        assert notebooks.select(words, toy.root) == [found]
    with pytest.raises(ValueError, match="did you mean fig01_one"):
        notebooks.select(["fig1_one"], toy.root)


def test_key_depends_on_what_counts(toy):
    """Code, parameters, data and the scale table of its own profile."""

    def key(profile="quick", data=(), **cells):
        toy.add("one", **cells)
        return notebooks.key("toy/one", {"profile": profile}, dict(data), toy.root)

    assert key(parameters="profile = 'other'") == key()  # papermill replaces that cell
    changed = key("paper"), key(data={"file": "sha"}), key(compute="value = 0.5")
    assert len({key(), *changed}) == 4
    table = "f(\n    quick=dict(n=1),\n    paper=dict(\n        n={},\n    ),\n)"
    quick = [key("quick", setup=table.format(n)) for n in (10, 20)]
    paper = [key("paper", setup=table.format(n)) for n in (10, 20)]
    assert quick[0] == quick[1] and paper[0] != paper[1]


def test_normalized_is_idempotent(toy):
    toy.add("one")
    nb = notebooks.read(notebooks.path("toy/one", toy.root))
    text = {"output_type": "stream", "name": "stdout", "text": "a\n"}
    result = {"output_type": "execute_result", "data": {}, "metadata": {"x": 1}}
    outputs = [text, text | {"name": "stderr"}, result | {"execution_count": 9}]
    nb["cells"][1] |= {"outputs": outputs, "metadata": {"papermill": {}, "tags": []}}
    nb["cells"].insert(1, {**nb["cells"][0], "metadata": {"tags": ["injected-parameters"]}})
    once = notebooks.normalized(nb)
    assert notebooks.normalized(once) == once
    assert [cell["execution_count"] for cell in once["cells"]] == [1, 2, 3, 4, 5]
    stream, result = once["cells"][1]["outputs"]
    assert stream["text"] == "a\n" and result["execution_count"] == 2


@pytest.mark.parametrize("content", ["{", "[]", "{}"])
def test_not_a_notebook(tmp_path, content):
    file = tmp_path / "one.ipynb"
    file.write_text(content)
    with pytest.raises(ValueError, match=r"one\.ipynb is not a notebook"):
        notebooks.read(file)
