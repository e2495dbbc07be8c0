"""Which definitions of a package a piece of code can reach, found without running it.

A definition is a function, class or assignment at the top of a module. It reaches what it names, through imports and dotted names;
a module named without an attribute is reached whole. Attributes of objects are not followed: a class counts as a whole, and to
have an object somebody must name its class. (tests/test_reach.py runs notebooks and sees that nothing else was called.)
"""

from __future__ import annotations

import ast
import symtable
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from hgcore.content import code

REST, ALL = "", "*"  # for a name: what a module does outside of definitions; everything in it


class _Module(NamedTuple):
    """definitions: name -> statements that bind it; imports: name -> (module, attribute, or None for the module itself)."""

    source: str
    definitions: dict[str, list[ast.stmt]]
    imports: dict[str, tuple[str, str | None]]


def reached(source: str, package: Path, outside: set[str]) -> dict[str, str]:
    """{"module:name": code without comments and docstrings} of all that `source` reaches; files called as in `outside` are left out."""
    modules = {_dotted(file, package): None if file.name in outside else _parsed(file.read_text(encoding="utf-8"))
               for file in package.rglob("*.py")}
    modules["__main__"] = _parsed(source)
    found, waiting = {}, [("__main__", name) for name in modules["__main__"].definitions]
    while waiting:
        place = waiting.pop()
        if place not in found:
            module, name = place
            statements = modules[module].definitions.get(name, [])
            found[place] = "\n".join(code(_lines(statement, modules[module].source)) for statement in statements)
            waiting += [(module, REST), *(other for statement in statements for other in _named(statement, module, modules))]
            if name == ALL:
                waiting += [(module, every) for every in modules[module].definitions]
                waiting += [other for target in modules[module].imports.values() for other in _found(*target, [], modules)]
    return {":".join(place): text for place, text in sorted(found.items()) if text and place[0] != "__main__"}


def _dotted(file: Path, package: Path) -> str:
    parts = file.relative_to(package.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@lru_cache(maxsize=1000)
def _parsed(source: str) -> _Module:
    module = _Module(source, {}, {})
    for statement in ast.parse(source).body:
        module.imports.update(_imported(statement))
        for name in _bound(statement):
            module.definitions.setdefault(name, []).append(statement)
    return module


def _bound(statement: ast.stmt) -> list[str]:
    """The names that a statement defines; REST where it does something else."""
    if isinstance(statement, ast.Import | ast.ImportFrom):
        return []
    if isinstance(statement, ast.FunctionDef | ast.ClassDef):
        return [statement.name]
    targets = statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", statement)]
    names = [node.id for target in targets if isinstance(target, ast.expr) for node in ast.walk(target) if isinstance(node, ast.Name)]
    return names or [REST]


def _imported(statement: ast.AST) -> dict[str, tuple[str, str | None]]:
    if isinstance(statement, ast.ImportFrom):
        return {alias.asname or alias.name: (statement.module or "", alias.name) for alias in statement.names}
    if isinstance(statement, ast.Import):
        return {alias.asname or (root := alias.name.split(".")[0]): (alias.name if alias.asname else root, None) for alias in statement.names}
    return {}


def _lines(statement: ast.stmt, source: str) -> str:
    first = min([statement.lineno, *(decorator.lineno for decorator in getattr(statement, "decorator_list", ()))])
    return "\n".join(source.splitlines()[first - 1:statement.end_lineno])


@lru_cache(maxsize=5000)
def _globals(lines: str) -> set[str]:
    """The names that a statement takes from its module: those that are local to functions in it have another meaning."""
    table = symtable.symtable(lines, "statement", "exec")
    names, inner = {symbol.get_name() for symbol in table.get_symbols()}, table.get_children()
    while inner:
        scope = inner.pop()
        names |= {symbol.get_name() for symbol in scope.get_symbols() if symbol.is_global()}
        inner += scope.get_children()
    return names


def _named(statement: ast.stmt, module: str, modules: dict[str, _Module | None]) -> Iterator[tuple[str, str]]:
    """The definitions of the package that a statement of `module` names."""
    nodes, outer = list(ast.walk(statement)), _globals(_lines(statement, modules[module].source))
    imports = dict(modules[module].imports)
    for node in nodes:
        imports.update(_imported(node))
    owners = {id(node.value) for node in nodes if isinstance(node, ast.Attribute)}
    for node in nodes:
        first, *rest = _chain(node) if id(node) not in owners else [""]
        if first in modules[module].definitions and first in outer:
            yield module, first
        elif first in imports:
            yield from _found(*imports[first], rest, modules)


def _chain(node: ast.AST) -> list[str]:
    """["a", "b", "c"] for a.b.c; [""] for anything else."""
    if isinstance(node, ast.Name):
        return [node.id]
    owner = _chain(node.value) if isinstance(node, ast.Attribute) else [""]
    return [*owner, node.attr] if owner[0] else [""]


def _found(module: str, name: str | None, rest: list[str], modules: dict[str, _Module | None]) -> Iterator[tuple[str, str]]:
    """The definitions behind `name` of a module (None: the module itself), followed by attributes."""
    if name and f"{module}.{name}" in modules:
        module, name = f"{module}.{name}", None
    if modules.get(module) is None:  # another package, or outside
        return
    if name is None and rest:
        yield from _found(module, rest[0], rest[1:], modules)
    elif name in modules[module].definitions:
        yield module, name
    elif name in modules[module].imports:
        yield from _found(*modules[module].imports[name], rest, modules)
    else:  # the module as an object, or a name that it makes in another way
        yield module, ALL
