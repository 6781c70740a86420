"""Text such as ``dict(net_arch=[64, 64], activation_fn=nn.ReLU)`` read as data, never evaluated."""

from __future__ import annotations

import ast
import warnings
from typing import Any

from upslope.errors import ConfigError

MAX_LENGTH = 2000  # characters; the zoo's longest has 200
_ACTIVATIONS = ("ReLU", "Tanh", "ELU", "GELU", "LeakyReLU", "SiLU")
_OPTIMISERS = ("Adam", "AdamW", "RMSprop", "SGD")
# The only names that may stand in a text, and the words that they become.
NAMES = {
    "RMSpropTFLike": "RMSpropTFLike",
    **{f"{module}nn.{name}": name for module in ("", "th.", "torch.") for name in _ACTIVATIONS},
    **{f"{module}.optim.{name}": name for module in ("th", "torch") for name in _OPTIMISERS},
}


def read_literal(text: str, where: str) -> Any:
    """Return the value of a literal, in which ``dict(...)`` and a few names are allowed.

    Args:
        text: Python's notation of numbers, text, truths, None, lists, tuples and dicts.
        where: what the text is, for the error.

    Raises:
        ConfigError: for anything else, which is named.
    """
    if len(text) > MAX_LENGTH:
        raise ConfigError(f"{where} is longer than {MAX_LENGTH} characters")
    try:
        with warnings.catch_warnings():  # such as on "1 is 1"
            warnings.simplefilter("ignore")
            tree = ast.parse(text.strip(), mode="eval")
        return _value(tree.body)
    except _NotAllowed as refused:
        part = ast.get_source_segment(text.strip(), refused.node) or type(refused.node).__name__
        raise ConfigError(
            f"{where} holds {_short(part)}, which is not evaluated: only numbers, text, lists, "
            "tuples, dict(...) and names such as nn.ReLU are read"
        ) from None
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        raise ConfigError(
            f"{where} is no literal: {_short(text)}; write for example dict(net_arch=[64, 64])"
        ) from None


class _NotAllowed(Exception):
    def __init__(self, node: ast.expr) -> None:
        super().__init__()
        self.node = node


def _value(node: ast.expr) -> Any:
    if isinstance(node, ast.Constant) and isinstance(
        node.value, (str, int, float, bool, type(None))
    ):
        return node.value
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.USub, ast.UAdd)):
        number = _value(node.operand)
        if isinstance(number, (int, float)) and not isinstance(number, bool):
            return -number if isinstance(node.op, ast.USub) else number
    if isinstance(node, ast.List):
        return [_value(item) for item in node.elts]
    if isinstance(node, ast.Tuple):
        return tuple(_value(item) for item in node.elts)
    if isinstance(node, ast.Dict) and None not in node.keys:
        keys = [_value(key) for key in node.keys if key is not None]
        return dict(zip(keys, map(_value, node.values), strict=True))
    if isinstance(node, ast.Call):
        return _dict_call(node)
    if isinstance(node, (ast.Name, ast.Attribute)):
        known = NAMES.get(_dotted(node))
        if known is not None:
            return known
    raise _NotAllowed(node)


def _dict_call(node: ast.Call) -> dict[str, Any]:
    """``dict(a=1)``: keywords only, so that nothing is called."""
    is_dict = isinstance(node.func, ast.Name) and node.func.id == "dict"
    if not is_dict or node.args:
        raise _NotAllowed(node)
    values: dict[str, Any] = {}
    for keyword in node.keywords:
        if keyword.arg is None or keyword.arg in values:
            raise _NotAllowed(node)
        values[keyword.arg] = _value(keyword.value)
    return values


def _dotted(node: ast.expr) -> str:
    """``nn.ReLU`` of its tree, or "" where something else is dotted."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        before = _dotted(node.value)
        return f"{before}.{node.attr}" if before else ""
    return ""


def _short(text: str) -> str:
    line = " ".join(text.split())
    return repr(line if len(line) <= 80 else line[:77] + "...")
