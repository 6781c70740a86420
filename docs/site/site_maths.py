"""LaTeX to MathML while the site is built: browsers draw MathML themselves, so no script is loaded.

The Markdown extension ``pymdownx.arithmatex`` finds ``$...$`` and ``$$...$$`` and leaves elements
of the class ``arithmatex``; :func:`to_mathml` replaces what is in them. LaTeX that cannot be read,
and a dollar sign that began no formula, raise :class:`MathsError`.
"""

from __future__ import annotations

import html
import re
from xml.etree import ElementTree

from math_core import LatexError, LatexToMathML

_ELEMENT = re.compile(
    r"<(?P<tag>span|div) class=\"arithmatex\">\\(?P<open>[(\[])(?P<latex>.*?)\\[)\]]</(?P=tag)>",
    re.DOTALL,
)
_IN_TITLE = re.compile(r"\\\((.*?)\\\)")
_TAG = re.compile(r"\\tag\{([^{}]*)\}")
_NOT_PROSE = re.compile(r"<(pre|code|script|style|math)\b.*?</\1>|<[^>]*>", re.DOTALL)
# A combining character does not stretch as an accent: the bar becomes a border, the hat a sign.
_BAR = re.compile(
    '<mover accent="true">((?:(?!<mover).)*?)<mo stretchy="true">\u0332</mo></mover>', re.DOTALL
)
_HAT = ('<mo stretchy="true">\u0302</mo>', '<mo stretchy="true">\u02c6</mo>')
_CONVERTER = LatexToMathML(fancy_error=False)


class MathsError(ValueError):
    """A formula that cannot be set."""


def to_mathml(page: str) -> str:
    """Return a page's HTML with every formula as MathML, a tagged one with its number beside it.

    Raises:
        MathsError: for LaTeX that cannot be read, or a dollar sign left over in the text.
    """
    converted = _ELEMENT.sub(_element, page)
    stray = re.search(r".{0,40}\$.{0,40}", _NOT_PROSE.sub(" ", converted))
    if stray is not None:
        raise MathsError(f"a dollar sign began no formula: {stray.group().strip()!r}")
    return converted


def formula(latex: str, display: bool) -> str:
    r"""Return one formula as MathML; ``\tag{8.1}`` becomes the number on the right.

    Raises:
        MathsError: if the LaTeX cannot be read, or an inline formula has a tag.
    """
    numbers = _TAG.findall(latex)
    if len(numbers) > display:
        raise MathsError(f"one tag at most, and only in a display: {latex.strip()!r}")
    try:
        mathml = _CONVERTER.convert_with_local_state(
            _TAG.sub("", latex).strip(), displaystyle=display
        )
    except LatexError as error:
        raise MathsError(f"{latex.strip()!r}: {str(error).strip()}") from error
    mathml = _BAR.sub(r'<mrow class="overline">\1</mrow>', mathml).replace(*_HAT)
    if not display:
        return mathml
    number = f'<span class="equation-number">({numbers[0]})</span>' if numbers else ""
    return f'<div class="equation"><div class="equation-body">{mathml}</div>{number}</div>'


def to_text(title: str) -> str:
    r"""Return a title with its ``\(...\)`` in plain characters, for menus and search results."""
    return _IN_TITLE.sub(lambda match: _text(_tree(match[1])), title)


def _tree(latex: str) -> ElementTree.Element:
    mathml = formula(html.unescape(latex), display=False)
    return ElementTree.fromstring(mathml.replace("&ApplyFunction;", ""))


def _text(element: ElementTree.Element) -> str:
    joint = {"msup": "^", "msub": "_", "mfrac": "/"}.get(element.tag, "")
    return (element.text or "") + joint.join(_text(child) for child in element)


def _element(match: re.Match[str]) -> str:
    return formula(html.unescape(match["latex"]), display=match["open"] == "[")
