"""The site in a real browser: whole, readable on a phone, and nothing planted in it runs."""

import json
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote, urlparse

import pytest

from hgcore.suite import notebooks

ROOT = Path(__file__).parents[2]
PLANTED = "<script>window.planted = 1</script><img src=x onerror='window.planted = 1'>"
EVIL = f"""# Title {PLANTED}

[link](javascript:window.planted=1) $x {PLANTED}$ {PLANTED}

$$y {PLANTED}$$ {{raw}}`{PLANTED}` {{download}}`/etc/passwd`
"""
MARKUP = "```{raw} html", "> ~~~ {eval-rst}", "- ````{include} /etc/passwd", "```\u00a0{include} x"


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The site of a copy of the repository in which one notebook and RESULTS.md are hostile."""
    pytest.importorskip("myst_nb", reason="pip install .[docs]")
    root = tmp_path_factory.mktemp("site") / "repo"
    ignored = shutil.ignore_patterns(".git", ".venv", "runs", "data", "tests", "quick")
    shutil.copytree(ROOT, root, ignore=ignored)
    (root / "data").mkdir()
    results, tour = root / "RESULTS.md", notebooks.path("00_tour", root)
    results.write_text(results.read_text() + EVIL)
    nb = notebooks.read(tour)
    kinds = "text/html", "text/markdown", "image/svg+xml", "text/latex"
    html = {"output_type": "display_data", "data": dict.fromkeys(kinds, PLANTED), "metadata": {}}
    script = html | {"data": {"application/javascript": "window.planted = 1"}}
    text = {"output_type": "stream", "name": "stdout", "text": PLANTED}
    cell = {"cell_type": "markdown", "id": "evil", "metadata": {}, "source": EVIL}
    code = {"cell_type": "code", "id": "more", "metadata": {}, "source": f"# {PLANTED}"}
    nb["cells"] += [cell, code | {"outputs": [html, script, text], "execution_count": 99}]
    nb["metadata"] |= {"mystnb": {"execution_mode": "force"}, "myst": {"disable_syntax": []}}
    tour.write_text(json.dumps(nb))
    command = [sys.executable, "-m", "sphinx", "-q", "-c", "docs", ".", "site"]
    subprocess.run(command, cwd=root, check=True)
    return root / "site"


@pytest.mark.parametrize("text", MARKUP)
def test_directives_are_refused(text):
    """They could execute, or copy files of the machine into the site."""
    errors = pytest.importorskip("sphinx.errors", reason="pip install .[docs]")
    show_only = runpy.run_path(str(ROOT / "docs/conf.py"))["show_only"]
    nb = json.dumps({"cells": [{"cell_type": "markdown", "metadata": {}, "source": [text]}]})
    for name, source in (("RESULTS", text), ("notebooks/00_tour", nb)):
        with pytest.raises(errors.ExtensionError, match=f"{name}: .* directive, which"):
            show_only(None, name, [source])
    show_only(None, "docs/api", [text])


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
    found = shutil.which("chromium") or shutil.which("google-chrome")
    if not found:
        pytest.skip("there is no Chromium here")
    with playwright.sync_playwright() as p:
        flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        opened = p.chromium.launch(executable_path=found, args=flags)
        yield opened
        opened.close()


def test_pages_in_a_browser(site, browser):
    """Each page: no error, no planted script, pictures with text, links, no sideways scrolling."""
    page = browser.new_page(viewport={"width": 390, "height": 800})
    errors = []
    page.on("console", lambda m: errors.append(m.text) if m.type == "error" else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    pages = {p for p in site.rglob("*.html") if "_static" not in p.parts}
    assert len(pages) > 30 and site / "RESULTS.html" in pages
    for file in sorted(pages - {site / "index.html"}):  # which leads to another at once
        hostile = file.stem in ("00_tour", "RESULTS")
        errors.clear()
        page.goto(file.as_uri(), wait_until="load")
        page.evaluate("window.MathJax?.startup?.promise")  # formulas are wide until it is done
        assert page.evaluate("window.planted") is None, file
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, file
        bad = "[...document.images].filter(i => !i.alt || !i.naturalWidth).map(i => i.outerHTML)"
        assert hostile or not errors + page.evaluate(bad), (file, errors)
        for link in page.eval_on_selector_all("a[href]", "all => all.map(a => a.href)"):
            assert not link.startswith("javascript:")
            if (address := urlparse(link)).scheme == "file":
                assert Path(unquote(address.path)).exists(), (file, link)


def test_search_finds_a_word(site, browser):
    page = browser.new_page(viewport={"width": 1300, "height": 900})
    page.goto(f"{(site / 'search.html').as_uri()}?q=hypergradient")
    page.wait_for_selector("ul.search li a", timeout=20_000)
    assert page.locator("ul.search li").count() >= 5
