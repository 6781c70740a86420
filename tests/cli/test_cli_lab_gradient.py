"""``upslope lab gradient``: what it prints, what it writes, and what it refuses."""

from __future__ import annotations

import csv
import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import upslope
from upslope.cli import lab_gradient
from upslope.cli.main import main
from upslope.lab.gradient import measure

Command = Callable[..., Any]
SMALL = {"n_envs": 2, "n_steps": 32, "batch_size": 32, "n_epochs": 1, "net_arch": (8,)}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of the command line."""
    path = tmp_path_factory.mktemp("finished") / "run"
    small = ["--n-envs=2", "--n-steps=32", "--batch-size=32", "--net-arch=8", "-n", "512"]
    small += ["--episodes=0", "--quiet"]
    assert main(["train", "CartPole-v1", *small, f"--run-dir={path}"]) == 0
    return path


def objects(out: str) -> Any:
    """The one JSON object that is all of ``out``; no NaN, no infinity."""
    return json.loads(out, parse_constant=pytest.fail)


class TestOutput:
    def test_says_the_answer_first(self, upslope_command: Command, run: Path) -> None:
        done = upslope_command("lab", "gradient", run, "--episodes=20")
        assert done.err == ""
        sentences, noise, agreement = done.out.rsplit("\n\n", 2)
        parts = " ".join(sentences.split())
        assert parts.startswith("CartPole-v1, ppo: 20 fresh episodes of ")
        best, scale = parts.index("Best estimator: "), parts.index("Noise scale: ")
        assert best < scale < parts.index("This run takes 64 steps an iteration")
        study = measure(upslope.load(run / "model.safetensors"), 20)
        names = [row.name for row in study.rows]
        for table in (noise, agreement):
            lines = table.strip().splitlines()
            assert max(map(len, lines)) <= 120
            head = next(i for i, line in enumerate(lines) if line.startswith("  estimator "))
            shown = [line[2:32].strip().removesuffix(" *") for line in lines[head + 1 :]]
            assert shown == names
        assert f"  {study.own} * " in noise
        assert " reference " in noise

    def test_json_is_one_object_and_nothing_else(self, upslope_command: Command, run: Path) -> None:
        done = upslope_command("lab", "gradient", run, "--episodes=12", "--seed=3", "--json")
        assert done.err == ""
        said = objects(done.out)
        agent = upslope.load(run / "model.safetensors")
        wanted = json.loads(json.dumps(measure(agent, 12, seed=3).to_json()))
        assert said.items() >= wanted.items()
        assert said["model"] == str(run / "model.safetensors")
        assert said["findings"][0].startswith("CartPole-v1, ppo: 12 fresh episodes")
        again = upslope_command("lab", "gradient", run, "--episodes=12", "--seed=3", "--json")
        assert again.out == done.out

    def test_files(
        self, upslope_command: Command, here: Path, run: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        pytest.importorskip("matplotlib")
        monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)  # it would look for a display
        done = upslope_command("lab", "gradient", run, "--episodes=12", "--out=a/b")
        assert done.out.endswith("\nwritten  a/b/gradient.json, gradient.csv, gradient.png\n")
        written = objects(Path("a/b/gradient.json").read_text())
        printed = upslope_command(
            "lab", "gradient", run, "--episodes=12", "--json", "--out=a/b"
        ).out
        assert objects(printed) == written
        with open("a/b/gradient.csv", newline="") as file:
            lines = list(csv.DictReader(file))
        for line, row in zip(lines, written["estimators"], strict=True):
            assert line["name"] == row["name"]
            assert float(line["variance"]) == row["variance"]["value"]
            assert float(line["variance_low"]) == row["variance"]["ci99"][0]
            high = row["noise_scale"]["ci99"][1]
            assert line["noise_scale_high"] == ("" if high is None else str(high))
        picture = Path("a/b/gradient.png").read_bytes()
        assert picture.startswith(b"\x89PNG")
        assert len(picture) > 20_000

    def test_seed_matters(self, upslope_command: Command, run: Path) -> None:
        asked = ["lab", "gradient", run, "--episodes=8", "--json"]
        one, two = (objects(upslope_command(*asked, f"--seed={s}").out) for s in (1, 2))
        assert one["estimators"] != two["estimators"]

    def test_a_bar_on_a_terminal_only(
        self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for quiet, terminal, shown in ((False, False, 0), (True, True, 0), (False, True, 1)):
            monkeypatch.setattr(sys.stderr, "isatty", lambda is_one=terminal: is_one)
            monkeypatch.setenv("FORCE_COLOR", "1")
            with lab_gradient._bar(quiet) as progress:
                assert (progress is not None) == bool(shown)
                if progress is not None:
                    progress("collecting 8 episodes", 0, 0)
                    progress("gradients", 3, 8)
            out, err = capsys.readouterr()
            assert out == ""
            assert ("gradients" in err) == bool(shown)

    def test_help_names_the_flags(self, upslope_command: Command) -> None:
        out = upslope_command("lab", "gradient", "--help").out
        for flag in ("RUN", "--env", "--episodes", "--seed", "--out", "--json", "64"):
            assert flag in out


KINDS = {
    "memory": (upslope.PPO, "CartPole-v1", SMALL | {"memory": "lstm", "memory_size": 8}),
    "masked": (upslope.PPO, "Taxi-v4", SMALL | {"max_episode_steps": 40}),
    "continuous": (
        upslope.A2C,
        "Pendulum-v1",
        {"n_envs": 2, "n_steps": 8, "net_arch": (8,), "max_episode_steps": 40, "norm_obs": True,
         "norm_reward": True, "warmup_steps": 64},
    ),
    "squashed": (
        upslope.VPG,
        "Pendulum-v1",
        {"n_envs": 2, "n_steps": 32, "batch_size": 32, "net_arch": (8,), "max_episode_steps": 30,
         "action_dist": "squashed", "n_critic_updates": 2},
    ),
}  # fmt: skip


class TestPolicies:
    @pytest.mark.parametrize("kind", KINDS)
    def test_of_every_kind(self, upslope_command: Command, here: Path, kind: str) -> None:
        make, env, settings = KINDS[kind]
        make(env, **settings).learn(64).save("m.safetensors")
        asked = ["lab", "gradient", "m.safetensors", "--episodes=6", "--json"]
        said = objects(upslope_command(*asked).out)
        assert said["left_out"] == []
        own = kind == "squashed"  # whose lambda, .97, no other estimator has
        assert len(said["estimators"]) == 12 + own
        for row in said["estimators"]:
            assert row["variance"]["value"] > 0, row["name"]
            assert row["noise_scale"]["ci99"][0] is not None

    def test_without_a_value(self, upslope_command: Command, here: Path) -> None:
        upslope.REINFORCE("CartPole-v1", net_arch=(8,)).learn(64).save("m.safetensors")
        out = " ".join(
            upslope_command("lab", "gradient", "m.safetensors", "--episodes=8").out.split()
        )
        assert "No V was trained in this run, so the estimators that read one are left out:" in out
        assert "reward-to-go - V, TD residual, GAE(0.5), GAE(0.9), GAE(0.95), GAE(1)." in out
        assert "This run takes" in out
        assert "reward-to-go - leave-one-out *" in out

    def test_a_time_limit_is_mentioned_and_can_be_set(
        self, upslope_command: Command, run: Path
    ) -> None:
        asked = ["lab", "gradient", run, "--episodes=8", "--max-episode-steps=5"]
        out = " ".join(upslope_command(*asked).out.split())
        assert "8 fresh episodes of 5.0 steps" in out
        assert "A time limit cut 100 % of the episodes" in out

    def test_no_gradient_is_undecided(self, upslope_command: Command, here: Path) -> None:
        Path("mine.py").write_text(
            "from upslope.envs.tabular import TabularEnv, bandit\n"
            "def make_env(): return TabularEnv(bandit(1.0, 1.0))\n"
        )
        upslope.PPO("mine.py:make_env", **SMALL).save("m.safetensors")
        asked = ["lab", "gradient", "m.safetensors", "--env=mine.py:make_env"]
        out = " ".join(upslope_command(*asked).out.split())
        assert "64 fresh episodes of 1.0 steps" in out
        assert "Noise scale: undecided" in out
        assert "Undecided in 64 episodes, of 9 estimators: the noise scale of 9" in out
        assert "0 in every episode" in out


class TestRefused:
    def test_no_such_run(self, upslope_command: Command, here: Path) -> None:
        said = upslope_command("lab", "gradient", "runs/none", code=2).err
        assert "runs/none is no run directory" in said
        assert said.count("\n") == 1

    @pytest.mark.parametrize("n", [1, 3])
    def test_too_few_episodes(self, upslope_command: Command, run: Path, n: int) -> None:
        done = upslope_command("lab", "gradient", run, f"--episodes={n}", "--json", code=2)
        assert f"{n} episode(s) cannot tell the signal" in done.err
        assert "at least 4" in done.err
        assert done.err.count("\n") == 1
        assert done.out == ""

    def test_an_environment_of_the_users_own(self, upslope_command: Command, here: Path) -> None:
        Path("mine.py").write_text(
            "import gymnasium as gym\ndef make_env(): return gym.make('CartPole-v1')\n"
        )
        upslope.PPO("mine.py:make_env", **SMALL).save("m.safetensors")
        said = upslope_command("lab", "gradient", "m.safetensors", code=2).err
        assert "--env mine.py:make_env" in said

    def test_an_episode_that_never_ends(
        self, upslope_command: Command, run: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("upslope.envs.episodes.ENDLESS", 3)
        said = upslope_command("lab", "gradient", run, "--episodes=8", code=3).err
        assert "--max-episode-steps" in said
        assert said.count("\n") == 1

    def test_a_folder_that_cannot_be_made(
        self, upslope_command: Command, here: Path, run: Path
    ) -> None:
        pytest.importorskip("matplotlib")
        Path("file").write_text("")
        said = upslope_command("lab", "gradient", run, "--out=file", code=2).err
        assert "--out file cannot be made" in said

    def test_a_file_that_cannot_be_written(
        self, upslope_command: Command, here: Path, run: Path
    ) -> None:
        pytest.importorskip("matplotlib")
        Path("out/gradient.csv").mkdir(parents=True)
        done = upslope_command("lab", "gradient", run, "--episodes=4", "--out=out", code=2)
        assert "out/gradient.csv: Is a directory" in done.err
        assert done.err.count("\n") == 1

    def test_a_missing_extra(
        self, upslope_command: Command, here: Path, run: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        find = importlib.util.find_spec
        monkeypatch.setattr(
            importlib.util, "find_spec", lambda name: None if name == "matplotlib" else find(name)
        )
        said = upslope_command("lab", "gradient", run, "--out=out", code=2).err
        assert "pip install 'upslope[plots]'" in said
        assert not Path("out").exists()
        upslope_command("lab", "gradient", run, "--episodes=4")

    def test_ctrl_c(
        self, upslope_command: Command, run: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def interrupted(*_: Any, **__: Any) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr("upslope.lab.gradient.unit_gradients", interrupted)
        done = upslope_command("lab", "gradient", run, "--episodes=4", code=130)
        assert (done.out, done.err) == ("", "upslope: interrupted\n")
