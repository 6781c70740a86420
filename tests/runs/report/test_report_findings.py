"""Diagnosis: each planted fault fires its own rule, and sound runs fire none."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from report_runs import (
    ROWS,
    SMALL,
    Drifting,
    Endless,
    record,
    sound_table,
    train,
    write_evaluation,
)

from upslope.runs.report import findings as rules
from upslope.runs.report.actions import action_facts
from upslope.runs.report.data import read_run
from upslope.runs.report.findings import RULES, diagnose, not_judged

Setting = dict[str, Any]
BOX = {"type": "Box", "shape": [2], "low": [-1.0], "high": [1.0]}
PENDULUM = SMALL | {"n_epochs": 10, "gamma": 0.9, "learning_rate": 1e-3}
REAL_FAULTS: list[tuple[str, str, Any, int, Setting]] = [
    ("no episode finished", "PPO", Endless, 6_000,
     SMALL | {"gamma": 0.9, "learning_rate": 3e-3}),
    ("value explains nothing", "PPO", "CartPole-v1", 12_000,
     SMALL | {"vf_coef": 0.0, "learning_rate": 1e-3}),
    ("entropy gone early", "A2C", "CartPole-v1", 6_000,
     {"n_envs": 8, "learning_rate": 0.1, "vf_coef": 0.01, "seed": 0}),
    ("entropy stuck at its maximum", "PPO", "CartPole-v1", 8_000,
     SMALL | {"ent_coef": 5.0, "learning_rate": 2e-3}),
    ("KL spikes", "PPO", "CartPole-v1", 8_000, SMALL | {"learning_rate": 0.1}),
    ("clip fraction high", "PPO", "CartPole-v1", 8_000,
     SMALL | {"learning_rate": 1e-3, "clip_range": 0.0002}),
    ("actions clipped by the bounds", "PPO", "Pendulum-v1", 16_000,
     PENDULUM | {"log_std_init": 1.9}),
    ("learning rate zero", "PPO", "CartPole-v1", 8_000,
     SMALL | {"learning_rate": lambda left: 2e-3 if left > 0.3 else 0.0}),
    ("normaliser moves the policy", "PPO", Drifting, 10_000,
     SMALL | {"norm_obs": True, "learning_rate": 2e-3, "warmup_steps": 0}),
    ("line search fails", "TRPO", "CartPole-v1", 6_000,
     {"target_kl": 5.0, "cg_damping": 1e-6, "line_search_max_iter": 1, "n_envs": 8, "n_steps": 64,
      "seed": 0}),
]  # fmt: skip


def names(found: list[rules.Finding]) -> list[str]:
    return [finding.name for finding in found]


class TestRealFaults:
    @pytest.mark.parametrize(
        ("name", "algorithm", "env", "steps", "settings"),
        REAL_FAULTS,
        ids=[fault[0] for fault in REAL_FAULTS],
    )
    def test_fire_their_own_rule(
        self, name: str, algorithm: str, env: Any, steps: int, settings: Setting, tmp_path: Path
    ) -> None:
        train(tmp_path / "run", algorithm, env, steps, **settings)
        found = diagnose(read_run(tmp_path / "run"))
        assert names(found) == [name], [finding.sentence for finding in found]

    def test_a_rate_that_moves_nothing_is_not_above_a_random_policy(self, tmp_path: Path) -> None:
        settings = SMALL | {"learning_rate": 1e-9}
        agent = train(tmp_path / "run", "PPO", "CartPole-v1", 6_000, **settings)
        write_evaluation(tmp_path / "run", agent)
        (found,) = diagnose(read_run(tmp_path / "run"))
        assert found.name == "no evidence of learning"
        assert "moved the policy by" in found.evidence
        assert "--learning-rate" in found.remedy


class TestSoundRuns:
    @pytest.mark.parametrize(
        ("algorithm", "env", "steps", "settings"),
        [
            ("PPO", "CartPole-v1", 20_000, {"learning_rate": 2e-3, **SMALL}),
            ("A2C", "CartPole-v1", 12_000, {"n_envs": 8, "learning_rate": 2e-3, "seed": 0}),
            ("TRPO", "CartPole-v1", 12_000, {"n_envs": 8, "n_steps": 64, "seed": 0}),
        ],
    )
    def test_fire_no_rule(
        self, algorithm: str, env: str, steps: int, settings: Setting, tmp_path: Path
    ) -> None:
        agent = train(tmp_path / "run", algorithm, env, steps, **settings)
        write_evaluation(tmp_path / "run", agent)
        run = read_run(tmp_path / "run")
        assert [finding.sentence for finding in diagnose(run)] == []
        assert not_judged(run) == []

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("algorithm", "env", "steps"),
        [
            ("PPO", "CartPole-v1", 100_000),  # solved: the targets no longer vary
            ("PPO", "Pendulum-v1", 60_000),
            ("A2C", "CartPole-v1", 40_000),
            ("VPG", "CartPole-v1", 60_000),
            ("REINFORCE", "CartPole-v1", 60_000),
            ("NPG", "CartPole-v1", 60_000),
            ("TRPO", "Pendulum-v1", 100_000),
            ("PPO", "FrozenLake-v1", 100_000),
        ],
    )
    def test_with_presets_fire_no_rule(
        self, algorithm: str, env: str, steps: int, tmp_path: Path
    ) -> None:
        agent = train(tmp_path / "run", algorithm, env, steps, preset="auto", seed=0)
        write_evaluation(tmp_path / "run", agent)
        assert [f.sentence for f in diagnose(read_run(tmp_path / "run"))] == []


def changed(tag: str, change: Callable[[int, float], float | None]) -> dict[str, Any]:
    """One column of the sound table, changed row by row."""
    return {tag: [change(row, cell or 0.0) for row, cell in enumerate(sound_table()[tag])]}


def score(mean: float, std: float = 10.0, episodes: int = 100) -> dict[str, Any]:
    return {"mean": mean, "std": std, "episodes": episodes}


class TestTables:
    """Each rule at both sides of its threshold; ``ROWS`` rows in which all else is sound."""

    def test_the_sound_one_fires_nothing(self) -> None:
        assert diagnose(record()) == []
        assert len(not_judged(record())) == 1

    def test_no_episode_finished(self) -> None:
        none = {"rollout/episodes": [0.0] * ROWS, "rollout/ep_rew_mean": None}
        assert names(diagnose(record(none))) == ["no episode finished"]
        assert diagnose(record({**none, "rollout/episodes": [0.0] * (ROWS - 1) + [1.0]})) == []

    @pytest.mark.parametrize(
        ("trained", "random", "fires"),
        [
            (score(22), score(20), True),
            (score(24), score(20), False),
            (score(10), score(20), True),
            (score(20, 0.0), score(20, 0.0), True),
            (score(21, 0.0), score(20, 0.0), False),
            (score(19, 0.0), score(20, 0.0), True),
        ],
    )
    def test_no_evidence_of_learning(self, trained: Any, random: Any, fires: bool) -> None:
        judged = record(evaluation={"sampled": trained, "random": random})
        assert names(diagnose(judged)) == ["no evidence of learning"] * fires
        assert not_judged(judged) == []

    @pytest.mark.parametrize(
        "random", [None, {}, "20", {"mean": "x"}, score(math.nan), score(20, episodes=1)]
    )
    def test_what_cannot_be_judged_is_said(self, random: Any) -> None:
        unjudged = record(evaluation={"sampled": score(20), "random": random})
        assert diagnose(unjudged) == []
        assert "could not be judged" in not_judged(unjudged)[0]

    def test_value_explains_nothing(self) -> None:
        at = lambda value: changed("train/explained_variance", lambda *_: value)  # noqa: E731
        assert names(diagnose(record(at(0.0)))) == ["value explains nothing"]
        assert diagnose(record(at(0.1))) == []
        early = {**at(0.0), "time/iterations": [0.4 * (row + 1) for row in range(ROWS)]}
        assert diagnose(record(early)) == []  # sixteen updates: too soon to tell
        still = {**at(0.0), "train/approx_kl": [1e-12] * ROWS}
        assert diagnose(record(still)) == []  # nothing moved: the critic is not what is wrong
        solved = changed("train/explained_variance", lambda row, _: 0.9 if row < 20 else 0.0)
        assert diagnose(record(solved)) == []
        flat = {**solved, "rollout/ep_rew_mean": [20.0] * ROWS}
        assert names(diagnose(record(flat))) == ["value explains nothing"]
        alike = changed("rollout/ep_rew_std", lambda row, cell: cell if row < 20 else cell / 5)
        assert diagnose(record({**at(0.0), **alike})) == []  # nothing is left to explain

    def test_entropy_gone_early(self) -> None:
        gone = changed("train/entropy_loss", lambda row, cell: cell if row < 5 else -0.01)
        flat = {"rollout/ep_rew_mean": [20.0] * ROWS}
        assert names(diagnose(record({**gone, **flat}))) == ["entropy gone early"]
        assert diagnose(record(gone)) == []  # the return still rose
        assert diagnose(record({**gone, **flat}, threshold=15.0)) == []  # solved
        late = changed("train/entropy_loss", lambda row, cell: cell if row < 20 else -0.01)
        assert diagnose(record({**late, **flat})) == []

    def test_entropy_of_a_box_gone_early(self) -> None:
        flat = {"rollout/ep_rew_mean": [20.0] * ROWS}
        for lost, fires in ((9.0, True), (7.0, False)):  # of two dimensions: 4 nats each
            gone = changed("train/entropy_loss", lambda row, _, by=lost: -2.8 if row < 2 else by)
            gone["train/entropy_loss"][2:] = [-2.8 + lost] * (ROWS - 2)
            found = diagnose(record({**gone, **flat}, action_space=BOX))
            assert names(found) == ["entropy gone early"] * fires

    def test_entropy_stuck_at_its_maximum(self) -> None:
        stuck = {"train/entropy_loss": [-0.6925] * ROWS}
        with_bonus = {"settings": {"ent_coef": 0.5}}
        found = names(diagnose(record(stuck, **with_bonus)))  # type: ignore[arg-type]
        assert found == ["entropy stuck at its maximum"]
        assert diagnose(record(stuck)) == []  # no bonus to blame
        assert diagnose(record(**with_bonus)) == []  # type: ignore[arg-type]
        box = {"train/entropy_loss": [-2 * 3.41] * ROWS}
        found = names(diagnose(record(box, action_space=BOX, **with_bonus)))  # type: ignore[arg-type]
        assert found == ["entropy stuck at its maximum"]

    def test_kl_spikes(self) -> None:
        spikes = changed("train/approx_kl", lambda row, cell: 0.2 if row in (20, 30) else cell)
        assert names(diagnose(record(spikes))) == ["KL spikes"]
        one = changed("train/approx_kl", lambda row, cell: 0.2 if row == 20 else cell)
        assert diagnose(record(one)) == []
        assert diagnose(record(spikes, algorithm="trpo")) == []  # as its target_kl allows

    def test_clip_fraction_high(self) -> None:
        high = changed("train/clip_fraction", lambda *_: 0.6)
        assert names(diagnose(record(high))) == ["clip fraction high"]
        assert diagnose(record(changed("train/clip_fraction", lambda *_: 0.45))) == []
        spikes = {**high, "train/approx_kl": [0.3] * ROWS}
        assert names(diagnose(record(spikes))) == ["KL spikes"]  # one cause, one finding

    def test_actions_clipped(self) -> None:
        clipped = {"rollout/clipped_share": [0.9] * ROWS}
        found = names(diagnose(record(clipped, action_space=BOX)))
        assert found == ["actions clipped by the bounds"]
        assert diagnose(record(clipped, action_space=BOX, threshold=300.0)) == []  # bang-bang
        assert diagnose(record({"rollout/clipped_share": [0.7] * ROWS}, action_space=BOX)) == []

    def test_return_collapsed(self) -> None:
        fallen = changed("rollout/ep_rew_mean", lambda row, cell: cell if row < 30 else 60.0)
        (found,) = diagnose(record(fallen))
        assert found.name == "return collapsed"
        assert "from 305 at 7,500 steps to 60" in found.evidence
        dip = changed("rollout/ep_rew_mean", lambda row, cell: cell if row < 30 else 200.0)
        assert diagnose(record(dip)) == []
        wide = {**fallen, "rollout/ep_rew_std": [400.0] * ROWS}  # within the noise of episodes
        assert diagnose(record(wide)) == []

    def test_learning_rate_zero(self) -> None:
        zero = changed("train/learning_rate", lambda row, cell: cell if row < 30 else 0.0)
        assert names(diagnose(record(zero))) == ["learning rate zero"]
        ends_there = changed("train/learning_rate", lambda row, cell: cell if row < 38 else 0.0)
        assert diagnose(record(ends_there)) == []

    def test_gradient_is_noise(self) -> None:
        noise = changed("train/gradient_snr", lambda row, _: 1e-4 if row % 4 == 0 else None)
        flat = {"rollout/ep_rew_mean": [20.0] * ROWS}
        (found,) = diagnose(record({**noise, **flat}))  # 250 steps a rollout: 5 episodes of 50
        assert found.name == "gradient is noise"
        assert "is 0.0005 (0.0001 an episode, 5 episodes a rollout)" in found.evidence
        assert diagnose(record(noise)) == []  # the return rises all the same
        assert diagnose(record(flat)) == []

    def test_normalizer_moves_the_policy(self) -> None:
        far = changed("train/normalizer_kl", lambda *_: 0.03)
        assert names(diagnose(record(far))) == ["normaliser moves the policy"]
        first = changed("train/normalizer_kl", lambda row, cell: 0.5 if row < 22 else cell)
        assert diagnose(record(first)) == []

    def test_line_search_fails(self) -> None:
        fails = {"train/is_line_search_success": [1.0] * 30 + [0.0] * 10}
        assert names(diagnose(record(fails, algorithm="trpo"))) == ["line search fails"]
        mostly = {"train/is_line_search_success": [0.0] * 30 + [1.0] * 10}
        assert diagnose(record(mostly, algorithm="trpo")) == []

    def test_a_run_without_rows_or_columns_is_not_judged(self) -> None:
        for rows in (0, 3):
            short = {tag: cells[:rows] for tag, cells in sound_table().items()}
            assert diagnose(record(short)) == []
        only_steps: dict[str, Any] = dict.fromkeys(sound_table())
        assert diagnose(record({**only_steps, "time/total_timesteps": [1.0] * ROWS})) == []

    def test_every_rule_is_applied_and_says_something_else(self) -> None:
        assert len({rule.__name__ for rule in RULES}) == len(RULES) == 13
        assert all(rule.__doc__ for rule in RULES)


class TestActions:
    @pytest.mark.parametrize(
        ("space", "most"),
        [
            ({"type": "Discrete", "n": 4}, math.log(4)),
            ({"type": "MultiDiscrete", "nvec": [[2, 3], [4, 1]]}, math.log(24)),
            ({"type": "MultiBinary", "n": [3]}, 3 * math.log(2)),
        ],
    )
    def test_of_choices_have_the_entropy_of_the_uniform(self, space: Any, most: float) -> None:
        facts = action_facts(space)
        assert facts is not None
        assert facts.is_discrete
        assert facts.most_entropy("gaussian") == pytest.approx(most)

    def test_of_a_box_have_a_bound_by_distribution(self) -> None:
        facts = action_facts(BOX)
        assert facts is not None
        assert facts.most_entropy("beta") == 0.0
        assert facts.most_entropy("squashed") == pytest.approx(2 * math.log(2))
        normal = 0.5 * math.log(2 * math.pi * math.e)
        assert facts.most_entropy("gaussian") == pytest.approx(2 * (normal + 2))

    @pytest.mark.parametrize(
        "space",
        [None, 5, {}, {"type": "Dict"}, {"type": "Discrete"}, {"type": "Discrete", "n": 1},
         {"type": "Discrete", "n": "4"}, {"type": "Box", "shape": None}, {"type": "Box"},
         {"type": "Box", "shape": ["a"]}, {"type": "MultiDiscrete", "nvec": [2, None]},
         {"type": "MultiBinary", "n": 3}, {"type": ["Box"]}],
    )  # fmt: skip
    def test_of_other_and_damaged_spaces_are_unknown(self, space: Any) -> None:
        assert action_facts(space) is None


def test_the_guide_lists_every_finding() -> None:
    guide = (Path(__file__).parents[3] / "docs" / "report.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| ([a-zA-Z -]+) \|", guide.partition("| --- |")[2], re.MULTILINE)
    source = Path(rules.__file__).read_text(encoding="utf-8")
    told = re.findall(r'return Finding\(\s*"([^"]+)"', source)
    assert len(told) == len(RULES)
    assert sorted(listed) == sorted(told)
