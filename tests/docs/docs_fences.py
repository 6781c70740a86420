"""The fenced blocks of a Markdown page."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Fence:
    """One block: its language, its text, its first line's number, and whether prose precedes it."""

    language: str
    text: str
    line: int
    follows_directly: bool


def fences(page: str) -> list[Fence]:
    """Return the fenced blocks of a page in order.

    Raises:
        ValueError: if a fence is never closed.
    """
    found: list[Fence] = []
    lines, i, last_end = page.splitlines(), 0, 0
    while i < len(lines):
        opening = re.match(r"(\s*)(`{3,}|~{3,})\s*([\w+-]*)", lines[i])
        i += 1
        if opening is None:
            continue
        start = i
        while i < len(lines) and lines[i].strip() != opening[2]:
            i += 1
        if i == len(lines):
            raise ValueError(f"the fence opened in line {start} is never closed")
        directly = bool(found) and not "".join(lines[last_end : start - 1]).strip()
        text = "\n".join(line.removeprefix(opening[1]) for line in lines[start:i])
        found.append(Fence(opening[3], text, start + 1, directly))
        i = last_end = i + 1
    return found


def commands(page: str) -> list[str]:
    """Return the command lines of a page's ``sh`` fences, continued lines joined."""
    text = "\n".join(fence.text for fence in fences(page) if fence.language == "sh")
    lines = re.sub(r"\\\n\s*", "", text).splitlines()
    return [line.strip().removeprefix("$ ") for line in lines if line.strip()]
