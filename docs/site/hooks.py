"""What MkDocs calls while it builds the site: pages for modules and linked files, links, formulas.

Every complaint goes through :data:`log` as a warning, and ``make docs`` builds with ``--strict``,
which makes a warning an error.
"""

from __future__ import annotations

import ast
import logging
import posixpath
import re
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from mkdocs.structure.toc import AnchorLink
from site_maths import MathsError, to_mathml, to_text
from site_notebook import executed, to_page, unexecuted

log = logging.getLogger("mkdocs.hooks.site")

_FENCE = re.compile(r"^(```|~~~).*?^\1", re.DOTALL | re.MULTILINE)
_LINK = re.compile(r"(?<!!)\[(?P<text>[^\]]*)\]\((?P<target>[^)\s]+)\)")
_EQUATION_LINE = re.compile(r"^\*\*Eq\. (?P<number>\d+\.\d+)\*\* .*$", re.MULTILINE)
_CODE = re.compile(r"`([^`]+)`")
_NARROW = re.compile(r'<td.*?</td>|<p class="equation-line">.*?</p>', re.DOTALL)
_CODE_ELEMENT = re.compile(r"<code>([^<]*)</code>")
_MODULES_HERE = "<!-- modules -->"
_LANGUAGES = {".py": "python", ".md": "markdown", ".toml": "toml", ".csv": "text", "": "text"}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add a page per module, per file that a page links to outside ``docs``, and the notebook."""
    root = Path(config.config_file_path).parent
    for module in _modules(root):
        page = f"---\ntitle: {module}\n---\n\n# `{module}`\n\n::: {module}\n"
        page += _passed_on(root, module)
        files.append(File.generated(config, f"api/{module}.md", content=page))
    sources: set[str] = set()
    for file in files.documentation_pages():
        _outward(file.content_string, file.src_uri, root, sources.add)
    for source in sorted(sources):
        files.append(File.generated(config, _source_page(source), content=_fenced(root / source)))
    for notebook in [file for file in files if file.src_uri.endswith(".ipynb")]:
        _add_notebook(notebook, files, config)
    config.nav = [*(config.nav or []), {"API": ["api/index.md", *_nested(sorted(_modules(root)))]}]
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Point links at pages of the site, and make a numbered equation's names links."""
    root = Path(config.config_file_path).parent
    uri = page.file.src_uri
    if uri.startswith("source/"):
        return markdown
    markdown = _outward(markdown, uri, root, lambda _: None, complain=True)
    if _MODULES_HERE in markdown:
        markdown = markdown.replace(_MODULES_HERE, _module_table(root))
    return _EQUATION_LINE.sub(lambda line: _equation_line(line.group(), uri, root), markdown)


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn LaTeX into MathML, and an API page's equation numbers into links."""
    uri = page.file.src_uri
    if uri.startswith("source/"):
        return html
    try:
        html = to_mathml(html)
        page.meta["title"] = to_text(str(page.title))
        _name_sections(page.toc)
    except MathsError as error:
        log.warning("%s: %s", uri, error)
    if uri.startswith("api/"):
        html = re.sub(
            r"<strong>Eq\. ([\d., ]+)\.</strong>",
            lambda line: _numbers(line[1], page, files),
            html,
        )
    return html


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> str:
    """Let long names in tables and under equations break at their joints only."""
    if page.file.src_uri.startswith("source/"):
        return output
    return _NARROW.sub(lambda cell: _CODE_ELEMENT.sub(_breakable, cell.group()), output)


def _breakable(code: re.Match[str]) -> str:
    text = re.sub(r"(::|[_.(/])(?=[^<]{2})", r"\1<wbr>", code[1])
    return f"<code>{text}</code>"


def _name_sections(entries: Iterable[AnchorLink]) -> None:
    for entry in entries:
        entry.title = to_text(entry.title)
        _name_sections(entry.children)


@cache
def _modules(root: Path) -> dict[str, str]:
    """Return the first line of every public module by its name, a package before its parts."""
    source, found = root / "src", {}
    for path in sorted(source.rglob("*.py"), key=lambda path: path.relative_to(source).parts):
        parts = path.relative_to(source).with_suffix("").parts
        parts = parts[:-1] if parts[-1] == "__init__" else parts
        if not any(part.startswith("_") for part in parts):
            text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
            found[".".join(parts)] = text.partition("\n\n")[0].replace("\n", " ")
    return found


def _passed_on(root: Path, module: str) -> str:
    """A table of the names that a package imports to pass on, each linked to its home."""
    tree = ast.parse((_file_of(root, module)).read_text(encoding="utf-8"))
    homes = {
        name.asname or name.name: statement.module or ""
        for statement in ast.walk(tree)
        if isinstance(statement, ast.ImportFrom)
        for name in statement.names
    }
    named = [
        ast.literal_eval(statement.value)
        for statement in tree.body
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "__all__"
    ]
    rows = [
        _name_row(root, name, homes[name])
        for name in (named[0] if named else [])
        if homes.get(name, "").startswith("upslope")
    ]
    head = (
        "\n## Names in this package\n\n| name | described in | what it is |\n| --- | --- | --- |\n"
    )
    return head + "\n".join(rows) + "\n" if rows else ""


def _name_row(root: Path, name: str, home: str) -> str:
    text = ""
    if _file_of(root, f"{home}.{name}").exists():
        first = _modules(root)[f"{home}.{name}"]
        return f"| [`{name}`]({home}.{name}.md) | `{home}.{name}` | {first} |"
    for found in ast.parse(_file_of(root, home).read_text(encoding="utf-8")).body:
        if isinstance(found, ast.ClassDef | ast.FunctionDef) and found.name == name:
            text = (ast.get_docstring(found) or "").partition("\n\n")[0].replace("\n", " ")
        elif isinstance(found, ast.ImportFrom) and name in {part.name for part in found.names}:
            return _name_row(root, name, found.module or home)
    first = re.sub(r":\w+:`([^`]*)`", r"`\1`", text)
    return f"| [`{name}`]({home}.md#{home}.{name}) | [`{home}`]({home}.md) | {first} |"


def _file_of(root: Path, module: str) -> Path:
    path = root.joinpath("src", *module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def _nested(names: list[str]) -> list[Any]:
    """The navigation: modules of a package under the package."""
    packages = {name for name in names if any(n.startswith(f"{name}.") for n in names)}
    tree: dict[str, list[Any]] = {name: [f"api/{name}.md"] for name in packages}
    for name in names:
        parent = name.rpartition(".")[0]
        if parent in tree and name not in packages:
            tree[parent].append(f"api/{name}.md")
    top = min(packages, key=len)
    inner = [{name: tree[name]} for name in sorted(packages) if name != top]
    return [*tree[top], *inner]


def _outward(
    markdown: str, uri: str, root: Path, found: Callable[[str], None], complain: bool = False
) -> str:
    """Rewrite links that leave ``docs``; ``found`` hears of each file that needs a page."""

    def replace(link: re.Match[str]) -> str:
        target, _, anchor = link["target"].partition("#")
        if target.endswith(".ipynb"):
            return f"[{link['text']}]({target.removesuffix('.ipynb')}.md)"
        path = posixpath.normpath(posixpath.join("docs", posixpath.dirname(uri), target))
        if "://" in target or not target or path.startswith("docs/"):
            return link.group()
        if not (root / path).exists():
            if complain:
                log.warning("%s links to %s, which does not exist", uri, path)
            return link.group()
        page = _page_of(path, root)
        if page is None:
            return link["text"]
        if page.startswith("source/"):
            found(path)
        return f"[{link['text']}]({_relative(page, uri)}{'#' + anchor if anchor else ''})"

    return _outside_fences(markdown, lambda text: _LINK.sub(replace, text))


def _outside_fences(markdown: str, change: Callable[[str], str]) -> str:
    end, parts = 0, []
    for fence in _FENCE.finditer(markdown):
        parts += [change(markdown[end : fence.start()]), fence.group()]
        end = fence.end()
    return "".join([*parts, change(markdown[end:])])


def _page_of(path: str, root: Path) -> str | None:
    """The page that shows a file: a module's in the API, a source page, or none for a folder."""
    if path.startswith("src/"):
        module = path.removeprefix("src/").removesuffix(".py").removesuffix("/__init__")
        if not any(part.startswith("_") for part in module.split("/")):
            return f"api/{module.replace('/', '.')}.md"
    return None if (root / path).is_dir() else _source_page(path)


def _source_page(path: str) -> str:
    return f"source/{path}.md"


def _relative(page: str, uri: str) -> str:
    return posixpath.relpath(page, posixpath.dirname(uri) or ".")


def _fenced(path: Path) -> str:
    text = path.read_text(encoding="utf-8")
    fence = "`" * 3
    while fence in text:
        fence += "`"
    language = _LANGUAGES.get(path.suffix, "text")
    head = f"---\ntitle: {path.name}\nsearch:\n  exclude: true\nhide: [toc]\n---\n\n"
    return f"{head}# `{path.name}`\n\n{fence}{language}\n{text}\n{fence}\n"


def _add_notebook(file: File, files: Files, config: MkDocsConfig) -> None:
    path = Path(str(file.abs_src_path))
    run = config.extra.get("run_notebook", True)
    page, pictures = to_page(executed(path) if run else unexecuted(path), path.stem)
    files.append(File.generated(config, f"{path.stem}.md", content=page))
    for name, content in pictures.items():
        files.append(File.generated(config, name, content=content))


def _equation_line(line: str, uri: str, root: Path) -> str:
    """Link the functions of an equation to the API; tests are named, their files are not pages."""
    head, _, tests = line.partition(" · checked by ")

    def function(name: re.Match[str]) -> str:
        return f"[`{name[1]}`][{name[1]}]" if name[1].startswith("upslope.") else name.group()

    tests = _CODE.sub(lambda name: f"`{name[1]}`", tests)
    return f"{_CODE.sub(function, head)} · checked by {tests}\n{{ .equation-line }}"


def _numbers(numbers: str, page: Page, files: Files) -> str:
    return (
        "<strong>Eq. "
        + ", ".join(_number(number, page, files) for number in numbers.split(", "))
        + ".</strong>"
    )


def _number(number: str, page: Page, files: Files) -> str:
    chapter, _, place = number.partition(".")
    for file in files.documentation_pages():
        if re.fullmatch(rf"theory/0*{chapter}-[^/]*\.md", file.src_uri):
            if f'id="eq-{chapter}-{place}"' not in file.content_string:
                break
            url = posixpath.relpath(file.url, posixpath.dirname(page.url) or ".")
            return f'<a href="{url}#eq-{chapter}-{place}">{number}</a>'
    log.warning("%s names Eq. %s, which no theory page has", page.file.src_uri, number)
    return number


def _module_table(root: Path) -> str:
    rows = [f"| [`{name}`]({name}.md) | {first} |" for name, first in _modules(root).items()]
    return "\n".join(["| module | what it is |", "| --- | --- |", *rows])
