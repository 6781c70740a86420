"""verify-resume: sound runs come out the same, and every planted fault is named by its part."""

from __future__ import annotations

import hashlib
import json
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from broken_runs import Restless, checkpoints, killed_after, seal_anew, telling, tiny

import upslope
from upslope.callbacks import CheckpointCallback, EvalCallback, StopTrainingOnRewardThreshold
from upslope.cli.main import main
from upslope.errors import ConfigError, ModelFileError
from upslope.runs.directory import RunDirectory
from upslope.runs.model_file import read_model, write_model
from upslope.runs.verify import verify_resume

NORMALISED = {"norm_obs": True, "norm_reward": True, "warmup_steps": 20}
PARTS = ["weights", "normaliser", "optimiser", "streams", "progress.csv"]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of seven iterations, with a checkpoint at every second one."""
    path = tmp_path_factory.mktemp("runs") / "run"
    tiny("ppo", "CartPole-v1", path, **NORMALISED, checkpoints=5).learn(130)
    assert checkpoints(path) == [0, 2, 4, 6, 7]
    return path


@pytest.fixture
def run(sound: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return shutil.copytree(sound, tmp_path / "run")


def contents(run: Path) -> dict[str, str]:
    """A hash of every file."""
    return {
        str(x.relative_to(run)): hashlib.sha256(x.read_bytes()).hexdigest()
        for x in run.rglob("*")
        if x.is_file()
    }


class TestSoundRuns:
    def test_all_is_the_same_and_nothing_is_changed(self, run: Path) -> None:
        before = contents(run)
        found = verify_resume(run)
        assert contents(run) == before
        assert (found.first, found.last) == (6, 7)
        assert found.difference is None
        assert list(found.compared) == list(found.differs) == PARTS
        assert all(count > 0 for count in found.compared.values())
        assert found.compared["progress.csv"] == 1

    @pytest.mark.parametrize("last", [2, 4, 6])
    def test_any_stretch(self, run: Path, last: int, tmp_path: Path) -> None:
        copy = killed_after(run, last, tmp_path / "killed")
        found = verify_resume(copy)
        assert (found.first, found.last, found.difference) == (last - 2, last, None)
        assert found.compared["progress.csv"] == 2

    def test_of_checkpoint_0_and_the_end(self, tmp_path: Path) -> None:
        tiny("ppo", "CartPole-v1", tmp_path / "run", checkpoints=1).learn(40)
        assert checkpoints(tmp_path / "run") == [0, 3]
        found = verify_resume(tmp_path / "run")
        assert (found.first, found.last, found.difference) == (0, 3, None)

    @pytest.mark.parametrize("interval", [2, 3, 50])
    def test_rows_that_are_seldom(self, interval: int, tmp_path: Path) -> None:
        """The replay's own last row is no difference where the run had none to write."""
        tiny("ppo", "CartPole-v1", tmp_path / "run", log_interval=interval).learn(100)
        for last in checkpoints(tmp_path / "run")[1:]:
            copy = killed_after(tmp_path / "run", last, tmp_path / f"killed-{last}")
            assert verify_resume(copy).difference is None, last

    def test_an_env_of_the_user_and_functions(self, tmp_path: Path) -> None:
        def rate(remaining: float) -> float:
            return 0.01 * remaining

        tiny("ppo", telling, tmp_path / "run", learning_rate=rate).learn(100)
        with pytest.raises(ConfigError, match="function"):
            verify_resume(tmp_path / "run", telling)
        with pytest.raises(ConfigError, match="--env"):
            verify_resume(tmp_path / "run", learning_rate=rate)
        assert verify_resume(tmp_path / "run", telling, learning_rate=rate).difference is None

    def test_callbacks_of_a_program_are_not_called(self, tmp_path: Path) -> None:
        """Nor is their absence a difference: no file says how they were made."""
        path = tmp_path / "run"
        calls = [
            EvalCallback(20, 2, best_model_save_path=path / "best_model.safetensors"),
            CheckpointCallback(20, path / "kept"),
            StopTrainingOnRewardThreshold(1e9),
        ]
        tiny("ppo", "CartPole-v1", path, log_interval=3).learn(100, callback=calls)
        assert "eval/mean_reward" in (path / "progress.csv").read_text()
        before = contents(path)
        for last in checkpoints(path)[1:]:
            copy = killed_after(path, last, tmp_path / f"killed-{last}")
            assert verify_resume(copy).difference is None, last
        assert contents(path) == before

    def test_callbacks_of_flags_are(self, tmp_path: Path) -> None:
        agent = tiny("ppo", "CartPole-v1", None)
        path = tmp_path / "run"
        calls = [EvalCallback(20, best_model_save_path=path / "best_model.safetensors")]
        command = {"eval_freq": 20, "stop_return": None, "episodes": 0}
        directory = RunDirectory(path, agent, 100, callbacks=calls, command=command)
        agent.train_to(100, calls, directory)
        before = contents(path)
        assert verify_resume(path).difference is None
        assert contents(path) == before
        lines = (path / "progress.csv").read_text().splitlines()
        at = lines[0].split(",").index("eval/mean_reward")
        change_rows(lambda x: [*x[:-1], cell(x[-1], at, lambda n: "9" + n[1:])])(path)
        assert "eval/mean_reward" in str(verify_resume(path).difference)


def change_tensor(file: str, part: str) -> Callable[[Path], None]:
    """Move the first number of a tensor to the next one that there is."""

    def change(run: Path) -> None:
        path = run / "checkpoints" / "000007" / file
        header, tensors = read_model(path)
        name = next(x for x in sorted(tensors) if part in x and tensors[x].is_floating_point())
        first = tensors[name].reshape(-1)[:1]
        first.copy_(first.nextafter(first + 1))
        own = ("format", "upslope_version", "tensors_sha256")
        write_model(path, {k: x for k, x in header.items() if k not in own}, tensors)
        seal_anew(path.parent)

    return change


def change_state(*keys: Any) -> Callable[[Path], None]:
    """Add one to a number of the state."""

    def change(run: Path) -> None:
        path = run / "checkpoints" / "000007" / "state.json"
        state = json.loads(path.read_text())
        at = state
        for key in keys[:-1]:
            at = at[key]
        at[keys[-1]] += 1
        path.write_text(json.dumps(state))
        seal_anew(path.parent)

    return change


def change_rows(edit: Callable[[list[str]], list[str]]) -> Callable[[Path], None]:
    def change(run: Path) -> None:
        lines = (run / "progress.csv").read_text().splitlines()
        (run / "progress.csv").write_text("".join(f"{x}\n" for x in edit(lines)))

    return change


def cell(line: str, at: int, text: Callable[[str], str]) -> str:
    cells = line.split(",")
    cells[at] = text(cells[at])
    return ",".join(cells)


COUNTERS = [
    ("iteration",), ("timesteps",), ("episodes",), ("quality", "count"), ("quality", "g2"),
    ("environments", "restarts"), ("environments", "rollouts"),
    ("environments", "episodes_started"), ("optimizers", "all", "steps"),
    ("recent", 0, 1), ("log_every",),
]  # fmt: skip
FAULTS = {
    "weights": change_tensor("model.safetensors", "critic_head"),
    "normaliser": change_tensor("model.safetensors", "obs_normalizer"),
    "optimiser": change_tensor("optim.safetensors", "all.1"),
    **{f"streams {'.'.join(map(str, x))}": change_state("training", *x) for x in COUNTERS},
    "progress.csv, a digit": change_rows(
        lambda x: [*x[:-1], cell(x[-1], 4, lambda n: n[:-1] + ("1" if n[-1] == "2" else "2"))]
    ),
    "progress.csv, a longer cell": change_rows(
        lambda x: [*x[:-1], cell(x[-1], 4, lambda n: n + "1")]
    ),
    "progress.csv, its last row gone": change_rows(lambda x: x[:-1]),
    "progress.csv, a row before it gone": change_rows(lambda x: [*x[:-2], x[-1]]),
}


class TestPlantedFaults:
    @pytest.mark.parametrize("fault", FAULTS)
    def test_is_named_and_exits_5(
        self, fault: str, run: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        FAULTS[fault](run)
        before = contents(run)
        part, _, what = fault.replace(",", "").partition(" ")
        assert main(["verify-resume", str(run)]) == 5
        assert contents(run) == before
        said = capfd.readouterr()
        named = {line.split()[0] for line in said.out.splitlines() if line.endswith("DIFFER")}
        assert named == {part}
        assert said.err.startswith(
            f"upslope: {run} does not resume exactly: from iteration 6 to 7, {part}: "
        )
        assert said.err.count("\n") == 1
        if part == "streams":
            assert what.partition(".")[0] in said.err

    def test_a_row_that_was_made_longer_is_no_missing_one(self, run: Path) -> None:
        FAULTS["progress.csv, a longer cell"](run)
        assert "no row ends at byte" in str(verify_resume(run).difference)

    @pytest.mark.parametrize("kind", ["generator", "time"])
    def test_environments_that_are_not_determined_by_their_seed(
        self, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        if kind == "time":

            class Clock:
                def random(self) -> float:
                    return time.time() % 1

            monkeypatch.setattr(Restless, "chance", Clock())
        tiny("ppo", Restless, tmp_path / "run").learn(100)
        before = contents(tmp_path / "run")
        found = verify_resume(tmp_path / "run", Restless)
        assert found.difference is not None
        assert found.difference.startswith("weights: ")
        assert found.differs["streams"] is not None
        assert found.differs["progress.csv"] is not None
        assert contents(tmp_path / "run") == before

    def test_a_replay_that_a_callback_stops_early(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Where another stream of rewards reaches the return that the run did not reach."""
        monkeypatch.setattr(Restless, "chance", np.random.default_rng(0))
        agent, path = tiny("ppo", Restless, None, checkpoints=2), tmp_path / "run"
        calls = [StopTrainingOnRewardThreshold(1000)]
        command = {"eval_freq": None, "stop_return": 1000, "episodes": 0}
        total = 16 * 50
        directory = RunDirectory(path, agent, total, callbacks=calls, command=command)
        agent.train_to(total, calls, directory)

        class Rich:
            def random(self) -> float:
                return 1e6

        monkeypatch.setattr(Restless, "chance", Rich())
        found = verify_resume(path, Restless)
        assert found.difference is not None
        assert found.differs["streams"] is not None


def interrupting(iteration: int) -> Callable[[Any], None]:
    def interrupt(event: Any) -> None:
        if event.iteration == iteration:
            signal.raise_signal(signal.SIGINT)

    return interrupt


class TestWhichStretch:
    def test_not_one_that_a_signal_came_into(self, tmp_path: Path) -> None:
        run, calls = tmp_path / "run", [interrupting(5)]
        with pytest.raises(KeyboardInterrupt):
            tiny("ppo", "CartPole-v1", run, checkpoints=4).learn(100, callback=calls)
        assert checkpoints(run) == [0, 2, 4, 5]
        found = verify_resume(run)
        assert (found.first, found.last, found.difference) == (2, 4, None)
        upslope.resume(run)
        assert checkpoints(run) == [0, 2, 4, 5, 6, 7]
        found = verify_resume(run)
        assert (found.first, found.last, found.difference) == (6, 7, None)
        shutil.rmtree(run / "checkpoints" / "000007")
        found = verify_resume(run)  # 4 to 6 is not what it would have been
        assert (found.first, found.last, found.difference) == (2, 4, None)

    def test_one_that_a_kill_came_into(self, run: Path, tmp_path: Path) -> None:
        """It goes on from a scheduled one, which is no disturbance."""
        copy = killed_after(run, 4, tmp_path / "copy")
        upslope.resume(copy)
        found = verify_resume(copy)
        assert (found.first, found.last, found.difference) == (6, 7, None)

    def test_of_a_run_with_a_further_goal(self, run: Path) -> None:
        upslope.resume(run, total_timesteps=200)
        assert checkpoints(run)[-3:] == [8, 10, 12]
        found = verify_resume(run)
        assert (found.first, found.last, found.difference) == (10, 12, None)
        for name in ("000010", "000012"):
            shutil.rmtree(run / "checkpoints" / name)
        found = verify_resume(run)  # the run had ended at 7, between 6 and 8
        assert (found.first, found.last, found.difference) == (4, 6, None)

    def test_not_a_damaged_one(self, run: Path) -> None:
        (run / "checkpoints" / "000006" / "state.json").write_bytes(b"{}")
        found = verify_resume(run)
        assert (found.first, found.last, found.difference) == (2, 4, None)

    @pytest.mark.parametrize("kept", [(), (0,), (7,), (0, 4), (2, 7)])
    def test_there_must_be_one(self, run: Path, kept: tuple[int, ...]) -> None:
        for number in checkpoints(run):
            if number not in kept:
                shutil.rmtree(run / "checkpoints" / f"{number:06}")
        with pytest.raises(ModelFileError, match="no two checkpoints in a row that are whole"):
            verify_resume(run)

    def test_no_run(self, tmp_path: Path) -> None:
        for place in (tmp_path, tmp_path / "nowhere"):
            with pytest.raises(ConfigError, match="is no run directory"):
                verify_resume(place)

    def test_a_file_that_is_gone(self, run: Path) -> None:
        (run / "progress.csv").unlink()
        with pytest.raises(ConfigError, match=r"cannot be copied to .*progress\.csv.*put back"):
            verify_resume(run)


def test_spaces_that_are_others(run: Path) -> None:
    with pytest.raises(ModelFileError, match=r"observation space is Box\(.*but the environment's"):
        verify_resume(run, "Pendulum-v1")
