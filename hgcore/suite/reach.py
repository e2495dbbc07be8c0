"""Which definitions of a package a piece of code can reach, found without running it.

A definition is a function, class or assignment at the top of a module. It reaches what it names,
through imports and dotted names; a module named without an attribute is reached whole. Objects are
not followed: to have one somebody must name its class, and a method of a class without bases counts
as soon as anything that is reached has its name, as an attribute, a variable or a text. (A class
with bases counts whole: who knows what they call. tests/test_reach.py runs notebooks and sees that
nothing else was called.)
"""

from __future__ import annotations

import ast
import symtable
import textwrap
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from hgcore.suite.content import code

REST, ALL = "", "*"  # for a name: what a module does outside of definitions; everything in it


class _Module(NamedTuple):
    """definitions: name -> texts that bind it; methods: class -> its methods' names, texts in
    `definitions` under "class.method";
    imports: name -> (module, attribute, or None for the module itself).
    """

    definitions: dict[str, list[str]]
    methods: dict[str, list[str]]
    imports: dict[str, tuple[str, str | None]]


def reached(source: str, package: Path, outside: set[str]) -> dict[str, str]:
    """{"module:name": code without comments and docstrings} of all that `source` reaches; files
    called as in `outside` are left out.
    """
    modules = {
        _dotted(file, package): None
        if file.name in outside
        else _parsed(file.read_text(encoding="utf-8"))
        for file in package.rglob("*.py")
        if not file.name.startswith(".")
    }  # editors' locks
    modules["__main__"] = _parsed(source)
    found, methods, words = {}, set(), set()
    waiting = [("__main__", name) for name in modules["__main__"].definitions]
    while waiting:
        place = waiting.pop()
        if place not in found:
            module, name = place
            texts = modules[module].definitions.get(name, [])
            found[place] = "\n".join(map(code, texts))
            waiting += [
                (module, REST),
                *(other for text in texts for other in _named(text, module, modules)),
            ]
            if name == ALL:
                waiting += [(module, every) for every in modules[module].definitions]
                waiting += [
                    other
                    for target in modules[module].imports.values()
                    for other in _found(*target, [], modules)
                ]
            words.update(*map(_words, texts))
            methods |= {
                (module, f"{name}.{method}") for method in modules[module].methods.get(name, [])
            }
        if not waiting:
            waiting = [place for place in methods - set(found) if place[1].split(".")[1] in words]
    return {
        ":".join(place): text
        for place, text in sorted(found.items())
        if text and place[0] != "__main__"
    }


def _dotted(file: Path, package: Path) -> str:
    parts = file.relative_to(package.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@lru_cache(maxsize=1000)
def _parsed(source: str) -> _Module:
    module, lines = _Module({}, {}, {}), source.split("\n")
    for statement in ast.parse(source).body:
        module.imports.update(_imported(statement))
        apart = _apart(statement)
        for name in _bound(statement):
            module.definitions.setdefault(name, []).append(_text(statement, lines, apart))
        for method in apart:
            module.definitions.setdefault(f"{statement.name}.{method.name}", []).append(
                _text(method, lines)
            )
            module.methods.setdefault(statement.name, []).append(method.name)
    return module


def _apart(statement: ast.stmt) -> list[ast.FunctionDef]:
    """The methods that count one by one: of a class without bases, or a Protocol, those with
    ordinary names.
    """
    if not isinstance(statement, ast.ClassDef) or any(
        _chain(base)[-1] != "Protocol" for base in statement.bases
    ):
        return []
    return [
        part
        for part in statement.body
        if isinstance(part, ast.FunctionDef) and not part.name.startswith("__")
    ]


def _text(statement: ast.stmt, lines: list[str], without: Sequence[ast.stmt] = ()) -> str:
    """Its lines, with decorators; where some parts are left out, an ellipsis and no empty lines."""
    kept = [i for i in _rows(statement) if not any(i in _rows(part) for part in without)]
    text = textwrap.dedent("\n".join(lines[i] for i in kept if lines[i].strip() or not without))
    return f"{text}\n    ..." if without else text


def _rows(statement: ast.stmt) -> range:
    return range(
        min(
            [
                statement.lineno,
                *(decorator.lineno for decorator in getattr(statement, "decorator_list", ())),
            ]
        )
        - 1,
        statement.end_lineno,
    )


def _bound(statement: ast.stmt) -> list[str]:
    """The names that a statement defines; REST where it does something else."""
    if isinstance(statement, ast.Import | ast.ImportFrom):
        return []
    if isinstance(statement, ast.FunctionDef | ast.ClassDef):
        return [statement.name]
    targets = (
        statement.targets
        if isinstance(statement, ast.Assign)
        else [getattr(statement, "target", statement)]
    )
    names = [
        node.id
        for target in targets
        if isinstance(target, ast.expr)
        for node in ast.walk(target)
        if isinstance(node, ast.Name)
    ]
    return names or [REST]


def _imported(statement: ast.AST) -> dict[str, tuple[str, str | None]]:
    if isinstance(statement, ast.ImportFrom):
        return {
            alias.asname or alias.name: (statement.module or "", alias.name)
            for alias in statement.names
        }
    if isinstance(statement, ast.Import):
        return {
            alias.asname or (root := alias.name.split(".")[0]): (
                alias.name if alias.asname else root,
                None,
            )
            for alias in statement.names
        }
    return {}


@lru_cache(maxsize=5000)
def _nodes(text: str) -> list[ast.AST]:
    return list(ast.walk(ast.parse(text)))


@lru_cache(maxsize=5000)
def _words(text: str) -> set[str]:
    """All names in a text, of variables and attributes, and texts that could be names."""
    return {
        word
        for node in _nodes(text)
        for word in (getattr(node, "attr", 0), getattr(node, "id", 0), getattr(node, "value", 0))
        if isinstance(word, str)
    }


@lru_cache(maxsize=5000)
def _globals(text: str) -> set[str]:
    """The names that a definition takes from its module: those that are local to functions in it
    have another meaning.
    """
    table = symtable.symtable(text, "statement", "exec")
    names, inner = {symbol.get_name() for symbol in table.get_symbols()}, table.get_children()
    while inner:
        scope = inner.pop()
        names |= {symbol.get_name() for symbol in scope.get_symbols() if symbol.is_global()}
        inner += scope.get_children()
    return names


def _named(text: str, module: str, modules: dict[str, _Module | None]) -> Iterator[tuple[str, str]]:
    """The definitions of the package that a text in `module` names."""
    nodes, outer = _nodes(text), _globals(text)
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


def _found(
    module: str, name: str | None, rest: list[str], modules: dict[str, _Module | None]
) -> Iterator[tuple[str, str]]:
    """The definitions behind `name` of a module (None: the module itself), then by attributes."""
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
