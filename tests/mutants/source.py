"""Find a mutant's code in the package, and change it.

A row names a function and a piece of Python. Both are looked up in the syntax trees of the package, so a row survives
any change of layout and comments, and a function that moved to another module. Where a row does not apply,
:class:`UnmatchedError` says what is there instead.
"""

from __future__ import annotations

import ast
import copy
import difflib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from mutants.mutant import Mutant

SIMILAR_MAX = 3


class UnmatchedError(Exception):
    """A mutant does not apply to the package as it is."""


class Mutated(NamedTuple):
    """A changed module."""

    path: Path
    """The file, below the package."""
    tree: ast.Module
    code: str
    """The changed definition, printed."""

    @property
    def text(self) -> str:
        """The text of the whole file."""
        return ast.unparse(self.tree)


class Definition(NamedTuple):
    """A function, class or module variable. A property and its setter are two definitions of one name."""

    path: Path
    name: str
    node: ast.stmt

    @property
    def module(self) -> str:
        """The dotted name of the module below the package."""
        return ".".join(self.path.with_suffix("").parts).removesuffix(".__init__")


class _Code(NamedTuple):
    """A pattern or a replacement: the nodes, and whether they are one expression."""

    nodes: list[ast.AST]
    is_expression: bool


class Source:
    """The syntax trees of all modules of a package.

    Args:
        package: the folder of the package, below which rows name modules.
        beside: folders of other packages, whose modules are named with the package: ``kvorum_client.watch``.
    """

    def __init__(self, package: Path, *beside: Path) -> None:
        self._texts: dict[Path, str] = {}
        self._definitions: list[Definition] = []
        self._beside = frozenset(each.name for each in beside)
        for folder, root in ((package, package), *((each, each.parent) for each in beside)):
            for file in sorted(folder.rglob("*.py")):
                path = file.relative_to(root)
                self._texts[path] = file.read_text(encoding="utf-8")
                tree = ast.parse(self._texts[path])
                self._definitions += [Definition(path, name, node) for name, node in _named(tree, "")]

    def text(self, path: Path) -> str:
        """Return a module without any mutant, printed from its tree as a mutant is."""
        return ast.unparse(ast.parse(self._texts[path]))

    def find(self, mutant: Mutant) -> list[Definition]:
        """Return the definitions that the row names, all in one module.

        Raises:
            UnmatchedError: there is none, or the name is in several modules and in none that the row names.
        """
        function = mutant.function
        package = self._package(mutant.module)
        named = [
            found for found in self._definitions if found.name == function and self._package(found.module) == package
        ]
        here = [found for found in named if found.module == mutant.module]
        if here:
            return here
        modules = sorted({found.module for found in named})
        if len(modules) == 1:
            return named
        if modules:
            raise UnmatchedError(
                f"{mutant.name}\n  {mutant.module} defines no {mutant.function}, but several modules do:"
                f"{_listed(modules)}"
            )
        raise UnmatchedError(
            f"{mutant.name}\n  No module defines {mutant.function}."
            f"\n  Similar names:{_listed(self._similar_names(mutant))}"
            f"\n  The same code is in:{_listed(self._elsewhere(mutant))}"
        )

    def mutate(self, mutant: Mutant) -> Mutated:
        """Return the changed module.

        Raises:
            UnmatchedError: the code is not in the function exactly once, or the change changes nothing.
        """
        old, new = _codes(mutant)
        definitions = self.find(mutant)
        places = [place for found in definitions for place in _places(found.node, old)]
        if len(places) != 1:
            raise UnmatchedError(self._unmatched(mutant, old, definitions, places))
        if _dumped(old.nodes) == _dumped(new.nodes):
            raise UnmatchedError(f"{mutant.name}\n  The new code is the old code.")
        path, name = definitions[0].path, definitions[0].name
        tree = ast.parse(self._texts[path])
        changed = [node for found, node in _named(tree, "") if found == name]
        for node in changed:
            _replace(node, old, new)
        try:
            compile(tree, str(path), "exec")
        except SyntaxError as error:
            raise UnmatchedError(f"{mutant.name}\n  The changed module does not compile: {error}") from error
        return Mutated(path, tree, "\n".join(ast.unparse(node) for node in changed))

    def _package(self, module: str) -> str:
        """Return which of the other packages a module is in; empty: in the package itself."""
        first = module.partition(".")[0]
        return first if first in self._beside else ""

    def _unmatched(self, mutant: Mutant, old: _Code, found: list[Definition], places: list[ast.AST]) -> str:
        where = f"{found[0].module}:{found[0].name}"
        if places:
            lines = ", ".join(str(_line(place)) for place in places)
            return (
                f"{mutant.name}\n  The code occurs {len(places)} times in {where}, at lines {lines}: take more of it."
            )
        similar = [f"line {_line(node)}: {text}" for node, text in _similar(found, old)]
        return (
            f"{mutant.name}\n  The code is not in {where}. Most similar there:{_listed(similar)}"
            f"\n  The same code is in:{_listed(self._elsewhere(mutant))}"
        )

    def _similar_names(self, mutant: Mutant) -> list[str]:
        last = mutant.function.rpartition(".")[2]
        names = {f"{found.module}:{found.name}": found.name for found in self._definitions}
        same = [where for where, name in names.items() if name.rpartition(".")[2] == last]
        return list(dict.fromkeys(same + difflib.get_close_matches(mutant.where, names)))[:SIMILAR_MAX]

    def _elsewhere(self, mutant: Mutant) -> list[str]:
        """Say where the row's code is: in the innermost definitions that contain it."""
        old, _ = _codes(mutant)
        found: dict[tuple[Path, int], str] = {}
        for definition in self._definitions:
            for place in _places(definition.node, old):
                found[definition.path, _line(place)] = f"{definition.module}:{definition.name}"
        return [f"{where}, line {line}" for (_, line), where in found.items()][:SIMILAR_MAX]


def _named(tree: ast.AST, prefix: str) -> Iterator[tuple[str, ast.stmt]]:
    """Yield what a module defines, outer before inner: functions and classes at any depth, and its own variables."""
    for node in ast.iter_child_nodes(tree):
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                yield prefix + name, node
                yield from _named(node, f"{prefix}{name}.")
            case ast.Assign(targets=[ast.Name(id=name)]) | ast.AnnAssign(target=ast.Name(id=name)) if isinstance(
                tree, ast.Module | ast.ClassDef
            ):
                yield prefix + name, node
            case ast.If() | ast.Try() | ast.With() | ast.AsyncWith() | ast.For() | ast.While():
                yield from _named(node, prefix)


def _codes(mutant: Mutant) -> tuple[_Code, _Code]:
    """Parse a row's old and new code: two expressions, or two lists of statements.

    Raises:
        UnmatchedError: one of them is not Python.
    """
    try:
        old, new = ast.parse(mutant.old).body, ast.parse(mutant.new).body
    except SyntaxError as error:
        raise UnmatchedError(f"{mutant.name}\n  Not Python: {error}") from error
    if not old or not new:
        raise UnmatchedError(f"{mutant.name}\n  Both old and new must be code; pass removes statements.")
    match old, new:
        case [ast.Expr(value=before)], [ast.Expr(value=after)]:
            return _Code([before], True), _Code([after], True)
    return _Code(list(old), False), _Code(list(new), False)


def _dumped(nodes: list[ast.AST]) -> list[str]:
    return [ast.dump(node) for node in nodes]


def _places(tree: ast.AST, code: _Code) -> list[ast.AST]:
    """Return the nodes (of statements, the first) where the code is."""
    if code.is_expression:
        wanted = ast.dump(code.nodes[0])
        kind = type(code.nodes[0])
        return [node for node in ast.walk(tree) if type(node) is kind and ast.dump(node) == wanted]
    return [body[position] for body in _bodies(tree) for position in _positions(body, code)]


def _bodies(tree: ast.AST) -> Iterator[list[ast.AST]]:
    for node in ast.walk(tree):
        for field in ("body", "orelse", "finalbody"):
            body = getattr(node, field, None)
            if isinstance(body, list):
                yield body


def _positions(body: list[ast.AST], code: _Code) -> list[int]:
    length = len(code.nodes)
    slices = ((at, body[at : at + length]) for at in range(len(body) - length + 1))
    return [at for at, found in slices if all(map(_is_like, code.nodes, found))]


def _is_like(pattern: ast.AST, node: ast.AST) -> bool:
    """Tell whether a statement is the pattern's; the body ``...`` of the pattern stands for any."""
    if type(pattern) is not type(node):
        return False
    match pattern:
        case ast.If(body=[ast.Expr(value=ast.Constant(value=value))] as body) if value is ...:
            node = copy.copy(node)
            node.body = body  # type: ignore[attr-defined]
    return ast.dump(node) == ast.dump(pattern)


def _replace(tree: ast.AST, old: _Code, new: _Code) -> None:
    if not old.is_expression:
        for body in _bodies(tree):
            for position in reversed(_positions(body, old)):
                body[position : position + len(old.nodes)] = copy.deepcopy(new.nodes)
        return
    places = {id(place) for place in _places(tree, old)}
    for node in ast.walk(tree):
        for field, value in ast.iter_fields(node):
            if id(value) in places:
                setattr(node, field, new.nodes[0])
            elif isinstance(value, list):
                value[:] = [new.nodes[0] if id(item) in places else item for item in value]


def _similar(definitions: list[Definition], code: _Code) -> list[tuple[ast.AST, str]]:
    """Return the statements or expressions that read most like the code."""
    kind = ast.expr if code.is_expression else ast.stmt
    wanted = "\n".join(ast.unparse(node) for node in code.nodes)
    texts: dict[str, ast.AST] = {}
    for definition in definitions:
        for node in ast.walk(definition.node):
            if isinstance(node, kind) and node is not definition.node:
                texts.setdefault(ast.unparse(node), node)
    close = difflib.get_close_matches(wanted, texts, SIMILAR_MAX, 0.3)
    return [(texts[text], text.splitlines()[0]) for text in close]


def _line(node: ast.AST) -> int:
    return int(getattr(node, "lineno", 0))


def _listed(items: list[str]) -> str:
    return "".join(f"\n    {item}" for item in items) or " none"
