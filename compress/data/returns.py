"""Does a function give something back?  Told by its body; what the labelled corpus asks of its docstring."""

from __future__ import annotations

import ast
from typing import Literal

Label = Literal["nothing", "value"]
Function = ast.FunctionDef | ast.AsyncFunctionDef

_INNER = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)  # what these give back is theirs


def label_of(function: Function) -> Label | None:
    """Return `value` where some `return` has one or the function yields, `nothing` where none does.

    None where the body does not tell: it is empty, as of what is abstract, or only raises.
    """
    if all(map(_idle, function.body)):
        return None
    waiting: list[ast.AST] = list(function.body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, _INNER):
            continue
        if isinstance(node, ast.Yield | ast.YieldFrom) or (isinstance(node, ast.Return) and _has_value(node)):
            return "value"
        waiting.extend(ast.iter_child_nodes(node))
    return "nothing"


def _idle(statement: ast.stmt) -> bool:
    constant = isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)  # a docstring, an ellipsis
    return constant or isinstance(statement, ast.Pass | ast.Raise)


def _has_value(node: ast.Return) -> bool:
    return node.value is not None and not (isinstance(node.value, ast.Constant) and node.value.value is None)
