"""Each theory page ends in its measurement: a command, its figure, and the numbers it prints."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
PAGES = sorted((ROOT / "docs/theory").glob("[0-9]*.md"))
LARGEST = 150_000  # bytes of a figure
NUMBER = re.compile(r"(?<![\w.])[-+]?\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?")
WORDS = 2  # digits from which a number is a figure and not a word of the sentence


def script_of(page: Path) -> Path:
    return ROOT / "docs/figures" / f"{page.stem.replace('-', '_')}.py"


def figure_of(page: Path) -> Path:
    return page.parent / "figures" / f"{page.stem}.png"


def measured(page: Path) -> str:
    """The section of a page that says what was measured."""
    _, heading, rest = page.read_text(encoding="utf-8").partition("\n## Measured\n")
    assert heading, f"{page.name} has no section Measured"
    section, _, _ = rest.partition("\n## ")
    return section


def figures_in(section: str) -> list[str]:
    """Numbers of a section's prose: no code, no formulas, links or names, no single digits."""
    prose = re.sub(r"```.*?```|`[^`]*`|!?\[[^\]]*\]\([^)]*\)|\$[^$]*\$", " ", section, flags=re.S)
    prose = re.sub(r"\bEqs?\. [\d., and]+\d|\bpages? \d+", " ", prose)
    found = (match.rstrip(",") for match in NUMBER.findall(prose))
    return [number for number in found if sum(c.isdigit() for c in number) >= WORDS]


def test_there_are_pages() -> None:
    assert len(PAGES) == 14
    scripts = {path.name for path in (ROOT / "docs/figures").glob("[0-9]*.py")}
    assert scripts == {script_of(page).name for page in PAGES}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_page_names_its_command_and_shows_its_figure(page: Path) -> None:
    section = measured(page)
    assert f"```sh\npython docs/figures/{script_of(page).name}\n```" in section
    assert re.search(rf"!\[[^\]]{{20,}}\]\(figures/{page.stem}\.png\)", section)
    picture = figure_of(page).read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert len(picture) < LARGEST


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_measurement_closes_the_page(page: Path) -> None:
    headings = re.findall(r"^## (.+)$", page.read_text(encoding="utf-8"), flags=re.M)
    place = headings.index("Measured")
    assert set(headings[place + 1 :]) <= {"Take along", "Sources"}


def test_numbers_of_prose_are_found() -> None:
    section = (
        "After 40 runs, `x = 99`, [page 12](12-x.md), $10^3$: 0.25 of 1,000 and 3e-12; 7 more."
    )
    assert figures_in(section) == ["40", "0.25", "1,000", "3e-12"]


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_command_makes_the_figure_and_prints_the_numbers(page: Path, tmp_path: Path) -> None:
    """In a folder of its own: a picture may differ with a machine's fonts, the numbers may not."""
    environment = {**os.environ, "FIGURES": str(tmp_path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(script_of(page))], cwd=ROOT, env=environment, text=True,
        capture_output=True, timeout=400, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / f"{page.stem}.png").read_bytes().startswith(b"\x89PNG")
    printed = set(NUMBER.findall(done.stdout))
    missing = [number for number in figures_in(measured(page)) if number not in printed]
    assert not missing, f"{missing} are not printed:\n{done.stdout}"
