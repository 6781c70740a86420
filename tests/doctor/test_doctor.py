"""The doctor: every broken environment gets its diagnosis, sound ones get none."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

import upslope
from helpers.chamber import ACTIONS, OBSERVATIONS, Chamber
from upslope.cli.main import main
from upslope.doctor import diagnose
from upslope.errors import ConfigError

sys.path.insert(0, str(Path(__file__).parent))
from broken import BROKEN, Walk

SOUND = [
    "CartPole-v1", "Acrobot-v1", "Pendulum-v1", "MountainCarContinuous-v0", "FrozenLake-v1",
    "Taxi-v4", "Blackjack-v1", "LunarLander-v3", "HalfCheetah-v5", "InvertedPendulum-v5",
    "Reacher-v5", "ALE/Pong-v5",
]  # fmt: skip


@pytest.mark.parametrize("kind", BROKEN, ids=lambda kind: kind.__name__)
def test_what_is_broken_is_found(kind: type[Walk]) -> None:
    name, evidence = BROKEN[kind]
    diagnosis = diagnose(kind, steps=1200)
    found = {finding.name: finding for finding in diagnosis.findings}
    assert name in found, diagnosis
    assert evidence in found[name].evidence
    assert found[name].flag
    assert name in diagnosis.verdict
    json.dumps(diagnosis.to_json())


@pytest.mark.parametrize("env", SOUND)
def test_what_is_sound_has_no_findings(env: str) -> None:
    steps = 200 if env.startswith("ALE") else 2000
    diagnosis = diagnose(env, steps=steps)
    assert diagnosis.findings == ()
    assert diagnosis.verdict.startswith("Sound")
    assert diagnosis.facts["steps_per_second"] > 0


def test_the_walk_that_the_broken_ones_are_made_from_is_sound() -> None:
    assert diagnose(Walk, steps=600).findings == ()


@pytest.mark.parametrize("name", OBSERVATIONS)
def test_every_space_is_walked(name: str) -> None:
    for i, actions in enumerate(ACTIONS):
        mask = ("none", "method", "info", "observation")[i % 4]
        mask = "none" if actions == "box" else mask
        make = functools.partial(Chamber, name, actions, mask)
        found = {finding.name for finding in diagnose(make, steps=60).findings}
        assert not found & {"environment raises", "contract broken", "unreadable part"}


class TestFacts:
    def test_numbers_are_those_of_the_environment(self) -> None:
        facts = diagnose("CartPole-v1", steps=1500).facts
        assert facts["share_of_rewards_not_0"] == 1.0
        assert facts["share_of_truncations"] == 0.0
        assert 15 < facts["mean_length"] < 35
        assert 15 < facts["returns"]["random"] < 35
        assert 8 < facts["returns"]["zero"] < 11  # pushing to one side
        assert facts["steps"] == 1500

    def test_whether_a_time_limit_can_be_seen(self) -> None:
        class Clock(Walk):
            def observe(self) -> Any:
                return np.array([self.x, self.t / 20])

        facts = [diagnose(kind, steps=400).facts for kind in (Walk, Clock)]
        assert [f["time_limit_is_observable"] for f in facts] == [False, True]

    def test_a_limit_that_is_given_is_kept(self) -> None:
        facts = diagnose("Pendulum-v1", max_episode_steps=7, steps=300).facts
        assert facts["mean_length"] == 7
        assert facts["share_of_truncations"] == 1.0


def test_it_ends_in_time() -> None:
    class Slow(Walk):
        def step(self, action: Any) -> Any:
            time.sleep(0.03)
            return super().step(action)

    started = time.perf_counter()
    diagnosis = diagnose(Slow, seconds=1.0)
    assert time.perf_counter() - started < 3
    assert [f.name for f in diagnosis.findings] == ["slow"]
    assert diagnosis.findings[0].flag == "--vec async"


def test_a_vector_is_refused() -> None:
    with pytest.raises(ConfigError, match="single environments"):
        diagnose(gym.make_vec("CartPole-v1", 2))


class TestCommand:
    def test_json(self, capsys: Any) -> None:
        assert main(["doctor", "CartPole-v1", "--json", "--steps", "300"]) == 0
        said = json.loads(capsys.readouterr().out)
        assert set(said) == {"verdict", "findings", "facts"}
        assert said["findings"] == []

    def test_a_broken_file_still_gets_a_verdict(self, capsys: Any) -> None:
        file = Path(__file__).parent / "broken.py"
        assert main(["doctor", f"{file}:HugeRewards", "--steps", "300"]) == 0
        said = capsys.readouterr().out
        assert "reward scale" in said
        assert "-> --norm-reward" in said
        assert main(["doctor", f"{file}:Raises", "--json"]) == 0
        finding = json.loads(capsys.readouterr().out)["findings"][0]
        assert set(finding) == {"name", "evidence", "flag"}

    def test_an_unknown_id_is_refused(self, capsys: Any) -> None:
        assert main(["doctor", "CartPol-v1"]) == 2
        assert "CartPole-v1" in capsys.readouterr().err

    def test_help_does_not_wait_for_torch(self) -> None:
        code = (
            "import sys; from upslope.cli.main import main; main(['doctor', '--help']); "
            "sys.exit('torch' in sys.modules)"
        )
        assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


def test_a_flag_that_is_named_exists() -> None:
    flags = {f.flag for kind in BROKEN for f in diagnose(kind, steps=200).findings}
    for flag in flags:
        if flag.startswith("--"):
            name = flag[2:].split()[0].replace("-", "_")
            assert name in upslope.PPOConfig.__dataclass_fields__, flag
