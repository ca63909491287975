"""Mutations of a source text by operators: where they can be made, and which are drawn. Pure; standard library only.

A mutation replaces one span of text. It is known by what it does and not by its line, so that it stays the same when lines above it change.
"""

from __future__ import annotations

import ast
import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, pairwise, zip_longest

BOUNDARY = {ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt}
OPPOSITE = {
    ast.Lt: ast.GtE, ast.LtE: ast.Gt, ast.Gt: ast.LtE, ast.GtE: ast.Lt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip
ARITHMETIC = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult, ast.Mod: ast.Mult,
    ast.Pow: ast.Mult, ast.BitOr: ast.BitAnd, ast.BitAnd: ast.BitOr,
}  # fmt: skip
LEAVES = (ast.Return, ast.Raise, ast.Continue, ast.Break)
Found = tuple[str, ast.expr | ast.stmt, str]  # operator, what is replaced, by which text


class MutationError(Exception):
    """A mutation does not fit the text it is of."""


@dataclass(frozen=True, kw_only=True)
class Mutation:
    """``before`` stands at bytes ``start`` of the file, whose statement is at ``lines``. ``nth``: which of the same kind and texts within ``function``."""

    file: str
    function: str
    operator: str
    before: str
    after: str
    nth: int
    start: int
    lines: tuple[int, int]  # first and last
    imported: bool = False  # it runs with the import of the file

    @cached_property
    def name(self) -> str:
        """Twelve hexadecimal digits of what it does."""
        parts = (self.file, self.function, self.operator, self.before, self.after, str(self.nth))
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:12]

    def applied(self, text: str) -> str:
        """Raises ``MutationError`` if ``before`` does not stand there."""
        source, before = text.encode(), self.before.encode()
        stop = self.start + len(before)
        if source[self.start : stop] != before:
            raise MutationError(f"{self.file}: {self.before!r} does not stand at byte {self.start}")
        return (source[: self.start] + self.after.encode() + source[stop:]).decode()


def mutations(file: str, text: str) -> list[Mutation]:
    """All of a file, in the order of their places."""
    return list(_Sites(file, text).all())


def draw(all_of: Sequence[Mutation], *, seed: int, count: int) -> list[Mutation]:
    """``count`` of them, in turn from each operator: comparisons are many and signs are few. An order by hashes: a change elsewhere in the files
    leaves the draw of what stays as it is."""

    def place(mutation: Mutation) -> str:
        return hashlib.sha256(f"{seed}/{mutation.name}".encode()).hexdigest()

    by_operator: dict[str, list[Mutation]] = {}
    for mutation in sorted(all_of, key=place):
        by_operator.setdefault(mutation.operator, []).append(mutation)
    rounds = zip_longest(*(by_operator[operator] for operator in sorted(by_operator)))
    return [mutation for mutation in chain.from_iterable(rounds) if mutation is not None][:count]


class _Sites:
    """A walk through a file. Left out: annotations, decorators, f-strings, what is raised, and ``if TYPE_CHECKING``."""

    def __init__(self, file: str, text: str) -> None:
        self._file, self._source, self._tree = file, text.encode(), ast.parse(text)
        self._starts = [0]
        for line in self._source.splitlines(keepends=True):
            self._starts.append(self._starts[-1] + len(line))
        self._seen: Counter[tuple[str, ...]] = Counter()

    def all(self) -> Iterator[Mutation]:
        for statement in self._tree.body:
            yield from self._of_statement(statement, "", True)

    def _of_statement(self, node: ast.stmt, function: str, imported: bool) -> Iterator[Mutation]:
        if isinstance(node, ast.Import | ast.ImportFrom | ast.Assert) or (isinstance(node, ast.If) and _typing_alone(node.test)):
            return
        body = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        inner = (
            f"{function}.{node.name}".lstrip(".")
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
            else function
        )
        place = (function, (node.lineno, _header_end(node)), imported)
        for found in _statement_sites(node):
            yield from self._mutation(found, *place)
        for expression in _expressions(node):
            for part in _parts(expression):
                for found in _expression_sites(part):
                    yield from self._mutation(found, *place)
        for child in _statements(node):
            yield from self._of_statement(child, inner, imported and not body)

    def _mutation(self, found: Found, function: str, lines: tuple[int, int], imported: bool) -> Iterator[Mutation]:
        operator, node, after = found
        start, stop = self._offset(node.lineno, node.col_offset), self._offset(node.end_lineno or 0, node.end_col_offset or 0)
        before = self._source[start:stop].decode()
        if before == after:
            return
        kind = (function, operator, before, after)
        self._seen[kind] += 1
        yield Mutation(
            file=self._file, function=function, operator=operator, before=before, after=after, nth=self._seen[kind], start=start, lines=lines, imported=imported,
        )  # fmt: skip

    def _offset(self, line: int, column: int) -> int:
        return self._starts[line - 1] + column


def _typing_alone(test: ast.expr) -> bool:
    return ast.unparse(test).endswith("TYPE_CHECKING")


def _header_end(node: ast.stmt) -> int:
    """Last line of a statement without the statements in it."""
    first = next(iter(_statements(node)), None)
    return max(node.lineno, first.lineno - 1) if first is not None else node.end_lineno or node.lineno


def _statements(node: ast.AST) -> Iterator[ast.stmt]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.stmt):
            yield child
        elif isinstance(child, ast.ExceptHandler | ast.match_case):
            yield from _statements(child)


def _expressions(node: ast.stmt) -> Iterator[ast.expr]:
    """Those of a statement itself that may be changed."""
    if isinstance(node, ast.Raise):
        return
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        yield from (default for default in (*node.args.defaults, *node.args.kw_defaults) if default is not None)
    elif isinstance(node, ast.AnnAssign):
        yield from [node.value] if node.value is not None else []
    elif isinstance(node, ast.Expr):
        yield from [] if isinstance(node.value, ast.Constant) else [node.value]
    elif not isinstance(node, ast.ClassDef):
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.expr):
                yield child
            elif isinstance(child, ast.withitem):
                yield child.context_expr
            elif isinstance(child, ast.match_case) and child.guard is not None:
                yield child.guard


def _parts(node: ast.AST) -> Iterator[ast.expr]:
    if isinstance(node, ast.JoinedStr):  # Python 3.11 does not tell where its parts stand
        return
    if isinstance(node, ast.expr):
        yield node
    for child in ast.iter_child_nodes(node):
        yield from _parts(child)


def _statement_sites(node: ast.stmt) -> Iterator[Found]:
    match node:
        case ast.Expr(value=ast.Call() | ast.Await(value=ast.Call())):
            yield "call", node, "pass"
        case ast.If(body=[*_, leaf], orelse=[]) if isinstance(leaf, LEAVES):
            yield "guard", node.test, "False"
        case ast.If():
            yield "branch", node.test, f"not ({ast.unparse(node.test)})"
        case ast.Return(value=ast.expr() as value) if not isinstance(
            value, ast.Constant | ast.Compare | ast.BoolOp | ast.JoinedStr
        ):
            yield "return", value, "None"
        case ast.AugAssign() if type(node.op) in ARITHMETIC:
            yield "arithmetic", node, ast.unparse(ast.AugAssign(node.target, ARITHMETIC[type(node.op)](), node.value))


def _expression_sites(node: ast.expr) -> Iterator[Found]:
    match node:
        case ast.Compare(ops=[op, *_]):
            for operator, table in (("boundary", BOUNDARY), ("opposite", OPPOSITE)):
                if type(op) in table:
                    yield (
                        operator,
                        node,
                        ast.unparse(ast.Compare(node.left, [table[type(op)](), *node.ops[1:]], node.comparators)),
                    )
        case ast.BinOp() if type(node.op) in ARITHMETIC and not _is_text(node) and not _is_type(node):
            yield "arithmetic", node, f"({ast.unparse(ast.BinOp(node.left, ARITHMETIC[type(node.op)](), node.right))})"
        case ast.UnaryOp(op=ast.USub() | ast.Not() | ast.Invert()):
            yield "sign", node, f"({ast.unparse(node.operand)})"
        case ast.BoolOp():
            other = ast.Or() if isinstance(node.op, ast.And) else ast.And()
            yield "and_or", node, f"({ast.unparse(ast.BoolOp(other, node.values))})"
            for left_out in range(len(node.values)):
                rest = [value for place, value in enumerate(node.values) if place != left_out]
                yield "condition", node, f"({ast.unparse(rest[0] if len(rest) == 1 else ast.BoolOp(node.op, rest))})"
        case ast.IfExp():
            yield "branch", node.test, f"not ({ast.unparse(node.test)})"
        case ast.Slice():
            yield from (
                ("off_by_one", end, f"({ast.unparse(end)} + 1)") for end in (node.lower, node.upper) if end and not _number(end)
            )
        case ast.Constant(value=bool()):
            yield "constant", node, str(not node.value)
        case ast.Constant(value=int()):
            yield "off_by_one", node, str(node.value + 1)
        case ast.Constant(value=float()):
            yield "constant", node, repr(node.value * 2 or 1.0)
        case ast.Call():
            yield from _call_sites(node)


def _call_sites(node: ast.Call) -> Iterator[Found]:
    args, keywords = node.args, node.keywords
    if isinstance(node.func, ast.Name) and node.func.id == "range":
        yield "off_by_one", args[-1], f"({ast.unparse(args[-1])} + 1)"
    alike = isinstance(node.func, ast.Name) and node.func.id in ("max", "min")
    for (place, first), (_, second) in pairwise(enumerate([] if alike else args)):
        if not isinstance(first, ast.Starred) and not isinstance(second, ast.Starred):
            yield "swap", node, ast.unparse(ast.Call(node.func, [*args[:place], second, first, *args[place + 2 :]], keywords))
    for (place, left), (_, right) in pairwise(enumerate(keywords)):
        if left.arg and right.arg:
            swapped = [ast.keyword(left.arg, right.value), ast.keyword(right.arg, left.value)]
            yield "swap", node, ast.unparse(ast.Call(node.func, args, [*keywords[:place], *swapped, *keywords[place + 2 :]]))
    for place, dropped in enumerate(keywords):
        if dropped.arg:
            yield "keyword", node, ast.unparse(ast.Call(node.func, args, [*keywords[:place], *keywords[place + 1 :]]))


def _is_text(node: ast.BinOp) -> bool:
    return any(
        isinstance(part, ast.JoinedStr) or (isinstance(part, ast.Constant) and isinstance(part.value, str))
        for part in (node.left, node.right)
    )


def _is_type(node: ast.BinOp) -> bool:
    """``Sampled | Judged``: names of classes alone."""
    names = [ast.unparse(part) for part in (node.left, node.right)]
    return isinstance(node.op, ast.BitOr) and any(name == "None" or (name[:1].isupper() and not name.isupper()) for name in names)


def _number(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant)
