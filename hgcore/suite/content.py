"""What of a text counts: the code without its comments, and the versions it runs on."""

import ast
import functools
import importlib.metadata
import io
import tokenize
import tomllib
from collections.abc import Iterator
from pathlib import Path


def installed(library: str) -> str:
    """The version of an installed library, `absent` without it."""
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return "absent"


def version(root: Path) -> str:
    """The version of hgcore, from pyproject.toml."""
    return tomllib.loads((Path(root) / "pyproject.toml").read_text(encoding="utf-8"))["project"][
        "version"
    ]


@functools.lru_cache(maxsize=1000)
def code(source: str) -> str:
    """`source` without comments and docstrings; as given where it is not plain Python."""
    try:
        tree, tokens = (
            ast.parse(source),
            list(tokenize.generate_tokens(io.StringIO(source).readline)),
        )
    except (SyntaxError, tokenize.TokenError):
        return source
    lines = source.split("\n")
    for row, column in (token.start for token in tokens if token.type == tokenize.COMMENT):
        lines[row - 1] = lines[row - 1][:column].rstrip() or None
    for rows in _docstrings(tree):
        lines[rows] = [None] * len(lines[rows])
    return "\n".join(line for line in lines if line is not None)


def _docstrings(tree: ast.AST) -> Iterator[slice]:
    """The rows that a docstring has to itself."""
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
            and ast.get_docstring(node) is not None
        ):
            text, *after = node.body
            if text.lineno > getattr(node, "lineno", 0) and all(
                line.lineno > text.end_lineno for line in after[:1]
            ):
                yield slice(text.lineno - 1, text.end_lineno)
