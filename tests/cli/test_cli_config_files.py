"""``upslope train --config FILE``: the RL Zoo's files, and files that must not be believed."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from upslope.cli.settings_file import MAX_BYTES, algorithm_asked, settings_from_file
from upslope.errors import ConfigError

Command = Callable[..., Any]
ENTRY = """
CartPole-v1: &cartpole
  n_envs: 2
  n_timesteps: !!float 96
  policy: 'MlpPolicy'
  n_steps: 16
  batch_size: 256
  n_epochs: 2
  learning_rate: lin_0.001
  clip_range: lin_0.2
  use_sde: True
  policy_kwargs: "dict(log_std_init=-2, activation_fn=nn.ReLU, net_arch=dict(pi=[8], vf=[9]))"
Acrobot-v1:
  <<: *cartpole
  gamma: 0.9
"""


@pytest.fixture
def zoo(here: Path) -> Path:
    """A file of the zoo's kind in the current directory."""
    (here / "ppo.yml").write_text(ENTRY)
    return here / "ppo.yml"


@pytest.fixture
def refused(upslope_command: Command, here: Path) -> Callable[..., str]:
    """Run ``upslope train`` on a settings file of this text, which must end with one sentence."""

    def run(name: str, text: str | bytes, *flags: str) -> str:
        data = text if isinstance(text, bytes) else text.encode()
        (here / name).write_bytes(data)
        done = upslope_command("train", "CartPole-v1", "--config", name, *flags, code=2)
        (line,) = done.err.splitlines()
        assert line.startswith("upslope: ")
        assert "bug" not in line
        assert done.out == ""
        assert sorted(path.name for path in here.iterdir()) == [name]  # no marker and no run
        return str(line)

    return run


def recorded(run: Path) -> dict[str, Any]:
    return dict(json.loads((run / "config.json").read_text())["settings"])


class TestZoo:
    def test_trains_as_the_entry_says(
        self, upslope_process: Command, here: Path, zoo: Path
    ) -> None:
        process = upslope_process(
            "train", "CartPole-v1", "--config=ppo.yml", "--episodes=0", "--run-dir=run"
        )
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
        said = err.splitlines()
        assert len(said) == 2
        assert said[0].startswith("CartPole-v1 in ppo.yml: use_sde has no equivalent: ")
        assert "batch_size=256 is more than the 32 rows" in said[1]
        assert "96 steps" in out
        settings = recorded(here / "run")
        assert settings["net_arch"] == {"pi": [8], "vf": [9]}
        assert (settings["learning_rate"], settings["clip_range"]) == ("lin_0.001", "lin_0.2")
        assert (settings["n_envs"], settings["batch_size"]) == (2, 32)
        assert (settings["activation_fn"], settings["log_std_init"]) == ("relu", -2.0)
        assert settings["preset"] == "none"

    def test_flags_override_it(self, upslope_command: Command, here: Path, zoo: Path) -> None:
        upslope_command(
            "train", "CartPole-v1", "--config=ppo.yml", "--episodes=0", "--run-dir=run", "-n", "24",
            "--n-envs=3", "--n-steps=8", "--gamma=0.5",
        )  # fmt: skip
        settings = recorded(here / "run")
        assert (settings["n_envs"], settings["batch_size"], settings["gamma"]) == (3, 24, 0.5)
        assert json.loads((here / "run" / "run.json").read_text())["timesteps"] == 24

    def test_merged_entries(self, here: Path, zoo: Path, caplog: pytest.LogCaptureFixture) -> None:
        with caplog.at_level(logging.WARNING, "upslope"):
            found = settings_from_file("ppo.yml", "ppo", "Acrobot-v1", {})
        assert (found.settings["gamma"], found.settings["n_envs"]) == (0.9, 2)
        assert (found.total_timesteps, found.env) == (96, "Acrobot-v1")
        assert [record.levelname for record in caplog.records] == ["WARNING", "WARNING"]

    def test_an_id_that_nobody_makes_any_more(self, here: Path) -> None:
        (here / "a.yaml").write_text("Reacher-v2: {gamma: 0.9}\n")
        assert settings_from_file("a.yaml", "ppo", "Reacher-v2", {}).env == "Reacher-v5"

    def test_an_environment_that_is_not_in_it(self, refused: Command) -> None:
        said = refused("ppo.yml", ENTRY.replace("CartPole-v1:", "CartPole-v2:"))
        assert "no entry for CartPole-v1; the nearest are CartPole-v2" in said

    def test_without_pyyaml(self, refused: Command, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "yaml", None)
        assert "pip install 'upslope[zoo]'" in refused("ppo.yml", ENTRY)

    def test_settings_of_a_run_of_the_zoo(self, refused: Command) -> None:
        text = "!!python/object/apply:collections.OrderedDict\n- - - gamma\n    - 0.9\n"
        assert "config.yml cannot be read: could not determine a constructor" in refused(
            "config.yml", text
        )


class TestAlgorithm:
    @pytest.mark.parametrize(
        ("arguments", "algorithm"),
        [
            ([], "ppo"),
            (["--config", "a/trpo.yml"], "trpo"),
            (["--config=a2c.yaml"], "a2c"),
            (["--config", "mine.yml"], "ppo"),
            (["--config", "a2c.yml", "--algo", "trpo"], "trpo"),
        ],
    )
    def test_of_flag_or_name(self, arguments: list[str], algorithm: str) -> None:
        assert algorithm_asked(["CartPole-v1", *arguments]) == algorithm

    def test_of_a_table(self, here: Path) -> None:
        (here / "a.toml").write_text('algo = "vpg"\n')
        assert algorithm_asked(["X", "--config=a.toml"]) == "vpg"

    def test_another(self, refused: Command) -> None:
        assert "sac, which is not trained here" in refused("sac.yml", ENTRY)
        assert "sac, which is not trained here" in refused("sac.yml", ENTRY, "--algo=ppo")
        with pytest.raises(ConfigError, match="--algo dqn is not one of"):
            algorithm_asked(["X", "--algo", "dqn"])

    def test_the_zoo_has_three(self, refused: Command) -> None:
        assert "not of vpg" in refused("ppo.yml", ENTRY, "--algo=vpg")


CODE = "__import__('pathlib').Path('marker').touch()"


class TestNothingIsEvaluated:
    @pytest.mark.parametrize(
        "value",
        [
            "!!python/object/apply:os.system ['touch marker']",
            "!!python/object/apply:pathlib.Path.touch [marker]",
            "!!python/object/new:os.system [touch marker]",
            "!!python/name:os.system",
            f'"{CODE}"',
            f'"dict(a={CODE})"',
            "\"[open('marker', 'w') for _ in '1']\"",
            "\"(lambda: open('marker', 'w'))()\"",
            "\"f'{open(chr(109), chr(119))}'\"",
        ],
    )
    @pytest.mark.parametrize("key", ["policy_kwargs", "normalize", "env_kwargs", "clip_range"])
    def test_in_yaml(self, refused: Command, key: str, value: str) -> None:
        refused("ppo.yml", f"CartPole-v1:\n  {key}: {value}\n")

    @pytest.mark.parametrize(
        "key",
        ["policy_kwargs", "learning_rate", "net_arch", "activation_fn", "env_kwargs", "gamma",
         "norm_obs", "n_envs"],
    )  # fmt: skip
    def test_in_toml_and_json(self, refused: Command, here: Path, key: str) -> None:
        refused("a.toml", f'{key} = "{CODE}"\n')
        (here / "a.toml").unlink()
        refused("a.json", json.dumps({key: CODE}))

    @pytest.mark.parametrize(
        ("name", "text"),
        [
            ("a.json", "[" * 100_000),
            ("a.json", '{"a":' * 20_000 + "1" + "}" * 20_000),
            ("a.json", '{"gamma": ' + "9" * 5000 + "}"),
            ("a.json", '{"settings": 3, "algorithm": "ppo"}'),
            ("a.toml", "a = " + "[" * 20_000 + "]" * 20_000),
            ("a.yml", "[" * 100_000),
            ("a.yml", b"\xff\xfe\x00"),
            ("a.yml", "\0"),
            ("a.yml", "? " * 50_000),
            ("a.yml", "a: &a [" + "1, " * 60_000 + "1]\nb: [*a, *a, *a]"),
            ("a.toml", "#" * (MAX_BYTES + 1)),
            ("a.yml", "#" * (MAX_BYTES + 1)),
        ],
        ids=range(12),
    )
    def test_bombs(self, refused: Command, name: str, text: str | bytes) -> None:
        assert len(refused(name, text)) < 400
