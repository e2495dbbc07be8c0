"""The site: sphinx-build -c docs . runs/site (the source folder is the repository)."""

import base64
import hashlib
import json
import re
import sys
from pathlib import Path

from sphinx.errors import ExtensionError

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from hgcore.suite import notebooks, results  # noqa: E402  the path comes first

project, author, copyright = "hgcore", "The hgcore authors", "The hgcore authors"
root_doc = "docs/index"
include_patterns = ["docs/**.md", "notebooks/**.ipynb", "RESULTS.md"]
exclude_patterns = ["notebooks/own/**"]
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.mathjax", "sphinx-mathjax-offline"]
html_theme, html_title, html_static_path = "pydata_sphinx_theme", "hgcore", ["_static"]
html_css_files = ["site.css"]
html_context = {"default_mode": "auto"}  # the theme logs an error without it
html_theme_options = {
    "secondary_sidebar_items": [],
    "header_links_before_dropdown": 9,
    "navbar_align": "left",
}
html_sidebars = {"docs/index": []}
html_copy_source = html_show_sourcelink = False

# Notebooks as they are committed. Nothing that a notebook, ledger or record says may execute.
nb_execution_mode = "off"
myst_enable_extensions = ["dollarmath"]
myst_disable_syntax = ["html_block", "html_inline", "myst_role"]
suppress_warnings = ["myst.header", "myst.xref_missing"]

autodoc_member_order = "bysource"
autodoc_typehints = "none"

POLICY = (
    "default-src 'self' file: data:; style-src 'self' file: 'unsafe-inline';"
    " script-src 'self' file: {}; frame-src 'none'; object-src 'none'; base-uri 'none'"
)
MARKUP = re.compile(r"(?:`{3,}|~{3,})[^\S\n]*\{")  # a directive of MyST
SHOWN = {"image/png", "text/plain"}
SCRIPT = re.compile(r"<script(?![^>]*\bsrc=)[^>]*>(.*?)</script>", re.DOTALL)
NAME = "DOCUMENTATION_OPTIONS.pagename = '{}'"


def gallery(paper: str) -> str:
    """Return Markdown of all committed pictures of a paper, each a link to its notebook."""
    cards = []
    for name, record in results.best(ROOT).items():
        folder = results.Job(name, record["profile"]).folder(Path()).as_posix()
        for figure in record["figures"] if name.startswith(f"{paper}/") else ():
            title = figure.replace("_", " ")
            title += " (reduced)" if record["profile"] == "reduced" else ""
            picture = f"![{title}](/{folder}/{figure}.png)"
            cards.append(f"- [{picture}](/notebooks/{name}.ipynb)\n  {title}")
    return "\n".join(cards)


def add_galleries(app, docname: str, source: list) -> None:
    """Replace `GALLERY paper` in a page by the pictures of the paper."""
    source[0] = re.sub(r"^GALLERY (\w+)$", lambda m: gallery(m[1]), source[0], flags=re.MULTILINE)


def show_only(app, docname: str, source: list) -> None:
    """Keep of a notebook text, code, printed output and PNG; refuse directives outside of docs/."""
    if docname.startswith("docs/"):
        return
    text = source[0]
    if docname.startswith("notebooks/"):
        nb = json.loads(text)
        for cell in nb["cells"]:
            cell["metadata"] = {}
            cell["source"] = "".join(cell["source"])
            for output in cell.get("outputs", ()):
                for kind in set(output.get("data", ())) - SHOWN:
                    del output["data"][kind]
            cell.pop("attachments", None)
        source[0] = json.dumps(nb | {"metadata": notebooks.METADATA})
        text = "\n".join(c["source"] for c in nb["cells"] if c["cell_type"] != "code")
    if found := MARKUP.search(text):
        raise ExtensionError(f"{docname}: {found[0]!r} is a directive, which may execute")


def stay_inside(app, env) -> None:
    """Refuse pictures and files from outside of the repository."""
    for name in (*env.images, *env.dlfiles):
        if not (ROOT / name).resolve().is_relative_to(ROOT):
            raise ExtensionError(f"{name} lies outside of the repository")


def protect(app, error) -> None:
    """Allow in every page the inline scripts of the theme only: those of pages without content."""
    if error or app.builder.format != "html":
        return
    head = '<meta http-equiv="refresh" content="0; url=docs/index.html"><title>hgcore</title>'
    (Path(app.outdir) / "index.html").write_text(f"<!DOCTYPE html><head>{head}</head>")
    without = [Path(app.outdir, f"{name}.html") for name in ("genindex", "search")]
    own = [text for page in without for text in SCRIPT.findall(page.read_text(encoding="utf-8"))]
    for config in (app.config.mathjax3_config, app.config.mathjax4_config):
        own.append(f"window.MathJax = {json.dumps(config)}")
    for page in Path(app.outdir).rglob("*.html"):
        name = page.relative_to(app.outdir).with_suffix("").as_posix()
        known = [text.replace(NAME.format("genindex"), NAME.format(name)) for text in own]
        hashes = [base64.b64encode(hashlib.sha256(x.encode()).digest()).decode() for x in known]
        policy = POLICY.format(" ".join(f"'sha256-{x}'" for x in hashes))
        meta = f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        text = page.read_text(encoding="utf-8").replace("<head>", f"<head>\n{meta}", 1)
        page.write_text(text, encoding="utf-8")


def as_written(app, what, name, obj, options, lines: list) -> None:
    """Show docstrings as they are written: they hold formulas, not markup."""
    lines[:] = ["::", "", *(f"    {line}" for line in lines), ""] if lines else []


def setup(app) -> None:
    """Connect the functions above."""
    app.connect("autodoc-process-docstring", as_written)
    app.connect("source-read", add_galleries)
    app.connect("source-read", show_only)
    app.connect("env-check-consistency", stay_inside)
    app.connect("build-finished", protect)
