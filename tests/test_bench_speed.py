"""The speed benchmark's pure parts: pairs of runs, resuming, verdicts, and that work is equal."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from upslope.config import CONFIGS

SPEED = Path(__file__).parents[1] / "bench" / "speed"
MODULES = ("rows", "results", "contenders", "table", "run")
COMMIT = "abc1234"


@pytest.fixture(scope="module")
def speed() -> Iterator[SimpleNamespace]:
    """The benchmark's modules; their names, which other benchmarks have too, are given back."""
    before = {name: sys.modules.pop(name, None) for name in MODULES}
    sys.path.insert(0, str(SPEED))
    try:
        yield SimpleNamespace(**{name: importlib.import_module(name) for name in MODULES})
    finally:
        sys.path.remove(str(SPEED))
        for name, module in before.items():
            sys.modules.pop(name, None)
            if isinstance(module, ModuleType):
                sys.modules[name] = module


def row(speed: Any, name: str) -> Any:
    return speed.rows.BY_NAME[name]


def line(speed: Any, job: Any, rate: float, **other: str) -> dict[str, str]:
    """A finished run, as the CSV has it."""
    held = {
        "row": job.row.name, "contender": job.contender, "compile": job.compile,
        "round": str(job.round), "quick": "yes" if job.quick else "",
        "settings_hash": job.settings_hash, "steps_per_s": str(rate), "seconds": str(1 / rate),
        "wall_seconds": str(1 / rate), "steps": "1", "peak_mb": "300", "reached": "",
        "score_sampled": "", "load_average": "0.1", "git_commit": COMMIT, "date": "2026-01-01",
    }  # fmt: skip
    return dict.fromkeys(speed.results.COLUMNS, "") | held | other


def pairs(speed: Any, name: str, ours: list[float], theirs: float, **other: str) -> Any:
    """Rounds of one row, ours under ``auto`` and ``always``, the peer always at one rate."""
    this = row(speed, name)
    that = row(speed, this.against) if this.against else this
    make = speed.results.Job
    found = []
    for number, rate in enumerate(ours):
        found.append(line(speed, make(that, "sb3", "", number), theirs, reached="yes"))
        for state in ("auto", "always"):
            found.append(line(speed, make(this, "upslope", state, number), rate, **other))
    return found


class TestRatios:
    def test_they_pair_runs_of_one_round(self, speed: Any) -> None:
        this, make = row(speed, "ppo-cartpole"), speed.results.Job
        runs = [(make(this, "sb3", "", 0), 10), (make(this, "upslope", "auto", 0), 50),
                (make(this, "upslope", "auto", 1), 999), (make(this, "upslope", "auto", 2), 80),
                (make(this, "sb3", "", 2), 20)]  # fmt: skip
        lines = [line(speed, job, rate) for job, rate in runs]
        assert speed.results.ratios(this, "auto", lines) == [5, 4]
        assert speed.results.ratios(this, "always", lines) == []

    def test_the_last_of_a_repeated_run_counts_and_other_work_does_not(self, speed: Any) -> None:
        this, make = row(speed, "ppo-cartpole"), speed.results.Job
        job = make(this, "upslope", "auto", 0)
        lines = [
            line(speed, make(this, "sb3", "", 0), 10),
            line(speed, job, 20),
            line(speed, job, 30),
            line(speed, make(this, "upslope", "auto", 0, quick=True), 40),
            line(speed, job, 50, settings_hash="other"),
        ]
        assert speed.results.ratios(this, "auto", lines) == [3]

    def test_a_row_without_a_peer_takes_that_of_another(self, speed: Any) -> None:
        lines = pairs(speed, "ppo-halfcheetah-64", [70.0], 10.0)
        assert speed.results.ratios(row(speed, "ppo-halfcheetah-64"), "auto", lines) == [7]

    def test_time_to_a_return_is_theirs_over_ours_and_0_where_ours_failed(self, speed: Any) -> None:
        this = row(speed, "solve-cartpole")
        lines = pairs(speed, this.name, [8.0], 2.0, reached="yes")
        assert speed.results.ratios(this, "auto", lines) == [4]
        lines = pairs(speed, this.name, [8.0], 2.0, reached="no")
        assert speed.results.ratios(this, "auto", lines) == [0]


class TestVerdicts:
    @pytest.mark.parametrize(
        ("ratio", "auto", "always"),
        [(3.9, "no", "below the aim"), (4.1, "floor", "below the aim"), (6.1, "aim", "aim")],
    )
    def test_they_follow_the_median(self, speed: Any, ratio: float, auto: str, always: str) -> None:
        lines = pairs(speed, "ppo-cartpole", [1.0, 10 * ratio, 900.0], 10.0)
        verdict = speed.table.verdict
        assert verdict(row(speed, "ppo-cartpole"), "auto", lines) == auto
        assert verdict(row(speed, "ppo-cartpole"), "always", lines) == always

    @pytest.mark.parametrize(
        ("score", "expected"), [("4499", "no"), ("4500", "floor"), ("5650", "aim")]
    )
    def test_speed_without_the_score_is_nothing(
        self, speed: Any, score: str, expected: str
    ) -> None:
        lines = pairs(speed, "million-halfcheetah", [200.0], 10.0, score_sampled=score)
        assert speed.table.verdict(row(speed, "million-halfcheetah"), "auto", lines) == expected

    @pytest.mark.parametrize(("score", "expected"), [("449", "no"), ("450", "aim")])
    def test_a_return_has_to_be_confirmed(self, speed: Any, score: str, expected: str) -> None:
        lines = pairs(speed, "solve-cartpole", [90.0], 10.0, reached="yes", score_sampled=score)
        assert speed.table.verdict(row(speed, "solve-cartpole"), "auto", lines) == expected

    def test_less_memory_is_better(self, speed: Any) -> None:
        this = row(speed, "ppo-cartpole")
        found = [speed.table.memory_verdict(this, [x]) for x in (0.79, 0.99, 1.01)]
        assert found == ["aim", "floor", "no"]

    def test_the_table_holds_the_last_commit_and_no_quick_run(self, speed: Any) -> None:
        old = pairs(speed, "ppo-cartpole", [44_444.0, 11_111.0], 10.0, git_commit="old")
        new = pairs(speed, "ppo-cartpole", [22_222.0], 10.0)
        job = speed.results.Job(row(speed, "ppo-cartpole"), "upslope", "auto", 0, quick=True)
        quick = line(speed, job, 33_333.0, git_commit="newer")
        text = speed.table.tables([*old, *new, quick])
        assert "22,222" in text
        assert "11,111" not in text
        assert "33,333" not in text


class TestPlan:
    def test_contenders_take_turns_and_each_comes_first(self, speed: Any) -> None:
        rows = [row(speed, "ppo-cartpole")]
        jobs = speed.results.jobs_of(rows, 2, ("sb3", "sbx"), engines=("auto",), quick=False)
        assert [job.contender for job in jobs] == ["sb3", "sbx", "upslope", "sbx", "upslope", "sb3"]

    def test_a_shared_peer_runs_once_a_round(self, speed: Any) -> None:
        rows = [row(speed, "ppo-halfcheetah"), row(speed, "ppo-halfcheetah-64")]
        jobs = speed.results.jobs_of(rows, 1, ("sb3",), engines=("auto",), quick=False)
        names = [(job.row.name, job.contender) for job in jobs]
        assert names.count(("ppo-halfcheetah", "sb3")) == 1
        alone = speed.results.jobs_of(rows[1:], 1, ("sb3",), engines=("auto",), quick=False)
        assert ("ppo-halfcheetah", "sb3") in [(job.row.name, job.contender) for job in alone]

    def test_a_run_is_finished_for_its_commit_only(self, speed: Any, tmp_path: Path) -> None:
        path, make = tmp_path / "results.csv", speed.results.Job
        first, second = (make(row(speed, "ppo-cartpole"), "sb3", "", i) for i in range(2))
        speed.results.append(line(speed, first, 10), path)
        assert speed.results.unfinished([first, second], path, COMMIT) == [second]
        assert speed.results.unfinished([first, second], path, "other") == [first, second]

    def test_a_torn_line_is_no_run_and_spoils_no_other(self, speed: Any, tmp_path: Path) -> None:
        path, make = tmp_path / "results.csv", speed.results.Job
        first, second = (make(row(speed, "ppo-cartpole"), "sb3", "", i) for i in range(2))
        speed.results.append(line(speed, first, 10), path)
        path.write_text(path.read_text().removesuffix("2026-01-01\n"))
        speed.results.append(line(speed, second, 20), path)
        assert speed.results.unfinished([first, second], path, COMMIT) == [first]


class Interrupting:
    """Stands in for the processes: each run ends at once, the second one by Ctrl-C."""

    started: tuple[str, ...] = ()

    def __init__(self, speed: Any) -> None:
        self.speed = speed

    def __enter__(self) -> Interrupting:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def run(self, job: Any) -> dict[str, str]:
        Interrupting.started += (str(job),)
        if len(Interrupting.started) == 2:
            raise KeyboardInterrupt
        return line(self.speed, job, 10.0) | {"steps_per_s": 10.0, "seconds": 1.0, "peak_mb": 1.0}


def test_ctrl_c_exits_130_and_the_same_command_goes_on(
    speed: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "results.csv"
    command = ["run.py", "--quick", "--row", "a2c", "--rounds", "2", "--csv", str(path)]
    monkeypatch.setattr(sys, "argv", command)
    monkeypatch.setattr(speed.run, "git_commit", lambda: COMMIT)
    monkeypatch.setattr(speed.run, "Contenders", lambda _: Interrupting(speed))
    monkeypatch.setattr(Interrupting, "started", ())
    assert speed.run.main() == 130
    assert len(speed.results.read(path)) == 1
    assert speed.run.main() == 0
    first, stopped, *rest = Interrupting.started
    assert len(rest) == 3
    assert stopped in rest
    assert first not in rest
    assert speed.run.main() == 0
    assert len(Interrupting.started) == 5


class TestEqualWork:
    def test_a_run_with_other_settings_is_refused(self, speed: Any) -> None:
        job = speed.results.Job(row(speed, "ppo-cartpole"), "sb3", "", 0)
        facts = job.row.facts
        speed.contenders.check_facts(facts, job)
        with pytest.raises(speed.contenders.RunError, match=r"vf_coef was 1\.0, not 0\.5"):
            speed.contenders.check_facts(facts | {"vf_coef": 1.0}, job)

    def test_ours_takes_every_setting_by_the_same_name(self, speed: Any) -> None:
        for this in speed.rows.ROWS:
            made = CONFIGS[this.algorithm].from_settings(this.settings).to_json()
            assert {name: made[name] for name in this.settings} == this.settings

    @pytest.mark.parity
    def test_defaults_are_those_of_the_peer(self, speed: Any) -> None:
        import sb3_contrib
        import stable_baselines3

        peers = [
            (stable_baselines3.PPO, speed.rows.PPO),
            (stable_baselines3.A2C, speed.rows.A2C),
            (sb3_contrib.TRPO, speed.rows.TRPO),
        ]
        for peer, settings in peers:
            defaults = inspect.signature(peer).parameters
            assert {name: defaults[name].default for name in settings} == settings
