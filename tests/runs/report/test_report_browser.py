"""The page as Chromium shows it: silent, alone, and with the numbers of progress.csv."""

from __future__ import annotations

import csv
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from report_browser import Browser, find_browser

import upslope
from upslope.runs.report import REPORT, play, report
from upslope.runs.report.data import read_run
from upslope.runs.report.metrics import METRICS

pytestmark = pytest.mark.skipif(find_browser() is None, reason="no chromium or chrome is installed")

EXPRESSIONS = {
    "background": "getComputedStyle(document.body).backgroundColor",
    "wider": "document.documentElement.scrollWidth - document.documentElement.clientWidth",
    "data": "JSON.parse(document.getElementById('data').textContent).runs[0].columns",
}


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """One browser for all tests of this file."""
    path = find_browser()
    assert path is not None
    with Browser(path, tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture(scope="module")
def page(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report with an episode and, where the extras are there, a film."""
    out = tmp_path_factory.mktemp("page") / REPORT
    played = play(upslope.load(finished / "model.safetensors"), film=True)
    report([finished], out, played)
    return out


def bits(value: float | None) -> bytes:
    return b"" if value is None else struct.pack("<d", value)


class TestThePage:
    @pytest.mark.parametrize("scheme", ["light", "dark"])
    @pytest.mark.parametrize("width", [1000, 390])
    def test_is_silent_and_asks_for_nothing(
        self, browser: Browser, page: Path, scheme: str, width: int
    ) -> None:
        visit = browser.open(page, scheme=scheme, width=width)
        assert visit.complaints == []
        assert page.resolve().as_uri() in visit.requests
        assert {url.partition(":")[0] for url in visit.requests} <= {"file", "data"}
        assert [url for url in visit.requests if url.startswith("file")] == [page.as_uri()]
        assert browser.evaluate(EXPRESSIONS["wider"]) == 0  # nothing to scroll sideways

    def test_holds_the_numbers_of_progress_csv_bit_for_bit(
        self, browser: Browser, page: Path, finished: Path
    ) -> None:
        browser.open(page)
        seen = browser.evaluate(EXPRESSIONS["data"])
        with (finished / "progress.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        compared = 0
        for tag in rows[0]:
            recorded = [float(row[tag]) if row[tag] else None for row in rows]
            if any(cell is not None for cell in recorded):
                assert [bits(cell) for cell in seen[tag]] == [bits(cell) for cell in recorded], tag
                compared += 1
        assert compared == len(seen) > 10

    def test_is_light_and_dark_as_the_reader_asks(self, browser: Browser, page: Path) -> None:
        found = []
        for scheme in ("light", "dark"):
            browser.open(page, scheme=scheme)
            background = browser.evaluate(EXPRESSIONS["background"])
            found.append(sum(map(int, background.removeprefix("rgb(").rstrip(")").split(", "))))
        assert found[0] > 700
        assert found[1] < 150

    def test_draws_every_line_where_it_can_be_seen(
        self, browser: Browser, page: Path, finished: Path
    ) -> None:
        browser.open(page)
        boxes = browser.evaluate(
            "[...document.querySelectorAll('.plot[data-tag] polyline.line')].map(line => {"
            "const box = line.getBoundingClientRect(), style = getComputedStyle(line);"
            "return [line.closest('.plot').dataset.tag, box.width, style.stroke]})"
        )
        columns = read_run(finished).columns
        drawn = [m.tag for m in METRICS if m.tag in columns and not m.is_absence_at_zero]
        assert [tag for tag, *_ in boxes] == drawn
        for tag, width, stroke in boxes:
            points = [cell for cell in columns[tag] if cell is not None]
            assert width > 100 or len(points) == 1, tag
            assert stroke.startswith("rgb(")

    def test_reads_out_the_row_that_is_pointed_at(
        self, browser: Browser, page: Path, finished: Path
    ) -> None:
        browser.open(page)
        said = browser.evaluate(
            "(() => { const svg = document.querySelector('.plot[data-tag] svg');"
            "const box = svg.getBoundingClientRect();"
            "svg.dispatchEvent(new PointerEvent('pointermove', {clientX: box.right}));"
            "return document.querySelector('.reading').textContent })()"
        )
        steps, value = read_run(finished).points("rollout/ep_rew_mean")[-1]
        shown, _, at = said.partition(" at ")
        assert float(shown) == pytest.approx(value, rel=1e-5)
        assert at == f"{steps:,.0f} steps"

    def test_plays_the_episode(self, browser: Browser, page: Path) -> None:
        browser.open(page)
        moved = browser.evaluate(
            "(() => { const slider = document.getElementById('step');"
            "slider.value = slider.max; slider.dispatchEvent(new Event('input'));"
            "return [document.getElementById('at').textContent,"
            "document.querySelector('.plot[data-series] .cursor').getAttribute('x1')] })()"
        )
        assert moved[0].startswith("step ")
        assert float(moved[1]) == pytest.approx(1000)
        assert browser.visit.complaints == []

    def test_shows_the_film(self, browser: Browser, page: Path) -> None:
        if "<video" not in page.read_text():
            pytest.skip("no film was made: the extra video is not installed")
        browser.open(page)
        seen = browser.evaluate(
            "new Promise(done => { const film = document.querySelector('video');"
            "const tell = () => done([film.videoWidth, film.error === null]);"
            "if (film.readyState > 0) tell(); else { film.onloadedmetadata = tell;"
            "film.onerror = tell } })"
        )
        assert seen == [300, True]

    def test_of_several_runs_is_silent_too(
        self, browser: Browser, finished: Path, tmp_path: Path
    ) -> None:
        report([finished, finished], tmp_path / "both.html", None)
        visit = browser.open(tmp_path / "both.html", width=390)
        assert visit.complaints == []
        assert browser.evaluate(EXPRESSIONS["wider"]) == 0

    def test_without_an_episode_is_silent_too(
        self, browser: Browser, finished: Path, tmp_path: Path
    ) -> None:
        report([finished], tmp_path / REPORT, None)
        assert browser.open(tmp_path / REPORT).complaints == []


class TestTheWatch:
    """What the tests above look for is seen when it is there."""

    @pytest.mark.parametrize(
        ("body", "asked"),
        [
            ("<img src='http://elsewhere.invalid/x.png'>", True),
            ("<script>fetch('http://elsewhere.invalid/').catch(() => {})</script>", True),
            ("<script>console.error('oh')</script>", False),
            ("<script>throw new Error('oh')</script>", False),
        ],
    )
    def test_sees_requests_and_complaints(
        self, browser: Browser, tmp_path: Path, body: str, asked: bool
    ) -> None:
        (tmp_path / "bad.html").write_text(f"<!doctype html><body>{body}")
        visit = browser.open(tmp_path / "bad.html")
        outside = [url for url in visit.requests if url.startswith("http")]
        assert bool(outside) == asked
        assert asked or visit.complaints

    def test_sees_what_the_pages_own_policy_refuses(
        self, browser: Browser, page: Path, tmp_path: Path
    ) -> None:
        changed = page.read_text().replace("</main>", "<script>alert(1)</script></main>")
        (tmp_path / "changed.html").write_text(changed)
        complaints: Any = browser.open(tmp_path / "changed.html").complaints
        assert any("Content Security Policy" in said for said in complaints)
