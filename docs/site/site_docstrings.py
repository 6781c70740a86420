"""What docstrings need to become pages: inherited text, cross references, settings as sentences.

Griffe (which mkdocstrings reads the source with) calls :class:`Docstrings` once for the package.
"""

from __future__ import annotations

import ast
import logging
import pydoc
import re
from collections.abc import Iterator
from typing import Any

import griffe

log = logging.getLogger("mkdocs.hooks.docstrings")

_CODE = re.compile(r"(``.+?``|`[^`]+`)", re.DOTALL)
_ROLE = re.compile(r":(?:func|class|meth|mod|attr|data|exc):`~?([\w.]+)`")
_SEVERAL = re.compile(r"^( {4,})(\w+(?:, \w+)+): (.+(?:\n\1 +.+)*)", re.MULTILINE)
_EQUATION = re.compile(r"^(\s*)Eq: (\d+\.\d+(?:, \d+\.\d+)*)\.?", re.MULTILINE)


class Docstrings(griffe.Extension):
    """Complete the docstrings of a package, and warn of each public name that has none."""

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        """Rewrite every docstring once the whole package is read."""
        for name in missing(pkg):
            log.warning("%s has no docstring", name)
        for member in _objects(pkg):
            if (
                member.is_module
            ):  # a name is described where it is defined, not where it is passed on
                member.exports = [name for name, m in member.members.items() if not m.is_alias]
            if member.is_attribute:
                _declare_setting(member)
            if member.is_function and member.docstring is None:
                member.docstring = _inherited(member)
        for member in _objects(pkg):
            if member.docstring is not None:
                member.docstring.value = to_markdown(member.docstring.value, member)


def missing(package: griffe.Module) -> list[str]:
    """Return the public modules, classes, functions and methods without a docstring.

    A method may have the one of the method it overrides, in a base class or in a protocol of its
    own module, or in a class of another package.
    """
    return [
        member.path
        for member in _objects(package)
        if not member.is_attribute
        and _is_public(member)
        and member.docstring is None
        and not (member.is_function and _inherited(member) is not None)
    ]


def to_markdown(text: str, owner: griffe.Object) -> str:
    """Return a docstring as Markdown: roles as links, the ``Eq:`` line in bold, signs kept."""

    def role(match: re.Match[str]) -> str:
        path = _resolved(owner, match[1])
        return f"`{match[1]}`" if path is None else f"[`{match[1]}`][{path}]"

    def several(match: re.Match[str]) -> str:
        return "\n".join(f"{match[1]}{name}: {match[3]}" for name in match[2].split(", "))

    text = _SEVERAL.sub(several, text)
    text = _EQUATION.sub(r"\1**Eq. \2.**", _ROLE.sub(role, text))
    parts = _CODE.split(text)
    parts[::2] = [
        re.sub(r"(?<=[\w)\]])\*(?=[\w(\[])", r"\*", part.replace("<", "&lt;"))
        for part in parts[::2]
    ]
    return "".join(parts)


def setting_sentence(call: ast.Call) -> tuple[str, str] | None:
    """Return the default and a sentence for a ``setting(default, doc, ...)``."""
    if len(call.args) != 2 or not isinstance(call.args[1], ast.Constant):
        return None
    rule = {word.arg: ast.unparse(word.value) for word in call.keywords}
    limits = (("low", "at least"), ("above", "above"), ("high", "at most"))
    bounds = " and ".join(f"{words} {rule[key]}" for key, words in limits if key in rule)
    choices = ast.literal_eval(rule["choices"]) if "choices" in rule else ()
    parts = [
        str(call.args[1].value),
        "one of " + ", ".join(f"`{choice}`" for choice in choices) if choices else "",
        bounds,
        "or `None`" if rule.get("optional") == "True" else "",
        "source: " + ast.literal_eval(rule["source"]) if "source" in rule else "",
    ]
    return ast.unparse(call.args[0]), "; ".join(part for part in parts if part) + "."


def _declare_setting(member: griffe.Object) -> None:
    try:
        call = ast.parse(str(member.value), mode="eval").body
    except SyntaxError:
        return
    if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "setting":
        declared = setting_sentence(call)
        if declared is not None:
            member.value, sentence = declared
            member.docstring = griffe.Docstring(sentence[0].upper() + sentence[1:], parent=member)


def _inherited(method: griffe.Object) -> griffe.Docstring | None:
    owner = method.parent
    if owner is None or not owner.is_class:
        return None
    protocols = [
        other
        for other in owner.module.classes.values()
        if not other.is_alias and any("Protocol" in str(base) for base in other.bases)
    ]
    for base in [*owner.mro(), *protocols]:
        above = base.members.get(method.name)
        if above is not None and above.docstring is not None:
            return griffe.Docstring(above.docstring.value, parent=method)
    for base in map(_outside, owner.bases):
        if base is not None and getattr(getattr(base, method.name, None), "__doc__", None):
            return griffe.Docstring(f"As in ``{base.__module__}.{base.__name__}``.", parent=method)
    return None


def _outside(base: Any) -> Any:
    """The class that a base names, if it is one of another package."""
    path = getattr(base, "canonical_path", str(base)).partition("[")[0]
    return None if path.startswith("upslope.") else pydoc.locate(path)


def _objects(parent: griffe.Object) -> Iterator[griffe.Object]:
    yield parent
    for member in parent.members.values():
        if not member.is_alias:
            yield from _objects(member)


def _is_public(member: griffe.Object) -> bool:
    names = member.path.split(".")[1:]
    dunders = {"__main__"} if member.is_module else set()
    return not any(name.startswith("_") and name not in dunders for name in names)


def _resolved(owner: griffe.Object, name: str) -> str | None:
    for path in (name, f"{owner.module.package.path}.{name}"):
        if path.startswith(f"{owner.module.package.path}."):
            try:
                found = owner.module.package[path.partition(".")[2]]
            except KeyError:
                continue
            return found.canonical_path
    for scope in (owner, owner.parent):
        head, _, rest = name.partition(".")
        try:
            if scope is not None and name in scope.members:
                return scope.members[name].canonical_path
            if scope is not None:
                path = scope.resolve(head)
                return f"{path}.{rest}" if rest else _canonical(scope, path)
        except (griffe.NameResolutionError, KeyError):
            continue
    return None


def _canonical(scope: griffe.Object, path: str) -> str:
    package = scope.module.package
    try:
        return package[path.partition(".")[2]].canonical_path
    except KeyError:
        return path
