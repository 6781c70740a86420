"""Every numbered equation names the function that computes it and a test; every function its page.

The second half of this file holds the checks themselves to small bad inputs.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from docs_equations import (
    Equation,
    check_docstrings,
    check_functions,
    check_mentions,
    check_tests,
    docstrings_of,
    mentioned,
    numbers_of,
    read_pages,
)

ROOT = Path(__file__).parent.parent.parent
THEORY = {
    path.name: path.read_text(encoding="utf-8") for path in (ROOT / "docs/theory").glob("*.md")
}
DOCSTRINGS = docstrings_of(ROOT / "src")
EQUATIONS, FORM = read_pages(THEORY)


def said(faults: list[str]) -> str:
    return "\n" + "\n".join(faults)


def test_there_are_equations_on_every_page() -> None:
    pages = {name for name in THEORY if name[0].isdigit()}
    assert pages
    assert {equation.page for equation in EQUATIONS} == pages


def test_equations_have_their_form() -> None:
    assert not FORM, said(FORM)


def test_functions_exist_and_list_the_number() -> None:
    faults = check_functions(EQUATIONS, DOCSTRINGS)
    assert not faults, said(faults)


def test_docstrings_name_equations_that_name_them() -> None:
    faults = check_docstrings(EQUATIONS, DOCSTRINGS)
    assert not faults, said(faults)


def test_tests_exist_and_refer_to_the_function() -> None:
    faults = check_tests(EQUATIONS, ROOT)
    assert not faults, said(faults)


def test_mentioned_equations_exist() -> None:
    pages = [*(ROOT / "docs").rglob("*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
    texts = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in pages}
    sources = (ROOT / "src").rglob("*.py")
    texts |= {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in sources}
    faults = check_mentions(EQUATIONS, texts)
    assert not faults, said(faults)


GOOD = """
<a id="eq-8-1"></a>

$$
A = 1 \\tag{8.1}
$$

**Eq. 8.1** `gae` · computed by `upslope.theory.returns.gae` · checked by `tests/a.py::test_gae`
"""


def equation(**changes: object) -> Equation:
    fields = {
        "number": "8.1",
        "slug": "gae",
        "functions": ("upslope.theory.returns.gae",),
        "tests": ("tests/a.py::test_gae",),
        "page": "08-gae.md",
    }
    return Equation(**(fields | changes))  # type: ignore[arg-type]


def test_a_good_page_is_read() -> None:
    assert read_pages({"08-gae.md": GOOD}) == ([equation()], [])


def test_several_functions_and_tests_are_read() -> None:
    line = GOOD.replace(
        "gae` · checked by `", "gae`, `upslope.x` · checked by `a.py::T::test_b`, `"
    )
    (read,), faults = read_pages({"08-gae.md": line})
    assert not faults
    assert read.functions == ("upslope.theory.returns.gae", "upslope.x")
    assert read.tests == ("a.py::T::test_b", "tests/a.py::test_gae")


def test_code_is_no_page() -> None:
    assert read_pages({"08-gae.md": f"```text\n{GOOD}\n```\n"}) == ([], [])


@pytest.mark.parametrize(
    ("change", "to", "fault"),
    [
        ("\\tag{8.1}", "", "0 times \\tag{8.1}"),
        ("\\tag{8.1}", "\\tag{8.2}", "\\tag{8.2} has no line"),
        ('id="eq-8-1"', 'id="eq-8.1"', 'no <a id="eq-8-1">'),
        ('<a id="eq-8-1"></a>', '<a id="eq-8-1"></a><a id="eq-8-2"></a>', "eq-8-2 has no equation"),
        (" · computed by", " computed by", "not of the form"),
        ("`gae` ·", "`Gae!` ·", "not of the form"),
        (" · checked by `tests/a.py::test_gae`", "", "not of the form"),
        ("test_gae`", "test_gae` and more", "not of the form"),
        ("8.1", "9.1", "the number of another page"),
        ("", GOOD, "the number 8.1 is given 2 times"),
        ("", GOOD.replace("8.1", "8.2").replace("8-1", "8-2"), "the slug gae is given 2 times"),
    ],
)
def test_bad_form_is_reported(change: str, to: str, fault: str) -> None:
    page = GOOD.replace(change, to) if change else GOOD + to
    _, faults = read_pages({"08-gae.md": page})
    assert any(fault in said for said in faults), faults


def test_a_good_function_passes() -> None:
    assert not check_functions([equation()], DOCSTRINGS)


@pytest.mark.parametrize("name", ["upslope.theory.returns.missing", "upslope.nowhere.gae", "gae"])
def test_a_missing_function_is_reported(name: str) -> None:
    (fault,) = check_functions([equation(functions=(name,))], DOCSTRINGS)
    assert fault == f"Eq. 8.1 (08-gae.md) names {name}, which cannot be imported"


@pytest.mark.parametrize("docstring", ["", "GAE.", "Eq: 8.2. Source: a paper.", "See Eq. 8.1."])
def test_a_docstring_without_the_number_is_reported(docstring: str) -> None:
    (fault,) = check_functions([equation()], {"upslope.theory.returns.gae": docstring})
    assert "whose docstring has no `Eq:` line with 8.1" in fault


def test_a_docstring_with_an_unknown_equation_is_reported() -> None:
    docstrings = {"upslope.a": "Eq: 8.1. Source.", "upslope.theory.returns.gae": "Eq: 8.1, 8.99."}
    assert check_docstrings([equation()], docstrings) == [
        "upslope.a says Eq: 8.1, but Eq. 8.1 (08-gae.md) does not name it",
        "upslope.theory.returns.gae says Eq: 8.99, which no page has",
    ]


def test_a_misspelled_equation_line_is_reported() -> None:
    (fault,) = check_docstrings([equation()], {"upslope.a": "What it is.\n\nEq. 8.1. Source."})
    assert "not of the form" in fault


def test_numbers_are_read_from_docstrings() -> None:
    assert numbers_of("Text.\n\n    Eq: 4.1, 3.3. Source: Eq: no.\n    Eq: 9.10.") == [
        "4.1", "3.3", "9.10",
    ]  # fmt: skip


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests/a.py").write_text(
        "from somewhere import gae\n"
        "def test_gae(): gae(1)\n"
        "def test_other(): pass\n"
        "def helper(): gae(1)\n"
        "class TestIt:\n"
        "    def test_inside(self): returns.gae(1)\n"
    )
    (tmp_path / "tests/b.py").write_text(
        "from upslope.theory import returns\ndef test_other(): pass\n"
    )
    return tmp_path


@pytest.mark.parametrize(
    "test",
    ["a.py::test_gae", "a.py::TestIt::test_inside", "b.py::test_other"],
)
def test_a_good_test_passes(repository: Path, test: str) -> None:
    assert not check_tests([equation(tests=(f"tests/{test}",))], repository)


@pytest.mark.parametrize(
    ("test", "fault"),
    [
        ("c.py::test_gae", "there is no file"),
        ("a.py::test_missing", "has no such test"),
        ("a.py::test_inside", "has no such test"),
        ("a.py::TestIt::test_gae", "has no such test"),
        ("a.py::TestIt", "has no such test"),
        ("a.py", "has no such test"),
        ("a.py::helper", "has no such test"),
        ("a.py::test_other", "neither mentions upslope.theory.returns.gae"),
    ],
)
def test_a_bad_test_is_reported(repository: Path, test: str, fault: str) -> None:
    (said,) = check_tests([equation(tests=(f"tests/{test}",))], repository)
    assert fault in said


def test_a_mention_of_an_unknown_equation_is_reported() -> None:
    texts = {"a.md": "By Eq. 8.1 and Eq. 8.2, as eq. 9 of the paper says; [Eq. 8.3](x)."}
    assert check_mentions([equation()], texts) == [
        "a.md mentions Eq. 8.2, which no page has",
        "a.md mentions Eq. 8.3, which no page has",
    ]


def test_mentions_in_a_row_are_all_read() -> None:
    assert mentioned("Eqs. 8.1, 8.2 and 8.3; Equation 9.1.") == ["8.1", "8.2", "8.3", "9.1"]


def test_docstrings_are_read_below_a_folder(tmp_path: Path) -> None:
    (tmp_path / "pkg").mkdir()
    (tmp_path / "pkg/__init__.py").write_text('"""P."""')
    (tmp_path / "pkg/m.py").write_text('class C:\n    """C."""\n    def f(self):\n        """F."""')
    assert docstrings_of(tmp_path) == {
        "pkg": "P.", "pkg.m": "", "pkg.m.C": "C.", "pkg.m.C.f": "F.",
    }  # fmt: skip
