"""A run that was killed comes back as the same run, to the bit; and says so where it cannot."""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from inspect import signature
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
import torch
from broken_runs import checkpoints, killed_after, resumed, telling, tiny, unlike
from chamber import Chamber

import upslope
from upslope.callbacks import CheckpointCallback, EvalCallback, StopTrainingOnRewardThreshold
from upslope.errors import ConfigError, ModelFileError
from upslope.optim.replay import EAGER_STEPS
from upslope.runs.checkpoint import read_checkpoint
from upslope.runs.policy_file import versions
from upslope.runs.progress import read_rows
from upslope.runs.resume import MAY_CHANGE, reopen

ALGORITHMS = ("reinforce", "vpg", "a2c", "npg", "trpo", "ppo")
MASKED = functools.partial(Chamber, "vector", "choices", "observation")
NORMALISED = {"norm_obs": True, "norm_reward": True, "warmup_steps": 20}
FADING = {"learning_rate": "lin_0.01"}


@dataclass(frozen=True)
class Case:
    """One run: what is trained, and after which checkpoints it is killed (all: every one)."""

    algorithm: str
    env: Any = "CartPole-v1"
    settings: dict[str, Any] = field(default_factory=dict)
    steps: int = 100
    kills: str = "middle"
    callbacks: Callable[[Path], Sequence[Any]] = lambda _: ()

    def undisturbed(self, path: Path) -> Path:
        """Train to the end."""
        agent = tiny(self.algorithm, self.env, path, **self.settings)
        agent.learn(self.steps, callback=self.callbacks(path))
        agent.close()
        return path

    def comes_back(self, folder: Path) -> None:
        """Kill and resume it, and see that nothing differs."""
        run = self.undisturbed(folder / "run")
        numbers = checkpoints(run)[:-1]
        assert len(numbers) >= 3
        for number in numbers if self.kills == "all" else numbers[len(numbers) // 2 :][:1]:
            copy = killed_after(run, number, folder / f"killed-{number}")
            again = None if isinstance(self.env, str) else self.env
            resumed(copy, again, callback=self.callbacks(copy))
            assert unlike(run, copy) == [], number


def evaluating(path: Path) -> Sequence[Any]:
    best = path / "best_model.safetensors"
    return [EvalCallback(20, 2, best_model_save_path=best), StopTrainingOnRewardThreshold(1e9)]


QUICK = {
    "reinforce": Case("reinforce", kills="all", settings={"baseline": "value"}),
    "vpg": Case("vpg", settings=NORMALISED),
    "a2c": Case("a2c", env="Pendulum-v1", settings={"use_rms_prop": True, **FADING}),
    "npg": Case("npg", settings={"memory": "gru", "memory_size": 3}),
    "trpo": Case("trpo", settings={**NORMALISED, "gamma": 0.9}),
    "ppo": Case("ppo", kills="all", settings={**NORMALISED, **FADING}),
    "ppo with a KL limit": Case("ppo", settings={"target_kl": 1e-5, "learning_rate": 0.05}),
    "ppo that evaluates": Case("ppo", callbacks=evaluating),
    "ppo with memory": Case("ppo", settings={"memory": "gru", "memory_size": 3, **NORMALISED}),
    "ppo that reports": Case("ppo", env=telling, settings={"log_info": ("speed",)}),
    "ppo under masks": Case("ppo", env=MASKED, steps=100),
    "ppo, native": Case("ppo", settings={"vec": "native", **NORMALISED}),
    "eager ppo": Case("ppo", settings={"compile": "never"}),
}


@pytest.mark.parametrize("case", QUICK)
def test_a_killed_run_comes_back(case: str, tmp_path: Path) -> None:
    QUICK[case].comes_back(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("compiled", ["auto", "never"])
@pytest.mark.parametrize("kind", ["plain", "normalised", "gru", "fading", "evaluating", "masked"])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_algorithm_comes_back(
    algorithm: str, kind: str, compiled: str, tmp_path: Path
) -> None:
    more = {
        "normalised": NORMALISED, "gru": {"memory": "gru", "memory_size": 3}, "fading": FADING,
    }  # fmt: skip
    case = Case(
        algorithm,
        MASKED if kind == "masked" else "CartPole-v1",
        {"compile": compiled, **more.get(kind, {})},
        kills="all" if kind == "plain" else "middle",
        callbacks=evaluating if kind == "evaluating" else lambda _: (),
    )
    case.comes_back(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("engine", ["native", "envpool", "async"])
def test_every_engine_comes_back(engine: str, algorithm: str, tmp_path: Path) -> None:
    if engine == "envpool":
        pytest.importorskip("envpool")
    Case(algorithm, settings={"vec": engine, **NORMALISED}, kills="all").comes_back(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["ppo", "a2c"])
def test_a_compiled_run_comes_back(algorithm: str, tmp_path: Path) -> None:
    case = Case(algorithm, settings={"compile": "always"})
    case.comes_back(tmp_path)
    state = read_checkpoint(tmp_path / "run" / "checkpoints" / "000002").state
    assert state["training"]["optimizers"]["all"]["engine"] == "aot"


@pytest.mark.slow
@pytest.mark.parametrize("baseline", ["none", "mean", "loo", "value"])
@pytest.mark.parametrize("returns", ["episode", "to-go"])
def test_every_rung_comes_back(returns: str, baseline: str, tmp_path: Path) -> None:
    settings = {"returns": returns, "baseline": baseline}
    Case("reinforce", settings=settings, kills="all").comes_back(tmp_path)


def test_envpool_comes_back(tmp_path: Path) -> None:
    pytest.importorskip("envpool")
    Case("ppo", settings={"vec": "envpool"}).comes_back(tmp_path)


@pytest.mark.parametrize("algorithm", ["ppo", "reinforce"])
def test_processes_of_their_own_come_back(algorithm: str, tmp_path: Path) -> None:
    Case(algorithm, settings={"vec": "async"}).comes_back(tmp_path)


def test_means_over_measurements_come_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The signal in the gradient is averaged over several measurements."""
    monkeypatch.setattr("upslope.training.interval", lambda config: 1)
    Case("ppo", settings={"compile": "never"}).comes_back(tmp_path)
    rows = read_rows(tmp_path / "run" / "progress.csv")
    assert all(row["train/gradient_snr"] for row in rows)


def test_what_was_said_once_is_not_said_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def env() -> gym.Env[Any, Any]:
        return gym.wrappers.TransformReward(telling(), lambda reward: 5000 * reward)

    run = Case("ppo", env).undisturbed(tmp_path / "run")
    assert "rewards are 5.0e+03 in size" in caplog.text
    caplog.clear()
    resumed(killed_after(run, 2, tmp_path / "copy"), env)
    assert unlike(run, tmp_path / "copy") == []
    assert "in size" not in caplog.text


class TestReplays:
    """What was replayed before the kill is replayed after it, from the same step on."""

    def test_a_checkpoint_after_each_of_the_first_gradient_steps(self, tmp_path: Path) -> None:
        """The critic's steps are all of one shape, one an iteration, as is the checkpoint."""
        case = Case("reinforce", settings={"baseline": "value", "n_critic_updates": 1}, steps=225)
        run = case.undisturbed(tmp_path / "run")
        seen = []
        for number in checkpoints(run)[:8]:
            state = read_checkpoint(run / "checkpoints" / f"{number:06}").state
            seen.append(sum(state["training"]["optimizers"]["critic"]["seen"].values()))
            if number < 8:
                copy = killed_after(run, number, tmp_path / f"killed-{number}")
                resumed(copy)
                assert unlike(run, copy) == [], number
        assert seen[: EAGER_STEPS + 3] == [*range(EAGER_STEPS + 2), EAGER_STEPS + 1]

    def test_more_shapes_than_are_kept(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A shape that was forgotten is recorded anew, in the resumed process too."""
        monkeypatch.setattr("upslope.optim.replay.MOST_TAPES", 2)
        settings = {"baseline": "value", "n_critic_updates": 6, "max_episode_steps": 20}
        case = Case("reinforce", settings={**settings, "checkpoints": 7}, steps=900)
        run = case.undisturbed(tmp_path / "run")
        kinds = set()
        for number in checkpoints(run):
            state = read_checkpoint(run / "checkpoints" / f"{number:06}").state
            seen = state["training"]["optimizers"]["critic"]["seen"]
            assert len(seen) <= 2
            kinds |= seen.keys()
        assert len(kinds) > 2
        for number in checkpoints(run)[1:-1:2]:
            copy = killed_after(run, number, tmp_path / f"killed-{number}")
            resumed(copy)
            assert unlike(run, copy) == [], number


class TestEnvironments:
    """The user's own are given again; those of other spaces or another engine are refused."""

    @pytest.fixture
    def file(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr("sys.path", [*sys.path])
        (tmp_path / "my_pole.py").write_text(
            "import gymnasium as gym\n\ndef make():\n    return gym.make('CartPole-v1')\n"
        )
        return "my_pole.py:make"

    @pytest.mark.parametrize("kind", ["factory", "instance", "vector", "file"])
    def test_given_again_it_comes_back(self, kind: str, file: str, tmp_path: Path) -> None:
        def env() -> Any:
            if kind == "vector":
                return gym.vector.SyncVectorEnv([lambda: gym.make("CartPole-v1")] * 2)
            return {"factory": telling, "file": file}.get(kind) or gym.make("CartPole-v1")

        settings = {"max_episode_steps": None} if kind == "vector" else {}
        if kind in ("instance", "vector"):
            settings["n_envs"] = None
        tiny("ppo", env(), tmp_path / "run", **settings).learn(100)
        copy = killed_after(tmp_path / "run", 2, tmp_path / "copy")
        with pytest.raises(ConfigError, match="because a file says so: add --env") as caught:
            upslope.resume(copy)
        assert ("--env my_pole.py:make" in str(caught.value)) == (kind == "file")
        upslope.resume(copy, env())
        assert unlike(tmp_path / "run", copy) == []

    def test_other_spaces(self, run: Path, tmp_path: Path) -> None:
        copy = killed_after(run, 2, tmp_path / "copy")
        before = files(copy)
        with pytest.raises(ModelFileError, match=r"Box\(.*\(4,\).*Box\(.*\(3,\)") as caught:
            upslope.resume(copy, "Pendulum-v1")
        assert caught.value.exit_code == 5
        assert files(copy) == before
        resumed(copy)  # the lock is free again

    def test_engine_that_is_not_there_any_more(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        pytest.importorskip("envpool")
        tiny("ppo", "CartPole-v1", tmp_path / "asked", vec="envpool").learn(40)
        tiny("ppo", "Acrobot-v1", tmp_path / "chosen", n_envs=8).learn(128)
        asked = killed_after(tmp_path / "asked", 0, tmp_path / "asked-copy")
        chosen = killed_after(tmp_path / "chosen", 0, tmp_path / "chosen-copy")
        monkeypatch.setitem(sys.modules, "envpool", None)
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
        with pytest.raises(ConfigError, match=r"pip install 'upslope\[envpool\]'"):
            upslope.resume(asked)
        with pytest.raises(ConfigError, match="engine envpool, and here it would be sync"):
            upslope.resume(chosen)


class TestEdited:
    def test_every_key_of_config_json(self, run: Path, tmp_path: Path) -> None:
        copy = killed_after(run, 2, tmp_path / "copy")
        path = copy / "config.json"
        sound = json.loads(path.read_text())
        places = list(leaves_of(sound))
        assert len(places) > 60
        for place in places:
            edited = deepcopy(sound)
            at = functools.reduce(lambda tree, key: tree[key], place[:-1], edited)
            at[place[-1]] = 17 if at[place[-1]] != 17 else "other"
            path.write_text(json.dumps(edited))
            if place[0] in MAY_CHANGE:
                with reopen(copy) as again:
                    again.agent.close()
                continue
            named = re.escape(".".join(str(x) for x in place if isinstance(x, str)) + ": ")
            with pytest.raises(ConfigError, match=f"edited since the checkpoint.*{named}") as said:
                upslope.resume(copy)
            assert said.value.exit_code == 2

    @pytest.mark.parametrize("change", [{"more": 1}, {"algorithm": ...}])
    def test_keys_that_come_and_go(self, run: Path, tmp_path: Path, change: Any) -> None:
        copy = killed_after(run, 2, tmp_path / "copy")
        edited = json.loads((copy / "config.json").read_text()) | change
        edited = {key: value for key, value in edited.items() if value is not ...}
        (copy / "config.json").write_text(json.dumps(edited))
        with pytest.raises(ConfigError, match="absent"):
            upslope.resume(copy)

    @pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[1]"])
    def test_no_config_at_all(self, run: Path, tmp_path: Path, content: bytes) -> None:
        copy = killed_after(run, 2, tmp_path / "copy")
        (copy / "config.json").write_bytes(content)
        with pytest.raises(ConfigError, match=r"config\.json"):
            upslope.resume(copy)

    @pytest.mark.parametrize("left", [None, 0, 10])
    def test_rows_that_are_gone(self, run: Path, tmp_path: Path, left: int | None) -> None:
        copy = killed_after(run, 2, tmp_path / "copy")
        path = copy / "progress.csv"
        path.write_bytes(path.read_bytes()[:left])
        if left is None:
            path.unlink()
        before = files(copy)
        with pytest.raises(
            ConfigError, match=rf"progress\.csv has {left or 0} bytes, and had .* lost"
        ):
            upslope.resume(copy)
        assert files(copy) == before

    def test_a_setting_is_no_argument(self, run: Path, tmp_path: Path) -> None:
        copy = killed_after(run, 2, tmp_path / "copy")
        for name, value in (("gamma", 0.5), ("env_kwargs", {"a": 1}), ("nonsense", 1)):
            with pytest.raises(ConfigError, match=f"with the settings it was.*{name}"):
                upslope.resume(copy, **{name: value})


def rate(remaining: float) -> float:
    return 0.01 * remaining**2


class Features(torch.nn.Module):
    def __init__(self, space: gym.Space[Any]) -> None:
        super().__init__()
        self.features_dim = 5
        self.net = torch.nn.Linear(space.shape[0], 5)  # type: ignore[index]

    def forward(self, obs: torch.Tensor) -> torch.Tensor:
        return self.net(obs).relu()


class TestFunctions:
    """No file holds a function: it is given again."""

    def test_a_schedule(self, tmp_path: Path) -> None:
        tiny("ppo", "CartPole-v1", tmp_path / "run", learning_rate=rate).learn(100)
        copy = killed_after(tmp_path / "run", 2, tmp_path / "copy")
        said = r"learning_rate of the run was a function.*resume\(run, learning_rate=\.\.\.\)"
        with pytest.raises(ConfigError, match=said):
            upslope.resume(copy)
        upslope.resume(copy, learning_rate=rate)
        assert unlike(tmp_path / "run", copy) == []

    def test_features(self, tmp_path: Path) -> None:
        tiny("ppo", "CartPole-v1", tmp_path / "run", policy=Features).learn(100)
        copy = killed_after(tmp_path / "run", 2, tmp_path / "copy")
        with pytest.raises(ConfigError, match=r"features factory .*give policy=Features"):
            upslope.resume(copy)
        upslope.resume(copy, policy=Features)
        assert unlike(tmp_path / "run", copy) == []


class TestGoals:
    def test_a_finished_run_is_left_alone(self, run: Path, tmp_path: Path) -> None:
        shutil.copytree(run, tmp_path / "copy")
        agent = upslope.resume(tmp_path / "copy")
        assert agent.num_timesteps == json.loads((run / "run.json").read_text())["timesteps"]
        assert unlike(run, tmp_path / "copy") == []
        assert (tmp_path / "copy" / "model.safetensors").stat().st_mtime_ns == (
            run / "model.safetensors"
        ).stat().st_mtime_ns

    def test_it_goes_on_to_a_larger_goal(self, run: Path, tmp_path: Path) -> None:
        """As the run would have, that was to go so far from that checkpoint on."""
        shutil.copytree(run, tmp_path / "copy")
        agent = upslope.resume(tmp_path / "copy", total_timesteps=200)
        rows = read_rows(tmp_path / "copy" / "progress.csv")
        assert [int(row["time/iterations"]) for row in rows] == list(range(1, 14))
        assert agent.num_timesteps == 208
        state = json.loads((tmp_path / "copy" / "run.json").read_text())
        assert (state["state"], state["timesteps"], state["total_timesteps"]) == (
            "finished", 208, 200,
        )  # fmt: skip
        config = json.loads((tmp_path / "copy" / "config.json").read_text())
        assert config["total_timesteps"] == 200

    def test_the_plan_is_kept(self, run: Path, tmp_path: Path) -> None:
        shutil.copytree(run, tmp_path / "copy")
        upslope.resume(tmp_path / "copy", total_timesteps=300)
        assert set(checkpoints(tmp_path / "copy")) >= set(range(0, 18, 2))

    def test_a_goal_that_was_passed(self, run: Path, tmp_path: Path) -> None:
        shutil.copytree(run, tmp_path / "copy")
        with pytest.raises(ConfigError, match="has 112 steps behind it already: give a larger"):
            upslope.resume(tmp_path / "copy", total_timesteps=50)
        for wrong in (0, -3, 2.5, "many"):
            with pytest.raises(ConfigError, match="total_timesteps"):
                upslope.resume(tmp_path / "copy", total_timesteps=wrong)

    def test_no_run(self, tmp_path: Path, run: Path) -> None:
        for place in (tmp_path, tmp_path / "nowhere", run / "model.safetensors"):
            with pytest.raises(ConfigError, match=r"no run directory.*check the path"):
                upslope.resume(place)

    @pytest.mark.parametrize("what", ["none", "empty", "half"])
    def test_no_checkpoint(self, what: str, run: Path, tmp_path: Path) -> None:
        """A process that died before its first one was whole."""
        copy = killed_after(run, 0, tmp_path / "copy")
        folder = copy / "checkpoints"
        if what == "half":
            os.replace(folder / "000000", folder / ".tmp-123-000000")
        else:
            shutil.rmtree(folder / "000000" if what == "empty" else folder)
        with pytest.raises(ModelFileError, match=r"no checkpoint that is whole.*command\.txt"):
            upslope.resume(copy)
        with pytest.raises(ModelFileError, match="no scheduled checkpoint"):
            upslope.resume(copy, exact=True)

    def test_a_damaged_one_is_stepped_over(
        self, run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        copy = killed_after(run, 4, tmp_path / "copy")
        (copy / "checkpoints" / "000004" / "optim.safetensors").write_bytes(b"")
        resumed(copy)
        (said,) = [x.getMessage() for x in caplog.records if x.levelname == "WARNING"]
        assert f"{copy / 'checkpoints' / '000004'} is damaged" in said
        size = (run / "checkpoints" / "000004" / "optim.safetensors").stat().st_size
        assert f"optim.safetensors has 0 bytes, its manifest says {size}" in said
        assert said.endswith("the one before it is looked at")
        assert unlike(run, copy) == []
        assert (copy / "checkpoints" / "000004.aside").is_dir()


class TestElsewhere:
    def test_other_versions_and_processor(
        self, run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:  # fmt: skip
        copy = killed_after(run, 2, tmp_path / "copy")
        now = versions() | {"torch": "9.9"}
        for module in ("resume", "checkpoint", "description"):
            monkeypatch.setattr(f"upslope.runs.{module}.versions", lambda: now)
        for module in ("resume", "checkpoint"):
            monkeypatch.setattr(f"upslope.runs.{module}.cpu", lambda: "AVX1024")
        resumed(copy)
        (said,) = [x.getMessage() for x in caplog.records if x.levelname == "WARNING"]
        assert said.startswith("the run goes on, but not to the last bit: torch: ")
        assert '"9.9"' in said
        assert '"AVX1024"' in said
        config = json.loads((copy / "config.json").read_text())
        assert config["versions"]["torch"] == "9.9"

    def test_other_threads(
        self, run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:  # fmt: skip
        """Which matter where a gradient is shared among them, so last bits may differ."""
        copy = killed_after(run, 2, tmp_path / "copy")
        for module in ("resume", "description"):
            monkeypatch.setattr(f"upslope.runs.{module}.threads_of", lambda *_: 3)
        resumed(copy)
        (said,) = [x.getMessage() for x in caplog.records if x.levelname == "WARNING"]
        assert said == (
            "the run goes on, but not to the last bit: torch_threads: 1 -> 3 since the checkpoint"
        )
        resumed(copy, total_timesteps=200)

    def test_here(self, run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        resumed(killed_after(run, 2, tmp_path / "copy"))
        assert not [x for x in caplog.records if x.levelname == "WARNING"]


def signalling(iteration: int, number: int = signal.SIGINT) -> Callable[[Any], None]:
    def raise_it(event: Any) -> None:
        if event.iteration == iteration:
            signal.raise_signal(number)

    return raise_it


class TestSignals:
    def interrupted(self, path: Path, iteration: int, number: int = signal.SIGINT) -> Path:
        agent = tiny("ppo", "CartPole-v1", path)
        with pytest.raises(KeyboardInterrupt):
            agent.learn(100, callback=signalling(iteration, number))
        return path

    @pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
    def test_a_checkpoint_of_the_last_whole_iteration(
        self, number: int, code: int, tmp_path: Path
    ) -> None:
        before = signal.getsignal(number)
        signal.signal(number, signal.default_int_handler)
        try:
            run = self.interrupted(tmp_path / "run", 3, number)
        finally:
            signal.signal(number, before)
        assert checkpoints(run) == [0, 2, 3]
        assert not read_checkpoint(run / "checkpoints" / "000003").is_scheduled
        state = json.loads((run / "run.json").read_text())
        assert (state["state"], state["exit_code"], state["iterations"]) == ("interrupted", code, 3)

    def test_it_goes_on_from_there_and_says_so(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        run = self.interrupted(tmp_path / "run", 3)
        agent = upslope.resume(run, callback=signalling(0))
        (said,) = [x.getMessage() for x in caplog.records if x.levelname == "WARNING"]
        assert "goes on from iteration 3, where a signal stopped the run" in said
        assert "no longer the undisturbed run; --exact goes back" in said
        rows = read_rows(run / "progress.csv")
        assert [int(row["time/iterations"]) for row in rows] == list(range(1, 8))
        assert agent.num_timesteps == 112
        (entry,) = json.loads((run / "run.json").read_text())["resumed"]
        assert (entry["checkpoint"], entry["scheduled"]) == (3, False)

    def test_exact_goes_back(
        self, run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        copy = self.interrupted(tmp_path / "copy", 5)
        kept = (copy / "checkpoints" / "000005" / "model.safetensors").read_bytes()
        upslope.resume(copy, exact=True, callback=signalling(0)).close()
        assert [x for x in unlike(run, copy) if ": callbacks " not in x] == []
        aside = copy / "checkpoints" / "000005.aside"
        assert (aside / "model.safetensors").read_bytes() == kept
        assert not [x for x in caplog.records if x.levelname == "WARNING"]

    def test_at_a_scheduled_one_nothing_is_disturbed(self, run: Path, tmp_path: Path) -> None:
        copy = self.interrupted(tmp_path / "copy", 4)
        upslope.resume(copy).close()
        assert [x for x in unlike(run, copy) if ": callbacks " not in x] == []

    def test_again_and_again(self, tmp_path: Path) -> None:
        """One interruption after the other, each a little further on; no row is lost or doubled."""
        run = self.interrupted(tmp_path / "run", 1)
        for iteration in (2, 3, 5):
            with pytest.raises(KeyboardInterrupt):
                upslope.resume(run, callback=signalling(iteration))
        upslope.resume(run)
        rows = read_rows(run / "progress.csv")
        assert [int(row["time/iterations"]) for row in rows] == list(range(1, 8))
        state = json.loads((run / "run.json").read_text())
        assert [x["checkpoint"] for x in state["resumed"]] == [1, 2, 3, 5]


class Counting:
    """A callback with a memory of its own."""

    def __init__(self) -> None:
        self.calls: list[int] = []

    def __call__(self, event: Any) -> None:
        self.calls.append(event.iteration)

    def state(self) -> dict[str, Any]:
        return {"calls": self.calls}

    def load_state(self, state: Any) -> None:
        self.calls = list(state["calls"])


class TestCallbacks:
    def test_get_back_what_they_remembered(self, tmp_path: Path) -> None:
        first, second = Counting(), Counting()
        second.calls.append(-1)
        agent = tiny("ppo", "CartPole-v1", tmp_path / "run")
        agent.learn(100, callback=[first, EvalCallback(30, 1), second])
        copy = killed_after(tmp_path / "run", 2, tmp_path / "copy")
        again = [Counting(), Counting(), EvalCallback(30, 1)]  # by name, then by order
        upslope.resume(copy, callback=again)
        assert again[0].calls == first.calls == list(range(1, 8))
        assert again[1].calls == second.calls
        assert again[2].best_mean_reward > 0
        assert [x for x in unlike(tmp_path / "run", copy) if ": callbacks " not in x] == []

    def test_a_missing_one_is_missed(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        agent = tiny("ppo", "CartPole-v1", tmp_path / "run")
        agent.learn(100, callback=[Counting(), signalling(1000)])
        copy = killed_after(tmp_path / "run", 2, tmp_path / "copy")
        upslope.resume(copy, callback=Counting())
        (said,) = [x.getMessage() for x in caplog.records if x.levelname == "WARNING"]
        assert said.startswith("the callback signalling.<locals>.raise_it of the run is not there")

    def test_saved_models_are_those_of_the_undisturbed_run(self, tmp_path: Path) -> None:
        def saving(path: Path) -> Sequence[Any]:
            return [CheckpointCallback(30, path / "kept")]

        Case("ppo", callbacks=saving).comes_back(tmp_path)
        kept = {x.name: x.read_bytes() for x in (tmp_path / "run" / "kept").iterdir()}
        (copy,) = tmp_path.glob("killed-*")
        assert kept == {x.name: x.read_bytes() for x in (copy / "kept").iterdir()}
        assert len(kept) == 3


class TestFromPython:
    def test_each_learn_has_a_directory(self, tmp_path: Path) -> None:
        """The second goes on where the first ended, and comes back as well."""
        agent = tiny("ppo", "CartPole-v1", tmp_path / "run")
        agent.learn(100)
        agent.learn(100, reset_num_timesteps=False)
        assert agent.num_timesteps == 224
        assert sorted(x.name for x in tmp_path.iterdir()) == ["run", "run-2"]
        second = tmp_path / "run-2"
        assert checkpoints(second) == [7, 8, 10, 12, 14]
        copy = killed_after(second, 10, tmp_path / "copy")
        resumed(copy)
        assert unlike(second, copy) == []

    def test_the_agent_is_of_use(self, run: Path, tmp_path: Path) -> None:
        copy = killed_after(run, 2, tmp_path / "copy")
        agent, trained = upslope.resume(copy), upslope.load(run / "model.safetensors")
        assert agent.evaluate(3).to_json() == trained.evaluate(3).to_json()
        agent.learn(16, reset_num_timesteps=False)
        assert agent.num_timesteps == 128
        assert unlike(run, copy) == []  # what comes after writes nothing

    def test_it_is_public(self) -> None:
        assert "resume" in upslope.__all__
        assert list(signature(upslope.resume).parameters) == [
            "run", "env", "total_timesteps", "exact", "callback", "policy", "settings",
        ]  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of seven iterations, with a checkpoint at every second one."""
    path = Case("ppo").undisturbed(tmp_path_factory.mktemp("runs") / "run")
    assert checkpoints(path) == [0, 2, 4, 6, 7]
    return path


def files(folder: Path) -> dict[str, bytes]:
    """Every file below a folder but the lock, which says who had it last."""
    return {
        str(x.relative_to(folder)): x.read_bytes()
        for x in folder.rglob("*")
        if x.is_file() and x.name != ".lock"
    }


def leaves_of(tree: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where every value of a tree of JSON is."""
    children = tree.items() if isinstance(tree, dict) else enumerate(tree)
    for key, value in children:
        if isinstance(value, dict | list) and value:
            yield from leaves_of(value, (*place, key))
        else:
            yield (*place, key)
