"""`make docs` builds a site that needs no network, and fails on what it should fail on."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import griffe
import pytest
from site_docstrings import missing, to_markdown
from site_maths import MathsError, formula, to_mathml, to_text

ROOT = Path(__file__).parent.parent.parent

# The words of the Makefile: with --quiet, for one, MkDocs forgets that --strict was asked for.
RECIPE = re.findall(r"python (-m mkdocs .*)", (ROOT / "Makefile").read_text())[0].split()


def build(folder: Path, site: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *RECIPE, "--site-dir", str(site)]
    settings = {"DOCS_RUN_NOTEBOOK": "false", "NO_MKDOCS_2_WARNING": "1"}
    return subprocess.run(
        command, cwd=folder, capture_output=True, text=True, env=os.environ | settings, check=False
    )


class Page(HTMLParser):
    """The anchors of a page, its links, and what it loads."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: set[str] = set()
        self.loads: set[str] = set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.ids |= {given[key] for key in ("id", "name") if key in given}
        if tag == "a" and "href" in given:
            self.links.add(given["href"])
        elif tag in ("link", "script", "img", "iframe", "source"):
            self.loads |= {given[key] for key in ("src", "href", "srcset") if key in given}


def test_the_site_is_built_and_whole(tmp_path: Path) -> None:
    """One test for all of it, so that it is built once however many processes test."""
    done = build(ROOT, tmp_path)
    assert done.returncode == 0, done.stderr[-6000:]
    site = {path: Page(path) for path in tmp_path.rglob("*.html") if path.name != "404.html"}
    every_page_is_there(site)
    nothing_is_loaded_from_elsewhere(site)
    links_lead_to_pages_and_anchors(site)
    formulas_are_mathml(site)
    equations_and_functions_link_to_each_other(site)
    settings_are_described(site)
    the_search_needs_no_server(site)


def folder_of(site: dict[Path, Page]) -> Path:
    return min(site, key=lambda path: len(path.parts)).parent


def every_page_is_there(site: dict[Path, Page]) -> None:
    folder = folder_of(site)
    pages = [path.relative_to(ROOT / "docs") for path in (ROOT / "docs").rglob("*.md")]
    names = [page.with_name("index.md") if page.stem == "README" else page for page in pages]
    for name in [*names, Path("quickstart.md")]:
        assert folder / name.with_suffix(".html") in site
    for path in (ROOT / "src").rglob("[a-z]*.py"):
        module = ".".join(path.relative_to(ROOT / "src").with_suffix("").parts)
        assert folder / f"api/{module}.html" in site


def nothing_is_loaded_from_elsewhere(site: dict[Path, Page]) -> None:
    for path, page in site.items():
        for target in page.loads:
            assert not urlsplit(target).netloc, f"{path} loads {target}"
            assert (path.parent / unquote(urlsplit(target).path)).exists(), f"{path}: {target}"
    styles = "".join(path.read_text() for path in folder_of(site).rglob("*.css"))
    assert "@import" not in styles
    assert not re.search(r"url\(['\"]?(https?:)?//", styles)


def links_lead_to_pages_and_anchors(site: dict[Path, Page]) -> None:
    broken = []
    for path, page in site.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if target.suffix != ".html":
                found = target.exists()
            else:
                found = target in site and unquote(parts.fragment) in {"", *site[target].ids}
            if not found:
                broken.append(f"{path.name}: {link}")
    assert not broken


def formulas_are_mathml(site: dict[Path, Page]) -> None:
    text = (folder_of(site) / "theory/08-gae.html").read_text(encoding="utf-8")
    assert '<math display="block">' in text
    assert '<span class="equation-number">(8.1)</span>' in text
    for path in site:
        page = path.read_text(encoding="utf-8")
        left = re.search(
            r"\\\(|\\\[", re.sub(r"<(pre|code|script).*?</\1>", "", page, flags=re.DOTALL)
        )
        assert left is None, f"{path.name}: {page[left.start() :][:80]}"


def equations_and_functions_link_to_each_other(site: dict[Path, Page]) -> None:
    folder = folder_of(site)
    name = "upslope.theory.returns"
    assert f"../api/{name}.html#{name}.gae" in site[folder / "theory/08-gae.html"].links
    assert "../theory/08-gae.html#eq-8-1" in site[folder / f"api/{name}.html"].links


def settings_are_described(site: dict[Path, Page]) -> None:
    text = (folder_of(site) / "api/upslope.config.ppo.html").read_text(encoding="utf-8")
    assert "Passes over each rollout; at least 1 and at most 10000" in text


def the_search_needs_no_server(site: dict[Path, Page]) -> None:
    folder = folder_of(site)
    script = (folder / "search/search_index.js").read_text(encoding="utf-8")
    index = json.loads(script.removeprefix("var __index = "))
    assert any("conjugate_gradient" in entry["text"] for entry in index["docs"])
    assert "site/iframe-worker.js" in site[folder / "index.html"].loads


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A small project with this one's configuration and hooks."""
    shutil.copytree(ROOT / "docs/site", tmp_path / "docs/site")
    config = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    nav = "nav: [index.md, theory/08-gae.md]\nexclude_docs:"
    config = re.sub(r"^nav:.*^exclude_docs:", nav, config, flags=re.DOTALL | re.MULTILINE)
    files = {
        "mkdocs.yml": config,
        "docs/index.md": "# Home\n\n[gae](theory/08-gae.md#eq-8-1) [c](../src/upslope/good.py)\n",
        "docs/api/index.md": "# API\n\n<!-- modules -->\n",
        "docs/theory/08-gae.md": (
            '# GAE\n\n<a id="eq-8-1"></a>\n\n$$\na_1 \\tag{8.1}\n$$\n\n'
            "**Eq. 8.1** `gae` · computed by `upslope.good.gae` · checked by `t.py::t`\n"
        ),
        "src/upslope/__init__.py": '"""The package."""\n',
        "src/upslope/good.py": (
            '"""A module."""\n\n\ndef gae(x: int) -> int:\n    """Do it.\n\n    Eq: 8.1.\n    """\n'
        ),
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    return tmp_path


def test_a_good_project_is_built(project: Path, tmp_path: Path) -> None:
    done = build(project, tmp_path / "site")
    assert done.returncode == 0, done.stderr[-4000:]
    assert (tmp_path / "site/api/upslope.good.html").is_file()


def test_faults_stop_the_build(project: Path, tmp_path: Path) -> None:
    bad = {
        "docs/index.md": (
            "# Home\n\n[a](theory/08-gae.md#nowhere) [b](missing.md) [c](../src/missing.py)\n\n"
            "The price is $5.\n"
        ),
        "docs/extra.md": "# Extra\n",
        "docs/theory/08-gae.md": (
            "# GAE\n\n$\\wrongcommand$\n\n"
            "**Eq. 8.1** `gae` · computed by `upslope.good.missing` · checked by `t.py::t`\n"
        ),
        "src/upslope/bad.py": "class Bad:\n    def method(self): ...\n\ndef function(): ...\n",
    }
    for name, text in bad.items():
        (project / name).write_text(text, encoding="utf-8")
    done = build(project, tmp_path / "site")
    assert done.returncode != 0
    warnings = "\n".join(line for line in done.stderr.splitlines() if "WARNING" in line)
    for fault in (
        "does not contain an anchor '#nowhere'",
        "contains a link 'missing.md'",
        "index.md links to src/missing.py, which does not exist",
        "a dollar sign began no formula",
        'not included in the "nav"',
        "wrongcommand",
        "upslope.bad has no docstring",
        "upslope.bad.Bad has no docstring",
        "upslope.bad.Bad.method has no docstring",
        "upslope.bad.function has no docstring",
        "names Eq. 8.1, which no theory page has",
        "upslope.good.missing",
    ):
        assert fault in warnings, f"{fault!r} is not in\n{done.stderr}"


@pytest.mark.parametrize(
    "latex", [r"\nosuchcommand x", r"\frac{a}", "{a", r"a \tag{1.1}", r"\begin{wrong}a\end{wrong}"]
)
def test_wrong_latex_is_an_error(latex: str) -> None:
    with pytest.raises(MathsError):
        formula(latex, display=False)


def test_a_formula_is_numbered_once() -> None:
    assert "(8.1)</span>" in formula(r"a \tag{8.1}", display=True)
    assert "equation-number" not in formula("a", display=True)
    with pytest.raises(MathsError, match="one tag at most"):
        formula(r"a \tag{8.1} \tag{8.2}", display=True)


def test_dollars_are_formulas_or_code() -> None:
    page = '<p>a <span class="arithmatex">\\(a &lt; b\\)</span> <code>$HOME</code></p>'
    assert "<mo" in to_mathml(page)
    assert "<code>$HOME</code>" in to_mathml(page)
    with pytest.raises(MathsError, match=r"costs \$5"):
        to_mathml("<p>it costs $5</p>")


def test_titles_are_plain_text() -> None:
    assert to_text(r"What \(\gamma^t\) does, 1 &lt; 2") == "What γ^t does, 1 &lt; 2"
    assert to_text("no formula") == "no formula"


def load(tmp_path: Path, code: str) -> griffe.Module:
    (tmp_path / "upslope").mkdir()
    (tmp_path / "upslope/__init__.py").write_text('"""P."""')
    (tmp_path / "upslope/m.py").write_text(f'"""M."""\nfrom typing import Protocol\n{code}')
    loader = griffe.GriffeLoader(search_paths=[tmp_path])
    package = loader.load("upslope")
    assert isinstance(package, griffe.Module)
    return package


@pytest.mark.parametrize(
    ("code", "names"),
    [
        ("def f(): ...", ["f"]),
        ("def _f(): ...", []),
        ("X = 1", []),
        ("class C:\n    def f(self): ...", ["C", "C.f"]),
        ("class C:\n    'D.'\n    def f(self): ...", ["C.f"]),
        ("class C:\n    'D.'\n    def __init__(self): ...\n    def _f(self): ...", []),
        ("class B:\n  'D.'\n  def f(self): 'D.'\nclass C(B):\n  'D.'\n  def f(self): ...", []),
        (
            "class B(Protocol):\n    'D.'\n    def f(self): 'D.'\n"
            "class C:\n    'D.'\n    def f(self): ...",
            [],
        ),
        ("import argparse\nclass C(argparse.Action):\n    'D.'\n    def format_usage(self): ...",
         ["C.format_usage"]),
        ("import json\nclass C(json.JSONEncoder):\n    'D.'\n    def encode(self, o): ...", []),
    ],
)  # fmt: skip
def test_missing_docstrings_are_found(tmp_path: Path, code: str, names: list[str]) -> None:
    assert missing(load(tmp_path, code)) == [f"upslope.m.{name}" for name in names]


def test_docstrings_become_markdown(tmp_path: Path) -> None:
    module = load(tmp_path, "def f(): 'D.'")["m"]
    text = "Eq: 8.1, 8.2. Source: a*b of ``x*y`` and :func:`f`, not :func:`g`; 1 < 2."
    assert to_markdown(text, module) == (
        r"**Eq. 8.1, 8.2.** Source: a\*b of ``x*y`` and [`f`][upslope.m.f], not `g`; 1 &lt; 2."
    )
