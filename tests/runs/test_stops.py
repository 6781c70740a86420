"""A run that is told to stop, at any moment, and what it leaves for the one that goes on."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import Any

import pytest
from broken_runs import checkpoints, killed_after, tiny, unlike

import upslope
from upslope.callbacks import EvalCallback
from upslope.envs.episodes import Environments
from upslope.errors import ConfigError
from upslope.interrupts import Interrupted
from upslope.runs import checkpoint_writer
from upslope.runs.checkpoint import KEEP, newest, prune, read_checkpoint, write_checkpoint
from upslope.runs.directory import BEST_MODEL, RunDirectory
from upslope.runs.lock import RunLock
from upslope.runs.progress import ProgressFile, read_rows


class Pressed:
    """Ctrl-C at the n-th step of the environments, in whatever they are stepped for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, at: int) -> None:
        self.left, self.after = at, 0
        step = Environments.step

        def press(envs: Environments, actions: Any) -> Any:
            self.left -= 1
            self.after += self.left < 0
            result = step(envs, actions)
            if self.left == 0:
                signal.raise_signal(signal.SIGINT)
            return result

        monkeypatch.setattr(Environments, "step", press)


def test_a_rollout_is_dropped_and_the_iteration_before_it_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = tiny("ppo", "CartPole-v1", tmp_path / "run", checkpoints=1)
    pressed = Pressed(monkeypatch, 8 * 3 + 4)  # 8 steps an iteration: in the middle of the fourth
    with pytest.raises(Interrupted):
        agent.learn(200)
    assert pressed.after == 1  # the call that did not step any more
    assert agent.training.iteration == 3
    assert checkpoints(tmp_path / "run") == [0, 3]
    found = newest(tmp_path / "run" / "checkpoints")
    assert (found.number, found.is_scheduled) == (3, False)
    monkeypatch.undo()
    agent.learn(32, reset_num_timesteps=False)  # and it stays usable
    assert agent.training.iteration == 5


def test_an_evaluation_on_the_way_is_cut_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At a boundary: the checkpoint is not the undisturbed run's, whose evaluation was whole."""
    agent = tiny("ppo", "CartPole-v1", tmp_path / "run")
    at = 2 * 8 + 3  # the third step of the evaluation after the second iteration
    Pressed(monkeypatch, at)
    with pytest.raises(Interrupted):
        agent.learn(200, EvalCallback(32, n_eval_episodes=50))
    found = newest(tmp_path / "run" / "checkpoints")
    assert (found.number, found.is_scheduled) == (2, False)
    (said,) = found.state["callbacks"]
    assert said["state"] == {"best": float("-inf"), "passed": 1}
    assert not (tmp_path / "run" / BEST_MODEL).exists()


def test_an_update_that_is_cut_off_is_no_iteration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by a second Ctrl-C: weights, moments and statistics may be of two iterations then."""
    agent = tiny("ppo", "CartPole-v1", tmp_path / "run", checkpoints=1)
    update = agent.training.learner.update

    def cut(*given: Any) -> Any:
        if agent.training.iteration == 3:
            raise Interrupted(signal.SIGINT)
        return update(*given)

    monkeypatch.setattr(agent.training.learner, "update", cut)
    with pytest.raises(Interrupted):
        agent.learn(200)
    assert checkpoints(tmp_path / "run") == [0]


def test_a_phase_inside_another_is_counted_once(tmp_path: Path) -> None:
    agent = tiny("ppo", "CartPole-v1", tmp_path / "run")
    started = time.perf_counter()
    agent.learn(200, EvalCallback(16, 500))
    wall = time.perf_counter() - started
    phases = agent.training.phase_seconds()
    assert phases["evaluation"] > wall / 2  # so that to count it twice would be too much
    assert sum(phases.values()) <= wall


class TestLeaving:
    """What a thread writes when the main thread does not come back."""

    def writer(self, tmp_path: Path, **settings: Any) -> tuple[Any, RunDirectory]:
        agent = tiny("ppo", "CartPole-v1", None, checkpoints=1, **settings)
        directory = RunDirectory.create(tmp_path / "run", agent, 400)
        return agent, directory

    def test_between_updates_it_is_the_last_iteration(self, tmp_path: Path) -> None:
        agent, directory = self.writer(tmp_path)
        with directory:
            agent.training.run(48, lambda event: directory.record(event) or True, agent)
            assert checkpoints(directory.path) == [0]
            directory.checkpoints.leave()
        assert checkpoints(directory.path) == [0, 3]
        assert not newest(directory.path / "checkpoints").is_scheduled

    @pytest.mark.parametrize("slow", [0.0, 1e9])
    def test_in_an_update_it_is_what_was_kept(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slow: float
    ) -> None:
        monkeypatch.setattr(checkpoint_writer, "SLOW", slow)
        agent, directory = self.writer(tmp_path)
        with directory:
            agent.training.run(48, lambda event: directory.record(event) or True, agent)
            agent.training.is_whole = False
            directory.checkpoints.leave()
            assert checkpoints(directory.path) == ([0] if slow else [0, 3])
            if not slow:
                assert read_checkpoint(directory.path / "checkpoints" / "000003").number == 3

    def test_a_resumed_one_leaves_nothing_behind(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(checkpoint_writer, "SLOW", 0.0)
        tiny("ppo", "CartPole-v1", tmp_path / "run", checkpoints=1).learn(100)
        assert not list((tmp_path / "run" / "checkpoints").glob(".tmp*"))


def test_the_best_model_goes_back_with_the_checkpoint(tmp_path: Path) -> None:
    """Its score is in the checkpoint, so the file has to be the one of that score."""
    run = tmp_path / "run"
    agent = tiny("ppo", "Pendulum-v1", run, learning_rate=0.02)
    agent.learn(320, EvalCallback(16, 3, best_model_save_path=run / BEST_MODEL))
    each = {n: read_checkpoint(run / "checkpoints" / f"{n:06}") for n in checkpoints(run)}
    bests = {n: found.best.read_bytes() for n, found in each.items() if found.best is not None}
    assert len(set(bests.values())) > 1, "it has to improve for this to say anything"
    final = (run / BEST_MODEL).read_bytes()
    last = max(n for n, best in bests.items() if best == final and n < max(each))
    for number in (min(bests), last):  # a better one is yet to come, and nothing better comes
        copy = killed_after(run, number, tmp_path / f"from {number}")
        (copy / BEST_MODEL).write_bytes(b"of another branch")
        callback = EvalCallback(16, 3, best_model_save_path=copy / BEST_MODEL)
        upslope.resume(copy, callback=callback)
        assert (copy / BEST_MODEL).read_bytes() == final
        assert unlike(run, copy) == []


def test_a_second_learn_begins_where_a_resume_can(tmp_path: Path) -> None:
    agent = tiny("ppo", "CartPole-v1", None)
    agent.learn(48)  # three iterations, and boundaries are at even ones
    agent.run_dir = tmp_path / "run"
    agent.learn(112, reset_num_timesteps=False)
    killed = killed_after(tmp_path / "run", 3, tmp_path / "killed")
    assert checkpoints(killed) == [3]
    upslope.resume(killed, exact=True)
    assert unlike(tmp_path / "run", killed) == []


class TestCallbacks:
    class Plain:
        state = "an attribute"

        def __call__(self, event: Any) -> bool:
            return True

    class Odd(Plain):
        def state(self) -> Any:  # type: ignore[override]
            return {"a set": {1}}

        def load_state(self, state: Any) -> None: ...

    def test_an_attribute_is_no_state(self, tmp_path: Path) -> None:
        tiny("a2c", "CartPole-v1", tmp_path / "run").learn(48, self.Plain())
        assert newest(tmp_path / "run" / "checkpoints").state["callbacks"][0]["state"] is None

    def test_what_is_no_json_is_refused_before_training(self, tmp_path: Path) -> None:
        agent = tiny("a2c", "CartPole-v1", tmp_path / "run")
        with pytest.raises(ConfigError, match=r"TestCallbacks\.Odd is not JSON"):
            agent.learn(48, self.Odd())
        assert agent.num_timesteps == 0


def test_a_lock_is_free_though_a_worker_inherited_it(tmp_path: Path) -> None:
    import os

    lock = RunLock(tmp_path)
    copy = os.dup(lock._descriptor)  # as a forked worker has it
    lock.release()
    RunLock(tmp_path).release()
    os.close(copy)


def test_rows_that_wait_are_written_at_the_end(tmp_path: Path) -> None:
    file = ProgressFile(tmp_path / "progress.csv", ("a", "b"), waiting=["1,2\n"])
    file.close()
    assert read_rows(tmp_path / "progress.csv") == [{"a": "1", "b": "2"}]


def test_pruning_keeps_the_newest_that_nothing_disturbed(tmp_path: Path) -> None:
    def write(number: int, *, scheduled: bool) -> None:
        state = {"scheduled": scheduled, "run": {"resumed": []}, "training": {}}
        write_checkpoint(tmp_path, number, state, models)
        prune(tmp_path)

    def models(directory: Path) -> None:
        for name in ("model.safetensors", "optim.safetensors"):
            (directory / name).write_bytes(b"x")

    for number in (1, 2, 3):
        write(number, scheduled=True)
    for number in range(4, 4 + KEEP):
        write(number, scheduled=False)
    names = sorted(int(path.name) for path in tmp_path.iterdir())
    assert names == [3, *range(4, 4 + KEEP)]
    assert newest(tmp_path, scheduled=True).number == 3


def test_the_clock_goes_on(tmp_path: Path) -> None:
    run = tmp_path / "run"
    tiny("a2c", "CartPole-v1", run).learn(64)
    before = float(read_rows(run / "progress.csv")[-1]["time/time_elapsed"])
    time.sleep(0.3)
    upslope.resume(run, total_timesteps=96)
    times = [float(row["time/time_elapsed"]) for row in read_rows(run / "progress.csv")]
    assert times == sorted(times)
    assert before < times[-1] < before + 0.3


def test_a_model_that_learns_on_needs_no_warm_up(tmp_path: Path) -> None:
    agent = tiny("ppo", "CartPole-v1", None, norm_obs=True, warmup_steps=64)
    agent.learn(16)
    assert agent.num_timesteps == 64 + 16
    agent.save(tmp_path / "model.safetensors")
    again = upslope.load(tmp_path / "model.safetensors", env="CartPole-v1")
    again.learn(16)
    assert again.num_timesteps == 16
