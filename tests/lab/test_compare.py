"""Comparisons: what is run, what is kept, when they stop, and the words of what was found."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import upslope
from upslope.cli.compare import report
from upslope.errors import ConfigError, EnvironmentFaultError, NonFiniteError
from upslope.lab import compare as module
from upslope.lab import compare_runs
from upslope.lab.compare import Comparison, Plan, Progress, compare
from upslope.lab.compare_figure import figure, save_figure
from upslope.lab.compare_findings import findings
from upslope.lab.compare_runs import Arm, Job, run_job
from upslope.lab.seeded_runs import POINTS, RunLog
from upslope.statistics.contrasts import more_seeds, welch

SMALL = {"n_steps": 16, "n_envs": 2, "net_arch": (4,)}
PPO = Arm("ppo", "ppo", {**SMALL, "batch_size": 16, "n_epochs": 1}, "none")
A2C = Arm("a2c", "a2c", SMALL, "none")
PLAN = Plan("CartPole-v1", (PPO, A2C), seeds=3, total_timesteps=96, episodes=3)
Score = Callable[[Job], float]


@pytest.fixture
def scored(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Comparison, list[Job]]]:
    """``scored(score, names, ...)``: a comparison whose runs do nothing but have a score."""

    def run(score: Score, names: str = "a b", **more: Any) -> tuple[Comparison, list[Job]]:
        asked: list[Job] = []

        def instead(job: Job, report: Callable[[int], None]) -> dict[str, Any]:
            asked.append(job)
            value = score(job)
            return {
                "seed": job.seed, "timesteps": 96, "training_episodes": 1,
                "curve": [value] * POINTS,
                "score": {"mean": value, "ci95": [value, value], "threshold": 475.0},
            }  # fmt: skip

        monkeypatch.setattr(module, "run_job", instead)
        arms = tuple(Arm(name, "ppo", {}, "none") for name in names.split())
        return compare(Plan("CartPole-v1", arms, **({"seeds": 10} | more)), jobs=1), asked

    return run


def spread(job: Job) -> float:
    """Some scatter over the seeds."""
    return float((job.seed * 7919) % 11)


class TestRuns:
    def test_are_scored_by_their_final_policy_on_fresh_episodes(self) -> None:
        found = compare(PLAN, jobs=1)
        run = found.runs[1][2]
        assert run["seed"] == 102
        agent = upslope.A2C("CartPole-v1", seed=102, **SMALL).learn(96)
        score = agent.evaluate(3).sampled
        assert run["score"] == json.loads(json.dumps(score.to_json()))
        assert run["timesteps"] == 96
        assert len(run["curve"]) == POINTS
        assert found.scores[1, 2] == score.mean
        mode = run_job(replace(PLAN, is_deterministic=True).jobs(1, 3)[2], lambda _: None)
        assert mode["score"]["mean"] == agent.evaluate(3).deterministic.mean

    def test_arms_share_seeds_only_as_pairs(self) -> None:
        for is_paired, second in ((False, [100, 101]), (True, [0, 1])):
            plan = replace(PLAN, is_paired=is_paired)
            assert [job.seed for job in plan.jobs(0, 2)] == [0, 1]
            assert [job.seed for job in plan.jobs(1, 2)] == second

    def test_a_run_is_known_by_all_that_moves_it(self) -> None:
        keys = {
            job.key
            for plan in (
                PLAN, replace(PLAN, total_timesteps=97), replace(PLAN, episodes=4),
                replace(PLAN, is_deterministic=True), replace(PLAN, env="Acrobot-v1"),
                replace(PLAN, arms=(replace(PPO, settings={**PPO.settings, "gamma": 0.5}), A2C)),
            )
            for job in (plan.jobs(0, 1)[0],)
        }  # fmt: skip
        assert len(keys) == 6
        (one,), (same,) = PLAN.jobs(0, 1), replace(PLAN, seeds=9, margin=1.0).jobs(0, 1)
        assert one.key == same.key

    def test_what_stops_a_run_names_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def stops(self: Any, *_: Any) -> None:
            raise EnvironmentFaultError("the environment raised")

        monkeypatch.setattr("upslope.training.Training.run", stops)
        with pytest.raises(EnvironmentFaultError, match=r"^ppo, seed 0: the environment raised"):
            compare(PLAN, jobs=1)

    @pytest.mark.slow
    def test_the_results_do_not_depend_on_the_jobs(self) -> None:
        assert compare(PLAN, jobs=2).to_json() == compare(PLAN, jobs=1).to_json()


class TestContinues:
    @pytest.mark.parametrize("after", [1, 4])
    def test_after_a_kill_with_the_same_result(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
    ) -> None:
        expected = compare(PLAN, jobs=1).to_json()
        finished = 0

        def killed(progress: Progress) -> None:
            nonlocal finished
            finished = sum(map(len, progress.scores))
            if finished == after and progress.said is None:  # in the middle of the next run
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            compare(PLAN, jobs=1, out=tmp_path, progress=killed)
        log = tmp_path / "runs.jsonl"
        assert len(log.read_text().splitlines()) == after
        with log.open("a") as file:
            file.write('{"key": "cut o')
        ran: list[Job] = []

        def counted(job: Job, report: Callable[[int], None]) -> dict[str, Any]:
            ran.append(job)
            return run_job(job, report)

        monkeypatch.setattr(module, "run_job", counted)
        assert compare(PLAN, jobs=1, out=tmp_path).to_json() == expected
        assert len(ran) == 6 - after
        said: list[str | None] = []
        compare(PLAN, jobs=1, out=tmp_path, progress=lambda progress: said.append(progress.said))
        assert len(ran) == 6 - after
        assert said == [f"6 finished runs taken from {log}"]

    def test_by_the_plan_that_was_fixed(self, tmp_path: Path) -> None:
        one = replace(PLAN, seeds=1)
        compare(one, jobs=1, out=tmp_path)
        for other, what in (
            ({"margin": 5.0}, "margin"),
            ({"is_paired": True}, "paired"),
            ({"episodes": 4, "total_timesteps": 97}, "total_timesteps, episodes"),
            ({"arms": (A2C, PPO)}, "arms"),
            ({"seeds": 25}, "alpha"),
        ):
            with pytest.raises(ConfigError, match=f"other {what}, which were fixed before"):
                compare(replace(one, **other), jobs=1, out=tmp_path)
        assert compare(replace(one, seeds=2), jobs=1, out=tmp_path).n == 2
        (tmp_path / "plan.json").write_text("[")
        with pytest.raises(ConfigError, match="give another --out"):
            compare(one, jobs=1, out=tmp_path)

    def test_with_more_seeds_only_at_planned_looks(self, tmp_path: Path, scored: Any) -> None:
        arms = tuple(Arm(name, "ppo", {}, "none") for name in "ab")
        scored(spread)
        plan = Plan("CartPole-v1", arms, seeds=7)
        compare(plan, jobs=1, out=tmp_path)
        with pytest.raises(ConfigError, match="looks at 5, 7 seeds"):
            compare(replace(plan, seeds=10), jobs=1, out=tmp_path)
        compare(replace(plan, seeds=10), jobs=1, out=tmp_path / "b")
        assert compare(replace(plan, seeds=15), jobs=1, out=tmp_path / "b").n == 15


class TestStops:
    def test_once_decided_at_a_complete_block(self, scored: Any) -> None:
        found, asked = scored(lambda job: 100 * (job.arm.name == "b") + spread(job), seeds=20)
        assert [(job.arm.name, job.seed) for job in asked] == [
            (name, i + 100 * k) for i in range(5) for k, name in enumerate("ab")
        ]
        result = found.to_json()
        assert (result["seeds_run"], result["stopped_early"]) == (5, True)
        assert result["pairs"][0]["verdict"] == "b above a"
        assert "Stopped at 5 of up to 20 seeds" in " ".join(findings(result))

    def test_only_with_every_pair_decided(self, scored: Any) -> None:
        found, asked = scored(
            lambda job: 100 * (job.arm.name == "c") + spread(job), "a b c", seeds=10
        )
        assert len(asked) == 30
        result = found.to_json()
        verdicts = {(pair["a"], pair["b"]): pair["verdict"] for pair in result["pairs"]}
        assert verdicts == {
            ("a", "b"): "not distinguishable", ("a", "c"): "c above a", ("b", "c"): "c above b",
        }  # fmt: skip
        assert [pair["seeds"] for pair in result["pairs"]] == [10, 5, 5]
        assert [one["seeds"] for one in result["pairs"][1]["looks"]] == [5, 10]
        assert "3 pairs were decided together" in " ".join(findings(result))

    def test_at_the_last_seed(self, scored: Any) -> None:
        found, asked = scored(spread, seeds=7)
        assert len(asked) == 14
        result = found.to_json()
        assert (result["seeds_run"], result["stopped_early"]) == (7, False)
        assert result["looks"] == [5, 7]

    def test_nothing_is_decided_by_four(self, scored: Any) -> None:
        found, _ = scored(lambda job: 1000 * (job.arm.name == "b") + spread(job), seeds=4)
        (pair,) = found.to_json()["pairs"]
        assert pair["verdict"] == "refused: fewer than 5 seeds"
        assert pair["ci"][0] < -1000 < pair["ci"][1]
        assert (pair["looks"], pair["more_seeds"]) == ([], None)
        said = " ".join(findings(found.to_json()))
        assert "5 seeds are the least that decide" in said
        assert "98.18 % interval" in said

    def test_one_seed_has_no_interval(self, scored: Any) -> None:
        found, _ = scored(lambda job: 1000 * (job.arm.name == "b") + spread(job), seeds=1)
        (pair,) = found.to_json()["pairs"]
        assert (pair["ci"], pair["p"], pair["elsewhere_at_most"]) == (None, None, None)
        assert "one seed has no interval" in findings(found.to_json())[1]


class TestFound:
    def test_numbers_of_an_arm(self, scored: Any) -> None:
        few, _ = scored(lambda job: 480.0 - spread(job), seeds=5)
        many, _ = scored(lambda job: 480.0 - spread(job), seeds=10)
        for found, n in ((few, 5), (many, 10)):
            arm = found.to_json()["arms"][0]
            scores = [480.0 - (i * 7919) % 11 for i in range(n)]
            assert arm["per_seed"] == scores
            assert arm["mean"] == pytest.approx(sum(scores) / n)
            assert arm["min"] == min(scores)
            assert arm["failures"] == sum(score < 475 for score in scores)
            assert (arm["iqm"] is None) is (n < 10)
            assert (arm["iqm_ci95"] is None) is (n < 10)

    def test_not_distinguishable_with_a_range(self, scored: Any) -> None:
        found, _ = scored(spread, seeds=10)
        (pair,) = found.to_json()["pairs"]
        assert pair["verdict"] == "not distinguishable"
        assert pair["ci"][0] < 0 < pair["ci"][1]
        fewest, most = pair["more_seeds"]
        assert fewest >= 1
        assert most is None
        assert "at least about" in findings(found.to_json())[1]
        margin, _ = scored(spread, seeds=10, margin=2.0)
        (pair,) = margin.to_json()["pairs"]
        assert pair["verdict"] == "not distinguishable"
        assert "a difference of 2 apart takes about" in findings(margin.to_json())[1]

    def test_more_seeds_are_of_the_level_that_decided(self, scored: Any) -> None:
        """Holm's: of three pairs the first is tested at a third of the rule's level."""
        found, _ = scored(spread, "a b c", seeds=5)
        result, least = found.to_json(), int(np.nanargmin(found.looks[-1].p))
        pair = result["pairs"][least]
        assert pair["verdict"] == "not distinguishable"
        a, b = (found.scores["abc".index(pair[name])] for name in "ab")
        alpha = found.plan.rule.alpha
        assert pair["more_seeds"] == list(more_seeds(welch(a, b), 5, alpha / 3))
        assert pair["more_seeds"] != list(more_seeds(welch(a, b), 5, alpha))

    def test_equivalent_within_a_margin(self, scored: Any) -> None:
        found, asked = scored(spread, seeds=20, margin=25.0)
        assert len(asked) == 10
        (pair,) = found.to_json()["pairs"]
        assert pair["verdict"] == "equivalent within 25"
        assert -25 < pair["ci"][0] < pair["ci"][1] < 25

    def test_the_same_settings_and_seeds(self) -> None:
        """Equal bits seed by seed, which is said in words and not taken for certainty."""
        twice = replace(PLAN, arms=(A2C, replace(A2C, name="again")), seeds=5, is_paired=True)
        result = compare(twice, jobs=1).to_json()
        (pair,) = result["pairs"]
        assert pair["difference"] == 0.0
        assert (pair["ci"], pair["p"], pair["more_seeds"]) == (None, None, None)
        assert pair["verdict"] == "not distinguishable"
        assert pair["elsewhere_at_most"] == pytest.approx(1 - 0.05 ** (1 / 5))
        said = findings(result)[1]
        assert "+0.00" in said or "+0.0" in said
        assert "5 of 5 seeds" in said
        assert "at most 45 % of seeds differ" in said

    def test_all_at_the_ceiling(self, scored: Any) -> None:
        found, _ = scored(lambda job: 500.0, seeds=5)
        result = found.to_json()
        assert result["pairs"][0]["verdict"] == "not distinguishable"
        assert [arm["ci95"] for arm in result["arms"]] == [None, None]
        said = findings(result)
        assert said[-1] == (
            "b scored 500.0 with 5 of 5 seeds, hence without an interval: at most 45 % of its "
            "seeds differ (95 %)."
        )

    def test_two_values_without_spread(self, scored: Any) -> None:
        found, _ = scored(lambda job: 500.0 if job.arm.name == "a" else 100.0, seeds=5)
        (pair,) = found.to_json()["pairs"]
        assert pair["verdict"] == "refused: no spread"
        assert (pair["probability_of_improvement"], pair["p_improvement"]) == (
            1.0, pytest.approx(2 / 252),
        )  # fmt: skip

    def test_every_verdict_is_json_and_drawn(self, scored: Any, tmp_path: Path) -> None:
        for score, more in (
            (spread, {"seeds": 1}), (spread, {"seeds": 5, "margin": 99.0}),
            (lambda job: 500.0, {"seeds": 5}), (spread, {"seeds": 10, "is_paired": True}),
        ):  # fmt: skip
            found, _ = scored(score, "a b c", **more)
            result = found.to_json()
            json.dumps({**result, "findings": findings(result)}, allow_nan=False)
            assert figure(result).get_suptitle().startswith("CartPole-v1: ")
        save_figure(result, tmp_path / "x.png")
        assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")

    def test_the_figure_shows_every_seed(self, scored: Any) -> None:
        found, _ = scored(spread, "a b c", seeds=5)
        result = found.to_json()
        curves, seeds = figure(result).axes
        assert len(curves.get_lines()) == 3 * 5 + 3  # each seed, and the means
        assert "pointwise" in curves.get_title("left")
        dots = [line.get_ydata() for line in seeds.get_lines() if line.get_marker() == "o"]
        assert [list(y) for y in dots] == [arm["per_seed"] for arm in result["arms"]]


class TestASeedThatFails:
    """Numbers that are not finite are a result about an algorithm, and end no comparison."""

    @pytest.fixture
    def ran(self, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        """Every run that trains; seed 3 of ppo diverges, c is far above a2c."""
        asked: list[str] = []

        def train(job: Job, agent: Any, report: Callable[[int], None]) -> dict[str, Any]:
            asked.append(str(job))
            if str(job) == "ppo, seed 3":
                raise NonFiniteError("the loss is not finite: lower the learning rate")
            value = 100.0 * (job.arm.name == "c") + spread(job)
            score = {"mean": value, "ci95": [value, value], "threshold": 475.0}
            return {"seed": job.seed, "curve": [value] * POINTS, "score": score}

        monkeypatch.setattr(compare_runs, "_train", train)
        return asked

    def test_refuses_its_pairs_and_decides_the_others(self, ran: list[str]) -> None:
        plan = replace(PLAN, arms=(PPO, A2C, replace(A2C, name="c")), seeds=10)
        result = compare(plan, jobs=1).to_json()
        assert len(ran) == 15  # the block is finished, and the one pair left decides at it
        verdicts = {(pair["a"], pair["b"]): pair["verdict"] for pair in result["pairs"]}
        assert verdicts == {
            ("ppo", "a2c"): "refused: a seed failed", ("ppo", "c"): "refused: a seed failed",
            ("a2c", "c"): "c above a2c",
        }  # fmt: skip
        refused = result["pairs"][0]
        assert (refused["ci"], refused["p"], refused["difference"]) == (None, None, None)
        assert refused["elsewhere_at_most"] is None
        said = findings(result)
        assert said[1] == (
            "ppo minus a2c: refused: a seed failed. ppo failed with 1 of 5 seeds (3), and its mean "
            "over the others would flatter it (ppo, seed 3: the loss is not finite: lower the "
            "learning rate)."
        )
        assert "as every pair was decided or refused" in " ".join(said)
        result["arms"][0]["failed"] *= 5  # with none left there is no mean to speak of
        assert "ppo failed with 5 of 5 seeds (3, 3, 3, 3, 3) (ppo, seed 3" in findings(result)[1]

    def test_has_no_mean_that_the_others_would_flatter(
        self, ran: list[str], tmp_path: Path
    ) -> None:
        result = compare(replace(PLAN, seeds=5), jobs=1).to_json()
        arm, other = result["arms"]
        assert [arm[name] for name in ("mean", "ci95", "std", "iqm", "min")] == [None] * 5
        assert [score is None for score in arm["per_seed"]] == [False] * 3 + [True, False]
        assert [run["seed"] for run in arm["failed"]] == [3]
        assert (arm["threshold"], arm["failures"]) == (475.0, 4)
        assert (other["failed"], len(other["per_seed"])) == ([], 5)
        assert other["mean"] is not None
        (run,) = [run for run in result["runs"] if run["error"] is not None]
        assert (run["arm"], run["seed"], run["mean"]) == ("ppo", 3, None)
        shown = report({**result, "findings": findings(result)})
        (row,) = [line for line in shown.splitlines() if line.startswith("ppo  5, 1 failed")]
        assert row.split()[-4:] == ["failed", "4", "of", "4"]
        labels = [label.get_text() for label in figure(result).axes[1].get_xticklabels()]
        assert labels == ["ppo\n(1 failed)", "a2c"]
        save_figure(result, tmp_path / "x.png")
        json.dumps(result, allow_nan=False)

    def test_is_kept_and_not_repeated(self, ran: list[str], tmp_path: Path) -> None:
        plan = replace(PLAN, seeds=5)
        first = compare(plan, jobs=1, out=tmp_path).to_json()
        n = len(ran)
        assert compare(plan, jobs=1, out=tmp_path).to_json() == first
        assert len(ran) == n == 10


def test_a_full_disk_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = RunLog(tmp_path)

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(ConfigError, match=r"runs.jsonl': No space left on device; give another"):
        log.add(PLAN.jobs(0, 1)[0], {})


def test_one_arm_is_no_comparison() -> None:
    with pytest.raises(ConfigError, match="at least two arms"):
        compare(replace(PLAN, arms=(PPO,)), jobs=1)
