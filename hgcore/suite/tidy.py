"""The form in which notebooks are committed: a second run of an unchanged one changes no line."""

import copy
import sys
from pathlib import Path

from hgcore.suite import figures

DROPPED = {"injected-parameters", "papermill-error-cell-tag"}
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def tags(cell: dict) -> set[str]:
    """The tags of a cell."""
    return set(cell["metadata"].get("tags", ()))


def normalise(nb):
    """A copy without noise: no run's metadata, stderr, injected or empty cells; counts 1..n.

    The same again on its own result.

    Takes and gives a notebook as nbformat (or `read`) has it.
    """
    nb = copy.deepcopy(nb)
    nb["metadata"] = type(nb["metadata"])(copy.deepcopy(METADATA))
    nb["cells"] = [
        cell
        for cell in nb["cells"]
        if not DROPPED & tags(cell) and (cell["source"].strip() or cell["cell_type"] != "code")
    ]
    for cell in nb["cells"]:
        cell["metadata"] = (
            {"tags": cell["metadata"]["tags"]} if cell["metadata"].get("tags") else {}
        )
    for count, cell in enumerate((cell for cell in nb["cells"] if cell["cell_type"] == "code"), 1):
        cell["execution_count"], cell["outputs"] = count, _outputs(cell["outputs"], count)
    return nb


def write(nb, file: Path) -> None:
    """Put a valid notebook at `file`, whole or not at all."""
    sys.modules.setdefault("rfc3987_syntax", None)  # 2 s of grammars that jsonschema can do without
    import nbformat

    nb = nbformat.from_dict(nb)
    nbformat.validate(nb)
    figures.write(file, nbformat.writes(nb).rstrip("\n").encode() + b"\n")


def _outputs(outputs: list, count: int) -> list:
    kept = []
    for output in outputs:
        if output.get("name") == "stderr":
            continue
        if kept and output.get("name") == "stdout" == kept[-1].get(
            "name"
        ):  # what stderr had cut in two
            kept[-1]["text"] = "".join(kept[-1]["text"]) + "".join(output["text"])
            continue
        kept.append(output)
        if "metadata" in output:
            output["metadata"] = {}
        if output["output_type"] == "execute_result":
            output["execution_count"] = count
    return kept
