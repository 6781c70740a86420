"""LaTeX to MathML while the site is built: browsers draw MathML themselves, so no script is loaded.

The Markdown extension ``pymdownx.arithmatex`` finds ``$...$`` and ``$$...$$`` and leaves elements of
the class ``arithmatex``; :func:`to_mathml` replaces what is in them. LaTeX that cannot be read, and
a dollar sign that began no formula, raise :class:`MathsError`.
"""

from __future__ import annotations

import html
import re

from math_core import LatexError, LatexToMathML

_ELEMENT = re.compile(
    r"<(?P<tag>span|div) class=\"arithmatex\">\\(?P<open>[(\[])(?P<latex>.*?)\\[)\]]</(?P=tag)>",
    re.DOTALL,
)
_TAG = re.compile(r"\\tag\{([^{}]*)\}")
_NOT_PROSE = re.compile(r"<(pre|code|script|style|math)\b.*?</\1>|<[^>]*>", re.DOTALL)
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
    if not display:
        return mathml
    number = f'<span class="equation-number">({numbers[0]})</span>' if numbers else ""
    return f'<div class="equation"><div class="equation-body">{mathml}</div>{number}</div>'


def _element(match: re.Match[str]) -> str:
    return formula(html.unescape(match["latex"]), display=match["open"] == "[")
