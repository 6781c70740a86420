"""What ties the theory pages to the code: each check returns one sentence per fault it finds."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

NAMES = r"`[^`]+`(?:, `[^`]+`)*"
LINE = re.compile(
    rf"\*\*Eq\. (\d+\.\d+)\*\* `([a-z0-9]+(?:-[a-z0-9]+)*)` · computed by ({NAMES})"
    rf" · checked by ({NAMES})"
)
DOCSTRING_LINE = re.compile(r"^\s*Eq: (\d+\.\d+(?:, \d+\.\d+)*)\.?(?:\s|$)", re.MULTILINE)
MENTION = re.compile(
    r"\b(?:Eq\.|Eqs\.|Equation|equation) (\d+\.\d+)((?:(?:, | and |, and )\d+\.\d+)*)"
)


@dataclass(frozen=True)
class Equation:
    """One numbered equation, as its line under the formula says it."""

    number: str
    slug: str
    functions: tuple[str, ...]
    tests: tuple[str, ...]
    page: str

    @property
    def name(self) -> str:
        return f"Eq. {self.number} ({self.page})"


def read_pages(pages: Mapping[str, str]) -> tuple[list[Equation], list[str]]:
    """Read the equations of pages (text by file name), and say what is wrong with their form."""
    equations: list[Equation] = []
    faults: list[str] = []
    for page, text in pages.items():
        prose = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
        for line in prose.splitlines():
            if line.startswith("**Eq."):
                match = LINE.fullmatch(line)
                if match is None:
                    faults.append(f"{page}: this line of an equation is not of the form: {line}")
                else:
                    number, slug, functions, tests = match.groups()
                    equations.append(Equation(number, slug, _names(functions), _names(tests), page))
        faults += _faults_of_form(page, prose, [e.number for e in equations if e.page == page])
    for what in ("number", "slug"):
        counts = Counter(getattr(equation, what) for equation in equations)
        faults += [f"the {what} {value} is given {n} times" for value, n in counts.items() if n > 1]
    return equations, faults


def check_functions(equations: list[Equation], docstrings: Mapping[str, str]) -> list[str]:
    """Every function that an equation names exists, and its docstring lists the number."""
    faults = []
    for equation in equations:
        for function in equation.functions:
            if not callable(_find(function)):
                faults.append(f"{equation.name} names {function}, which cannot be imported")
            elif equation.number not in numbers_of(docstrings.get(function, "")):
                faults.append(
                    f"{equation.name} names {function}, whose docstring has no `Eq:` line "
                    f"with {equation.number}"
                )
    return faults


def check_docstrings(equations: list[Equation], docstrings: Mapping[str, str]) -> list[str]:
    """Every number in an ``Eq:`` line has a page whose equation names that function."""
    computed = {equation.number: equation for equation in equations}
    faults = []
    for owner, text in docstrings.items():
        for number in numbers_of(text):
            if number not in computed:
                faults.append(f"{owner} says Eq: {number}, which no page has")
            elif owner not in computed[number].functions:
                faults.append(
                    f"{owner} says Eq: {number}, but {computed[number].name} does not name it"
                )
        if re.search(r"^\s*Eqs?[:.] ?\d", text, re.MULTILINE) and not numbers_of(text):
            faults.append(f"{owner} has an equation line that is not of the form `Eq: 8.1, 8.2.`")
    return faults


def check_tests(equations: list[Equation], root: Path) -> list[str]:
    """Every test exists, and refers to a computed function or imports its module."""
    faults = []
    for equation in equations:
        for test in equation.tests:
            path, *names = test.split("::")
            if not (root / path).is_file():
                faults.append(f"{equation.name} names {test}, but there is no file {path}")
                continue
            tree = _parsed(root / path)
            found = _find_definition(tree, names)
            if found is None or not names[-1].startswith("test"):
                faults.append(f"{equation.name} names {test}, but {path} has no such test")
            elif not any(_refers(tree, found, function) for function in equation.functions):
                faults.append(
                    f"{equation.name} names {test}, which neither mentions "
                    f"{' or '.join(equation.functions)} nor imports its module"
                )
    return faults


def check_mentions(equations: list[Equation], texts: Mapping[str, str]) -> list[str]:
    """Every ``Eq. P.N`` in a text (by its name) is an equation of a page."""
    known = {equation.number for equation in equations}
    return [
        f"{name} mentions Eq. {number}, which no page has"
        for name, text in texts.items()
        for number in mentioned(text)
        if number not in known
    ]


def mentioned(text: str) -> list[str]:
    """Return the equation numbers that a text mentions, in order."""
    return [
        number
        for match in MENTION.finditer(text)
        for number in [match[1], *re.findall(r"\d+\.\d+", match[2])]
    ]


def docstrings_of(source: Path) -> dict[str, str]:
    """Return the docstring of every module, class, function and method below a folder."""
    found: dict[str, str] = {}
    for path in sorted(source.rglob("*.py")):
        parts = path.relative_to(source).with_suffix("").parts
        module = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found.update(_docstrings(ast.parse(path.read_text(encoding="utf-8")), module))
    return found


def numbers_of(docstring: str) -> list[str]:
    """Return the numbers of a docstring's ``Eq:`` lines."""
    return [n for line in DOCSTRING_LINE.findall(docstring) for n in line.split(", ")]


def _names(text: str) -> tuple[str, ...]:
    return tuple(re.findall(r"`([^`]+)`", text))


def _faults_of_form(page: str, prose: str, numbers: list[str]) -> list[str]:
    tags = Counter(re.findall(r"\\tag\{([^}]*)\}", prose))
    anchors = Counter(re.findall(r'<a id="eq-(\d+-\d+)"></a>', prose))
    chapter = re.match(r"0*(\d+)-", page)
    faults = []
    for number in numbers:
        if chapter is None or number.split(".")[0] != chapter[1]:
            faults.append(f"{page}: Eq. {number} has the number of another page")
        if tags[number] != 1:
            faults.append(f"{page}: Eq. {number} has {tags[number]} times \\tag{{{number}}}, not 1")
        if anchors[number.replace(".", "-")] != 1:
            faults.append(f'{page}: Eq. {number} has no <a id="eq-{number.replace(".", "-")}"></a>')
    faults += [f"{page}: \\tag{{{n}}} has no line under it" for n in tags if n not in numbers]
    faults += [
        f"{page}: the anchor eq-{anchor} has no equation"
        for anchor in anchors
        if anchor.replace("-", ".") not in numbers
    ]
    return faults


@cache
def _parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def _find(path: str) -> Any:
    parts = path.split(".")
    for i in range(len(parts) - 1, 0, -1):
        try:
            found: Any = import_module(".".join(parts[:i]))
        except ModuleNotFoundError:
            continue
        for name in parts[i:]:
            found = getattr(found, name, None)
        return found
    return None


def _docstrings(tree: ast.AST, path: str) -> Iterator[tuple[str, str]]:
    if isinstance(tree, ast.Module | ast.ClassDef | ast.FunctionDef):
        yield path, ast.get_docstring(tree) or ""
        for child in tree.body:
            if isinstance(child, ast.ClassDef | ast.FunctionDef):
                yield from _docstrings(child, f"{path}.{child.name}")


def _find_definition(tree: ast.AST, names: list[str]) -> ast.AST | None:
    for name in names:
        inside = [
            child
            for child in getattr(tree, "body", [])
            if isinstance(child, ast.ClassDef | ast.FunctionDef) and child.name == name
        ]
        if not inside:
            return None
        tree = inside[0]
    return tree if isinstance(tree, ast.FunctionDef) else None


def _refers(tree: ast.Module, test: ast.AST, function: str) -> bool:
    module, _, name = function.rpartition(".")
    words = {
        node.id if isinstance(node, ast.Name) else node.attr
        for node in ast.walk(test)
        if isinstance(node, ast.Name | ast.Attribute)
    }
    if name in words:
        return True
    imported: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported |= {str(node.module), *(f"{node.module}.{a.name}" for a in node.names)}
    return module in imported
