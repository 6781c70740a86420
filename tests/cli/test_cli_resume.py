"""``upslope resume`` and ``upslope verify-resume``: what is typed, what is said, how it ends."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from broken_runs import checkpoints, killed_after, unlike

from upslope.cli.main import COMMANDS
from upslope.cli.resume import parser
from upslope.evaluation import Score
from upslope.runs.directory import RunDirectory
from upslope.runs.lock import RunLock
from upslope.runs.model_file import read_header, read_model
from upslope.runs.progress import read_rows
from upslope.training import Training

SMALL = [
    *("--n-envs", 2, "--n-steps", 8, "--batch-size", 8, "--n-epochs", 2, "--net-arch", 4),
    *("--max-episode-steps", 7, "--checkpoints", 50, "--log-interval", 1, "--quiet"),
]
LONG_ENOUGH = [*("--total-timesteps", 100), *SMALL]


@pytest.fixture
def run(upslope_command: Any, here: Path) -> Path:
    """A finished run of seven iterations with flags that have a memory."""
    more = ("--eval-freq", 40, "--stop-return", 1000, "--episodes", 3)
    upslope_command("train", "CartPole-v1", "--run-dir", "run", *LONG_ENOUGH, *more)
    assert checkpoints(here / "run") == [0, 2, 4, 6, 7]
    return here / "run"


class TestResume:
    def test_a_killed_run(self, upslope_command: Any, run: Path, here: Path) -> None:
        """Training, best model and evaluation come out as in the run that nobody disturbed."""
        for number in (0, 4):
            copy = killed_after(run, number, here / f"killed-{number}")
            done = upslope_command("resume", copy.name, "--quiet")
            assert (done.out, done.err) == ("", "")
            assert unlike(run, copy) == []
            assert (copy / "evaluation.json").read_bytes() == (run / "evaluation.json").read_bytes()
        states = [x["name"] for x in _state(run, 7)["callbacks"]]
        assert states == ["EvalCallback", "StopTrainingOnRewardThreshold"]

    def test_a_killed_run_by_its_lines(self, upslope_command: Any, run: Path, here: Path) -> None:
        copy = killed_after(run, 4, here / "killed")
        said = upslope_command("resume", copy)
        lines = said.out.splitlines()
        live = [line for line in lines if "steps/s" in line]
        assert "112 steps (100 %)" in live[-1]
        assert not any("(64 %)" in line for line in live)  # 64 steps were behind it
        assert {"sampled", "mode", "random", "run", "next"} <= {x.split()[0] for x in lines}
        assert said.err == ""

    def test_a_finished_one(self, upslope_command: Any, run: Path) -> None:
        before = {x: x.read_bytes() for x in run.rglob("*") if x.is_file() and x.name != ".lock"}
        said = upslope_command("resume", run)
        assert said.out == f"{run} is finished (112 steps): go on with --total-timesteps N\n"
        assert upslope_command("resume", run, "--quiet").out == ""
        assert {x: x.read_bytes() for x in before} == before

    def test_to_a_further_goal(self, upslope_command: Any, run: Path) -> None:
        upslope_command("resume", run, "--total-timesteps", 200, "--quiet")
        rows = read_rows(run / "progress.csv")
        assert [int(row["time/iterations"]) for row in rows] == list(range(1, 14))
        evaluated = [int(x["time/total_timesteps"]) for x in rows if x["eval/mean_reward"]]
        assert evaluated == [48, 80, 128, 160, 208]
        assert json.loads((run / "run.json").read_text())["timesteps"] == 208
        assert read_header(run / "model.safetensors")["evaluation"]["sampled"]["episodes"] == 3
        upslope_command("verify-resume", run)

    def test_a_smaller_goal(self, upslope_command: Any, run: Path) -> None:
        said = upslope_command("resume", run, "--total-timesteps", 50, code=2)
        assert said.err == (
            "upslope: the run has 112 steps behind it already: give a larger total_timesteps than "
            "that\n"
        )

    def test_only_the_evaluation_is_missing(
        self, upslope_command: Any, run: Path, here: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Not an iteration is trained, whether the process died before or after it said so."""
        monkeypatch.setattr(Training, "run", pytest.fail)
        for state in ("running", "finished"):
            copy = killed_after(run, 7, here / state)
            facts = json.loads((copy / "run.json").read_text())
            (copy / "run.json").write_text(json.dumps(facts | {"state": state}))
            upslope_command("resume", copy, "--quiet")
            assert unlike(run, copy) == []
            assert (copy / "evaluation.json").read_bytes() == (run / "evaluation.json").read_bytes()
            header = read_header(copy / "model.safetensors")
            assert header["evaluation"] == json.loads((run / "evaluation.json").read_text())

    def test_a_stop_return_that_fired(self, upslope_command: Any, here: Path) -> None:
        """The mean over 100 episodes that stopped the run stops it for good."""
        flags = ["--stop-return", 5, "--episodes", 2, "--total-timesteps", 5000, *SMALL]
        upslope_command("train", "CartPole-v1", "--run-dir", "run", *flags)
        last = checkpoints(here / "run")[-1]
        assert last * 16 < 5000
        facts = json.loads((here / "run" / "run.json").read_text())
        assert facts["return"] >= 5
        assert facts["steps_to_return"] == last * 16
        copy = killed_after(here / "run", last, here / "died")
        upslope_command("resume", copy, "--quiet")
        assert unlike(here / "run", copy) == []
        tensors = [
            {n: t.tolist() for n, t in read_model(x / "model.safetensors")[1].items() if "." in n}
            for x in (here / "run", copy)
        ]
        assert tensors[0].items() >= {n: x for n, x in tensors[1].items() if "head" in n}.items()
        earlier = killed_after(here / "run", checkpoints(here / "run")[-3], here / "earlier")
        upslope_command("resume", earlier, "--quiet")
        assert unlike(here / "run", earlier) == []

    def test_a_file_of_the_user(self, upslope_command: Any, here: Path) -> None:
        (here / "my_env.py").write_text(
            "import gymnasium as gym\n\ndef make():\n    return gym.make('CartPole-v1')\n"
        )
        flags = ["--run-dir", "run", "--episodes", 0, *LONG_ENOUGH]
        upslope_command("train", "my_env.py:make", *flags)
        copy = killed_after(here / "run", 4, here / "copy")
        for command in ("resume", "verify-resume"):
            said = upslope_command(command, copy, code=2)
            assert "because a file says so: add --env my_env.py:make" in said.err
            assert said.err.count("\n") == 1
        upslope_command("verify-resume", copy, "--env", "my_env.py:make")
        upslope_command("resume", copy, "--env", "my_env.py:make", "--quiet")
        assert unlike(here / "run", copy) == []

    def test_other_spaces(self, upslope_command: Any, run: Path, here: Path) -> None:
        copy = killed_after(run, 4, here / "copy")
        said = upslope_command("resume", copy, "--env", "Pendulum-v1", code=5)
        assert "observation space is Box([-4.8" in said.err
        assert "but the environment's is Box([-1. -1. -8.]" in said.err

    def test_an_edited_config(self, upslope_command: Any, run: Path, here: Path) -> None:
        copy = killed_after(run, 4, here / "copy")
        config = json.loads((copy / "config.json").read_text())
        config["settings"]["gamma"] = 0.5
        (copy / "config.json").write_text(json.dumps(config))
        said = upslope_command("resume", copy, code=2)
        assert "settings.gamma: 0.99 -> 0.5" in said.err

    def test_one_that_is_busy(self, upslope_command: Any, run: Path) -> None:
        lock = RunLock(run)
        assert "is in use by process" in upslope_command("resume", run, code=6).err
        lock.release()

    def test_no_run(self, upslope_command: Any, here: Path) -> None:
        (here / "empty").mkdir()
        for place in ("nowhere", "empty"):
            for command in ("resume", "verify-resume"):
                said = upslope_command(command, place, code=2)
                assert f"{place} is no run directory" in said.err, command

    def test_no_checkpoint(self, upslope_command: Any, run: Path, here: Path) -> None:
        copy = killed_after(run, 0, here / "copy")
        shutil.rmtree(copy / "checkpoints" / "000000")
        said = upslope_command("resume", copy, code=5)
        assert "holds no checkpoint that is whole: start the run again" in said.err
        assert "command.txt" in said.err


class TestInterrupted:
    def interrupted(
        self, upslope_command: Any, monkeypatch: pytest.MonkeyPatch, iteration: int, *command: Any
    ) -> Any:
        """The command, with Ctrl-C after an iteration."""
        record = RunDirectory.record

        def press(directory: RunDirectory, event: Any, **how: Any) -> None:
            record(directory, event, **how)
            if event.iteration == iteration:  # it is heard in the next rollout
                signal.raise_signal(signal.SIGINT)

        with monkeypatch.context() as patched:
            patched.setattr(RunDirectory, "record", press)
            return upslope_command(*command, code=130)

    def test_off_schedule_and_exact(
        self, upslope_command: Any, here: Path, monkeypatch: pytest.MonkeyPatch, run: Path,
        caplog: pytest.LogCaptureFixture,
    ) -> None:  # fmt: skip
        more = ("--eval-freq", 40, "--stop-return", 1000, "--episodes", 3)
        command = ["train", "CartPole-v1", "--run-dir", "broken", *LONG_ENOUGH, *more]
        self.interrupted(upslope_command, monkeypatch, 5, *command)
        assert checkpoints(here / "broken") == [0, 2, 4, 5]
        assert not (here / "broken" / "evaluation.json").exists()
        shutil.copytree(here / "broken", here / "exact")
        caplog.clear()
        upslope_command("resume", "broken", "--quiet")
        assert "goes on from iteration 5, where a signal stopped the run" in caplog.text
        assert unlike(run, here / "broken") != []
        caplog.clear()
        upslope_command("resume", "exact", "--exact", "--quiet")
        assert caplog.text == ""
        assert unlike(run, here / "exact") == []
        assert (here / "exact" / "checkpoints" / "000005.aside").is_dir()

    def test_during_the_evaluation(
        self, upslope_command: Any, here: Path, monkeypatch: pytest.MonkeyPatch, run: Path
    ) -> None:
        write = RunDirectory.write_evaluation

        def press(directory: RunDirectory, score: Score) -> None:
            raise KeyboardInterrupt

        more = ("--eval-freq", 40, "--stop-return", 1000, "--episodes", 3)
        monkeypatch.setattr(RunDirectory, "write_evaluation", press)
        command = ["train", "CartPole-v1", "--run-dir", "broken", *LONG_ENOUGH, *more]
        upslope_command(*command, code=130)
        monkeypatch.setattr(RunDirectory, "write_evaluation", write)
        upslope_command("resume", "broken", "--quiet")
        assert unlike(run, here / "broken") == []
        assert json.loads((here / "broken" / "evaluation.json").read_text())["seed"] == 0


class TestVerify:
    def test_a_sound_run(self, upslope_command: Any, run: Path) -> None:
        said = upslope_command("verify-resume", run)
        assert said.out.splitlines() == [
            "iteration 6 -> 7, replayed",
            "weights             55 numbers  same",
            "normaliser           0 numbers  same",
            "optimiser          110 numbers  same",
            "streams             14 entries  same",
            "progress.csv         1 rows     same",
            f"same to the bit: {run} resumes as the undisturbed run",
        ]
        assert said.err == ""

    def test_a_run_without_two(self, upslope_command: Any, run: Path) -> None:
        for number in (0, 2, 4, 6):
            shutil.rmtree(run / "checkpoints" / f"{number:06}")
        said = upslope_command("verify-resume", run, code=5)
        assert "no two checkpoints in a row that are whole" in said.err


class TestFlags:
    def test_are_listed(self, upslope_command: Any) -> None:
        flags = ("--total-timesteps", "--exact", "--env", "--quiet")
        said = upslope_command("resume", "--help").out
        assert all(flag in said for flag in flags)
        assert "--env" in upslope_command("verify-resume", "--help").out
        assert {"resume", "verify-resume"} <= COMMANDS.keys()

    @pytest.mark.parametrize(
        "given", [(), ("a", "b"), ("a", "--total-timesteps", "0"), ("a", "--exat")]
    )
    def test_wrong_ones(self, upslope_command: Callable[..., Any], given: tuple[str, ...]) -> None:
        assert upslope_command("resume", *given, code=2).err.startswith("upslope: ")

    def test_of_the_parser(self) -> None:
        asked = parser().parse(["run", "-n", "5", "--exact"])
        assert (asked.run, asked.total_timesteps, asked.exact, asked.env) == ("run", 5, True, None)


def _state(run: Path, number: int) -> Any:
    return json.loads((run / "checkpoints" / f"{number:06}" / "state.json").read_text())


class TestWhatIsSaid:
    def test_where_it_goes_on(self, upslope_command: Any, run: Path, here: Path) -> None:
        killed = killed_after(run, 2, here / "killed")
        rows = read_rows(killed / "progress.csv")
        lost = int(rows[-1]["time/total_timesteps"]) - int(rows[1]["time/total_timesteps"])
        said = upslope_command("resume", killed).out.splitlines()[0]
        assert said == (
            f"resume   from iteration 2, {rows[1]['time/total_timesteps']} steps; "
            f"{lost} steps after it are trained again"
        )

    def test_exact_leaves_a_finished_run_alone(
        self, upslope_command: Any, run: Path, here: Path
    ) -> None:
        shutil.copytree(run, here / "copy")
        before = checkpoints(here / "copy")
        assert "is finished" in upslope_command("resume", here / "copy", "--exact").out
        assert checkpoints(here / "copy") == before

    def test_the_way_on_after_an_interrupt(
        self, upslope_command: Any, here: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        loud = [flag for flag in LONG_ENOUGH if flag != "--quiet"]
        command = ["train", "CartPole-v1", "--run-dir", "broken", *loud]
        said = TestInterrupted().interrupted(upslope_command, monkeypatch, 5, *command)
        assert "next     upslope resume broken" in said.out
        said = upslope_command("eval", killed_after(here / "broken", 4, here / "dead"), code=2).err
        assert f"{here / 'dead'} has not finished" in said
        assert f"type upslope resume {here / 'dead'}" in said
        assert "checkpoints/000004" in said
