"""Static pages: no script, no network.

A notebook as HTML, its formulas as MathML, in the suite's own template.
"""

import json
import re
import sys
from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

MATH = re.compile(
    r"(?P<code>```.*?```|`[^`\n]+`)"
    r"|\$\$(?P<display>.+?)\$\$"
    r"|(?P<environment>\\begin\{(?P<kind>[a-z]+\*?)\}.+?\\end\{(?P=kind)\})"
    r"|(?<![\\$])\$(?P<inline>[^\s$](?:(?:[^$\n]|\n(?!\s*\n))*?[^\s$\\])?)\$(?!\d)",
    re.DOTALL,
)
ALIGNED = re.compile(
    r"\\(begin|end)\{(?:align|aligned|equation|gather|gathered)\*?\}"
)  # latex2mathml sets align* only, and numbers align
MARK = re.compile(
    "\ue000(\\d+)\ue000"
)  # stands for a formula while Markdown is read, which would eat its _ and *


@cache
def template(name):
    """The page template of that name."""
    folder = Path(__file__).parent / "templates"
    environment = Environment(
        loader=FileSystemLoader(folder),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name)


def mathml(tex, display="inline"):
    """MathML of a formula; the formula itself, as code, where it cannot be converted."""
    from latex2mathml.converter import convert

    try:
        converted = convert(ALIGNED.sub(r"\\\1{align*}", tex.strip()), display=display)
    except Exception:  # its errors share no base class
        return f"<code>{escape(tex)}</code>"
    return converted.replace(' xmlns="http://www.w3.org/1998/Math/MathML"', "")


def inline(text):
    """Plain text with $formulas$ and `code`, as HTML."""
    formulas = []
    marked = re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(_mark(str(text), formulas))))
    return Markup(_unmark(marked, formulas))


def notebook_html(nb):
    """The cells of a notebook (plain JSON or NotebookNode) as one HTML fragment."""
    sys.modules.setdefault("rfc3987_syntax", None)  # else importing nbformat takes 2 s
    import nbformat

    nb, formulas = nbformat.reads(json.dumps(nb), as_version=4), []
    for cell in nb.cells:
        if cell.cell_type == "markdown":
            cell.source = _mark(cell.source, formulas)
    html, _ = _exporter().from_notebook_node(nb)
    html = re.sub(
        r'="[^"]*"', lambda attribute: MARK.sub("", attribute[0]), html
    )  # ids made of headings
    return Markup(
        _unmark(html, formulas).replace(
            "No description has been provided for this image", "Drawn by the cell above"
        )
    )


@cache
def _exporter():
    from nbconvert import HTMLExporter

    return HTMLExporter(template_name="basic")


def _mark(text, formulas):
    def mark(found):
        if found["code"]:
            return found["code"]
        formulas.append(
            mathml(found["inline"])
            if found["inline"]
            else mathml(found["display"] or found["environment"], "block")
        )
        return f"\ue000{len(formulas) - 1}\ue000"

    return MATH.sub(mark, text)


def _unmark(html, formulas):
    return MARK.sub(lambda found: formulas[int(found[1])], html)
