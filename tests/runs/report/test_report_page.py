"""The page: what it holds, what it leaves out, and what it makes of damaged and hostile runs."""

from __future__ import annotations

import csv
import json
import re
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from report_runs import ROWS, record

import upslope
from upslope.errors import ConfigError
from upslope.evaluation import Sample
from upslope.runs.report import REPORT, report, write_report
from upslope.runs.report.data import read_run
from upslope.runs.report.findings import Finding
from upslope.runs.report.metrics import METRICS
from upslope.runs.report.page import render


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished run, to be changed."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


def written(run: Path) -> str:
    write_report(run, None)
    return (run / REPORT).read_text()


def embedded(page: str) -> Any:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)
    assert found
    return json.loads(found[1])


class TestTheFile:
    def test_carries_every_number_of_progress_csv(self, run: Path) -> None:
        (inside,) = embedded(written(run))["runs"]
        with (run / "progress.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        tags = {tag for row in rows for tag, cell in row.items() if cell}
        assert inside["columns"].keys() == tags
        for tag in tags:
            assert inside["columns"][tag] == [float(row[tag]) if row[tag] else None for row in rows]

    def test_asks_nothing_of_the_network(self, run: Path) -> None:
        page = written(run)
        assert "default-src 'none'" in page
        assert not re.findall(r"""(?:src|href|url)\s*[=(]\s*["']?(?!data:)[a-z]+:""", page)
        assert "http" not in page.replace("http-equiv", "")
        assert " style=" not in page  # the policy of the page would refuse it

    def test_says_what_ran_and_how_to_run_it_again(self, run: Path) -> None:
        (run / "command.txt").write_text("upslope train CartPole-v1 --seed 0\n")
        page, config = written(run), json.loads((run / "config.json").read_text())
        assert "CartPole-v1 · ppo · seed 0" in page
        assert '<pre class="command">upslope train CartPole-v1 --seed 0</pre>' in page
        assert f"torch {config['versions']['torch']}" in page
        assert config["git_commit"] is None or config["git_commit"] in page
        for name in config["settings"]:
            assert f"&#34;{name}&#34;" in page

    def test_shows_the_columns_that_there_are_with_their_words(self, run: Path) -> None:
        page, seen = written(run), read_run(run).columns
        for metric in METRICS:
            is_drawn = metric.tag in seen and not metric.is_absence_at_zero
            assert (f'data-tag="{metric.tag}"' in page) == is_drawn, metric.tag
            assert (f"<strong>{metric.title}</strong>" in page) == is_drawn
        assert "Average return" in page.split("<figcaption>")[1]

    def test_draws_the_entropy_and_not_its_loss(self) -> None:
        page = render([record()])
        panel = page.split("<strong>Entropy of the policy</strong>")[1].split("</figure>")[0]
        assert "0.39 in the last row" in panel
        assert "<span>0.7</span>" in panel

    def test_shows_the_evaluation(self, run: Path) -> None:
        page, scores = written(run), json.loads((run / "evaluation.json").read_text())
        assert f"<td>{scores['sampled']['mean']:,.4g}</td>" in page
        assert f"<td>{scores['random']['mean']:,.4g}</td>" in page
        assert "<td>a random policy</td>" in page
        assert "This is about this policy" in page
        assert "<th>successes</th>" not in page  # this environment reports none
        (run / "evaluation.json").unlink()
        assert "No evaluation was made" in written(run)

    def test_shows_scores_within_scores(self, run: Path) -> None:
        one = {"mean": 12.5, "ci95": [10.0, 15.0], "std": 2.0, "episodes": 9, "success_rate": 0.5}
        scores = {"seed": 3, "best_model": {"sampled": one, "step": 7}, "deterministic": one}
        (run / "evaluation.json").write_text(json.dumps(scores))
        page = written(run)
        assert "the best policy on the way: sampled actions, as in training" in page
        assert "<td>10 to 15</td>" in page
        assert "<th>successes</th>" in page

    def test_equal_returns_are_no_interval(self, run: Path) -> None:
        sample = Sample(np.full(100, 500.0), np.ones(100, int), np.ones(100), 475.0)
        (run / "evaluation.json").write_text(json.dumps({"sampled": sample.to_json()}))
        page = written(run)
        assert "500 to 500" not in page
        said = "none: all 100 returns equal (95 %: at most 3 % of episodes differ)"
        assert f'<td class="words">{said}</td>' in page
        assert "<td>0 % [0, 3.6]</td>" in page  # below the threshold, Clopper and Pearson
        assert "<td>100 % [96, 100]</td>" in page  # successes, Wilson

    def test_says_that_it_was_resumed(self, run: Path) -> None:
        state = json.loads((run / "run.json").read_text())
        (run / "command.txt").write_text("upslope train CartPole-v1 -n 640\n")
        for resumed in ([], [{"checkpoint": 4, "scheduled": True, "at": "2025-01-02"}]):
            (run / "run.json").write_text(json.dumps(state | {"resumed": resumed}))
            page = written(run)
            assert ("was resumed" in page) is bool(resumed)
            assert "no longer the undisturbed run" not in page
        resumed.append({"checkpoint": 9, "scheduled": False, "at": "2025-01-03"})
        (run / "run.json").write_text(
            json.dumps(state | {"resumed": resumed, "total_timesteps": 2_000})
        )
        page = written(run)
        assert "Resumed at checkpoint 4 on 2025-01-02, which is scheduled: still" in page
        assert "Resumed at checkpoint 9 on 2025-01-03, which is not scheduled: no longer" in page
        assert (
            "The run was resumed 2 times, and the command that began it reproduces it only where "
            "every resume was from a scheduled checkpoint, which 1 of 2 was not; its goal in the "
            "end was 2,000 steps (--total-timesteps 2000), not the 640 of the command, and both "
            "have schedules of their own."
        ) in page

    def test_shows_where_the_time_went(self, run: Path) -> None:
        page, state = written(run), json.loads((run / "run.json").read_text())
        longest = max(state["phase_seconds"], key=state["phase_seconds"].get)
        assert longest == "update"
        assert re.search(r"<tr><td>gradient steps</td><td>[\d.]+ s</td>", page)

    @pytest.mark.parametrize(
        ("state", "words"),
        [
            ({"state": "finished", "timesteps": 10, "seconds": 2}, "finished after 10 steps"),
            ({"state": "interrupted", "timesteps": 10}, "interrupted after 10 steps"),
            ({"state": "failed", "error": "a reward is nan"}, "failed: a reward is nan"),
            ({"state": "running"}, "not ended"),
            ({}, "not ended"),
        ],
    )
    def test_says_how_the_run_ended(self, run: Path, state: Any, words: str) -> None:
        (run / "run.json").write_text(json.dumps(state))
        assert words in written(run)

    def test_tells_findings_with_evidence_and_remedy(self, run: Path) -> None:
        (run / "evaluation.json").write_text("{}")
        page = render([record({"train/approx_kl": [0.5] * ROWS})])
        assert "<strong>KL spikes</strong>" in page
        assert "40 of 40 updates moved the policy by more than 0.1 nats" in page
        assert "--learning-rate" in page
        assert "could not be judged" in page

    def test_is_fast_enough_to_end_every_run_with(self, run: Path) -> None:
        header, *rows = (run / "progress.csv").read_text().splitlines()
        many = [rows[i % len(rows)] for i in range(200)]
        (run / "progress.csv").write_text("\n".join([header, *many]) + "\n")
        write_report(run, None)  # the first one imports
        took = []
        for _ in range(3):
            start = time.process_time()
            write_report(run, None)
            took.append(time.process_time() - start)
        assert min(took) < 0.25, "seconds of the processor"

    def test_of_very_many_rows_stays_small_and_keeps_the_extremes(self) -> None:
        n = 60_000
        table = {
            "time/total_timesteps": [float(i) for i in range(n)],
            "rollout/ep_rew_mean": [float(i == 777) for i in range(n)],
        }
        long = record({**dict.fromkeys(record().columns), **table})
        page = render([long])
        assert len(page) < 400_000
        (inside,) = embedded(page)["runs"]
        assert inside["rows"] == n
        assert inside["stride"] == 12
        assert inside["columns"]["time/total_timesteps"][-1] == n - 1
        line = re.search(r'<polyline class="line s0" points="([^"]*)"', page)
        assert line
        heights = [float(point.split(",")[1]) for point in line[1].split()]
        assert len(heights) < 1_000
        assert min(heights) == 0.0  # the one row that stands out


class TestSeveralRuns:
    def test_share_their_charts_and_a_table(self, run: Path, tmp_path: Path) -> None:
        other = Path(shutil.copytree(run, tmp_path / "other"))
        size, findings = report([run, other], tmp_path / "both.html", None)
        page = (tmp_path / "both.html").read_text()
        assert size == len(page.encode())
        assert len(findings) == 2
        assert page.count('data-tag="rollout/ep_rew_mean"') == 1
        chart = page.split('data-tag="rollout/ep_rew_mean"')[1].split("</svg>")[0]
        assert chart.count("<polyline") == 2
        assert "s0" in chart
        assert "s1" in chart
        assert [inside["name"] for inside in embedded(page)["runs"]] == ["run", "other"]
        assert page.count("<h2>To run it again</h2>") == 2

    def test_of_one_name_are_told_apart_by_their_paths(self, run: Path, tmp_path: Path) -> None:
        other = Path(shutil.copytree(run, tmp_path / "elsewhere" / "run"))
        report([run, other], tmp_path / "both.html", None)
        inside = embedded((tmp_path / "both.html").read_text())["runs"]
        assert [part["name"] for part in inside] == [str(run), str(other)]

    def test_of_several_algorithms_have_one_colour_each(self) -> None:
        page = render([record(), record(algorithm="a2c"), record()])
        chart = page.split('data-tag="rollout/ep_rew_mean"')[1].split("</svg>")[0]
        assert re.findall(r'class="line s(\d)"', chart) == ["0", "1", "0"]


class TestHostileRuns:
    def test_names_and_values_are_text_and_never_markup(self, run: Path) -> None:
        evil = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"
        config = json.loads((run / "config.json").read_text())
        config["environment"]["name"] = config["algorithm"] = config["git_commit"] = evil
        config["settings"]["seed"] = evil
        (run / "config.json").write_text(json.dumps(config))
        (run / "command.txt").write_text(evil)
        state = {"state": "failed", "error": evil, "phase_seconds": {evil: 1.0}}
        (run / "run.json").write_text(json.dumps(state))
        (run / "evaluation.json").write_text(json.dumps({evil: {"mean": 1.0}}))
        header, *rows = (run / "progress.csv").read_text().splitlines()
        named = [f'{header},"{evil}"', *(f"{row},1" for row in rows)]
        (run / "progress.csv").write_text("\n".join(named) + "\n")
        page = written(run)
        assert page.count("<script") == 2  # the data and the page's own
        assert "<img" not in page
        assert evil in embedded(page)["runs"][0]["columns"]


class TestDamagedRuns:
    def test_a_last_line_that_was_cut_short_is_left_out(self, run: Path) -> None:
        whole = (run / "progress.csv").read_text()
        before = read_run(run).columns
        cut = whole.rstrip("\n")  # complete cells, but nobody can know that
        (run / "progress.csv").write_text(cut)
        after = read_run(run).columns
        for tag, cells in after.items():
            assert list(cells) == list(before[tag])[:-1]

    def test_a_run_that_was_killed_at_once_has_a_report(self, run: Path) -> None:
        header = (run / "progress.csv").read_text().splitlines()[0]
        (run / "progress.csv").write_text(header + "\n")
        for name in ("run.json", "evaluation.json", "command.txt", "model.safetensors"):
            (run / name).unlink()
        assert "No row was written" in written(run)

    @pytest.mark.parametrize("name", ["progress.csv", "config.json"])
    @pytest.mark.parametrize("content", [b"", b"\0\xff\xfe", b"[]", b"{", b"a,b\n1,2\n", None])
    def test_without_what_a_report_is_about_is_one_sentence(
        self, run: Path, name: str, content: bytes | None
    ) -> None:
        (run / name).unlink()
        if content is not None:
            (run / name).write_bytes(content)
        with pytest.raises(ConfigError, match=name) as said:
            write_report(run, None)
        assert "\n" not in str(said.value)
        assert not (run / REPORT).exists()

    def test_random_damage_is_a_page_or_one_sentence(self, run: Path) -> None:
        rng = np.random.default_rng(upslope.__version__.count(".") + 5)
        names = ("progress.csv", "config.json", "run.json", "evaluation.json", "command.txt")
        originals = {name: (run / name).read_bytes() for name in names if (run / name).exists()}
        pages, said = 0, []
        for _ in range(150):
            name = list(originals)[rng.integers(len(originals))]
            (run / name).write_bytes(damaged(originals[name], rng))
            try:
                write_report(run, None)
                pages += 1
            except ConfigError as error:
                said.append(str(error))
            (run / name).write_bytes(originals[name])
        assert pages > 10
        assert len(said) > 10
        assert not any("\n" in sentence for sentence in said)

    def test_numbers_in_the_wrong_places_are_left_out(self, run: Path) -> None:
        wrong: list[Any] = [None, [], {}, "x", True, 1e999, -1, 10**400, [[1]], {"mean": {}}]
        for value in wrong:
            keys = ("seed", "ent_coef", "target_kl")
            config = {"algorithm": value, "settings": dict.fromkeys(keys, value), "versions": value}
            config |= {"environment": value, "engine": value, "git_commit": value}
            (run / "config.json").write_text(json.dumps(config))
            state = {"state": value, "timesteps": value, "seconds": value, "phase_seconds": value}
            (run / "run.json").write_text(json.dumps(state))
            scores = {"sampled": value, "random": {"mean": value, "std": value, "ci95": value}}
            (run / "evaluation.json").write_text(json.dumps(scores))
            assert "<h2>Diagnosis</h2>" in written(run)

    def test_numbers_beyond_drawing_are_carried_all_the_same(self) -> None:
        huge = record({"train/grad_norm": [1.5e308, -1.5e308, *[1e-320] * (ROWS - 2)]})
        assert embedded(render([huge]))["runs"][0]["columns"]["train/grad_norm"][0] == 1.5e308

    def test_a_place_that_cannot_be_written_is_one_sentence(self, run: Path) -> None:
        (run / "taken").write_text("precious")
        with pytest.raises(ConfigError, match="taken"):
            report([run], run / "taken" / "report.html", None)
        assert (run / "taken").read_text() == "precious"

    def test_without_jinja2_is_one_sentence(
        self, run: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "jinja2", None)
        with pytest.raises(ConfigError, match=r"pip install 'upslope\[report\]'"):
            write_report(run, None)


def damaged(content: bytes, rng: np.random.Generator) -> bytes:
    """The content cut, with bytes changed, or with a piece repeated."""
    kind, at = rng.integers(3), int(rng.integers(max(1, len(content))))
    if kind == 0:
        return content[:at]
    if kind == 1:
        changed = bytearray(content)
        for _ in range(int(rng.integers(1, 20))):
            changed[int(rng.integers(len(changed)))] = int(rng.integers(256))
        return bytes(changed)
    return content[:at] + content[at // 2 :]


def test_a_sentence_has_its_three_parts() -> None:
    assert Finding("a", "b", "c").sentence == "a: b; c"


def test_write_report_returns_sentences(run: Path) -> None:
    scores = json.loads((run / "evaluation.json").read_text())
    scores["random"] |= {"mean": 400.0, "std": 1.0}
    (run / "evaluation.json").write_text(json.dumps(scores))
    (said,) = write_report(run, None)
    assert said.startswith("no evidence of learning: ")
