"""Trackers: what each is told, that none can stop a run, and the real ones, offline."""

from __future__ import annotations

import csv
import importlib.util
import json
import logging
import os
import sqlite3
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from broken_runs import killed_after

from upslope.cli.main import main
from upslope.errors import ConfigError
from upslope.runs import writers
from upslope.runs.tensorboard import Events
from upslope.runs.verify import verify_resume
from upslope.runs.writers import (
    ScalarWriter,
    Trackers,
    check_trackers,
    open_writers,
)

CONFIG = {"algorithm": "ppo", "settings": {"gamma": 0.99, "net_arch": {"pi": [8]}}, "command": {}}
ROWS = [{"time/total_timesteps": 10.0 * i, "rollout/ep_rew_mean": 1.5 * i} for i in range(3)]
SCORE = {
    "about": "this policy",
    "sampled": {"mean": 3.5, "ci95": [1.0, 6.0], "success_rate": None, "episodes": 7},
    "seed": 0,
}


class Fake:
    """A tracker that remembers, and fails in ``fails`` where asked to."""

    id = "its-own-name"

    def __init__(self, name: str = "wandb", fails: str = "") -> None:
        self.name, self.fails, self.told = name, fails, []

    def _note(self, method: str, *what: Any) -> None:
        if method == self.fails:
            raise OSError(28, "No space left on device")
        self.told.append((method, *what))

    def add_scalars(self, values: Mapping[str, float], step: int) -> None:
        self._note("add_scalars", dict(values), step)

    def add_evaluation(self, score: Mapping[str, Any]) -> None:
        self._note("add_evaluation", score)

    def add_model(self, model: Path) -> None:
        self._note("add_model", model)

    def end(self, exit_code: int) -> None:
        self._note("end", exit_code)

    def close(self) -> None:
        self.end(0)


def tell(trackers: Trackers, model: Path, exit_code: int = 0) -> None:
    """A whole run."""
    for row in ROWS:
        trackers.add_scalars(row, int(row["time/total_timesteps"]))
    trackers.add_evaluation(SCORE)
    trackers.end(exit_code, model)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "model.safetensors").write_bytes(b"a model")
    return tmp_path / "model.safetensors"


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Both trackers as if installed; opening one is noted and gives a fake."""
    opened: dict[str, Any] = {}
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *more: object() if name in writers.TRACKERS else find(name, *more),
    )
    for name in writers.TRACKERS:

        def start(path: Path, config: Any, known: str | None, name: str = name) -> Fake:
            opened[name] = (path, config, known)
            return Fake(name)

        monkeypatch.setitem(writers._OPEN, name, start)
    return opened


class TestWhatIsTold:
    def test_rows_score_model_and_end(self, model: Path) -> None:
        fake = Fake()
        tell(Trackers([fake]), model, 130)
        assert fake.told == [
            *(("add_scalars", row, int(row["time/total_timesteps"])) for row in ROWS),
            ("add_evaluation", SCORE),
            ("add_model", model),
            ("end", 130),
        ]

    def test_no_model_where_there_is_none(self, tmp_path: Path) -> None:
        fake = Fake()
        Trackers([fake]).end(3, tmp_path / "model.safetensors")
        assert fake.told == [("end", 3)]

    def test_it_ends_once(self, model: Path) -> None:
        fake = Fake()
        trackers = Trackers([fake])
        trackers.end(0)
        trackers.end(1)
        assert fake.told == [("end", 0)]

    def test_nobody_may_be_told(self, model: Path) -> None:
        tell(Trackers(), model)

    def test_tensorboard_is_a_writer_too(self, tmp_path: Path) -> None:
        writer: ScalarWriter = Events(tmp_path)
        assert {"add_scalars", "close"} <= set(dir(writer))


class TestFailures:
    @pytest.mark.parametrize("fails", ["add_scalars", "add_evaluation", "add_model", "end"])
    def test_are_heard_of_once_and_stop_nothing(
        self, model: Path, fails: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        broken, sound = Fake("wandb", fails), Fake("mlflow")
        with caplog.at_level(logging.WARNING, "upslope"):
            tell(Trackers([broken, sound]), model)
        assert len(sound.told) == 6
        (record,) = caplog.records
        assert "wandb failed (OSError: [Errno 28] No space left on device)" in record.message

    def test_an_interrupt_is_none(self) -> None:
        class Interrupted(Fake):
            def _note(self, *_: Any) -> None:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            Trackers([Interrupted()]).add_scalars(ROWS[0], 0)


class TestOpening:
    def test_a_list_or_words_with_commas(self, installed: Any) -> None:
        assert check_trackers(["wandb,mlflow", "wandb"]) == ("wandb", "mlflow")
        assert check_trackers([]) == ()

    def test_what_it_is_given(self, installed: Any, tmp_path: Path) -> None:
        trackers = open_writers(["mlflow"], tmp_path, CONFIG)
        assert trackers.names == ["mlflow"]
        assert installed == {"mlflow": (tmp_path, CONFIG, None)}
        assert json.loads((tmp_path / "tracking.json").read_text()) == {"mlflow": "its-own-name"}

    def test_a_run_goes_on_where_it_was(self, installed: Any, tmp_path: Path) -> None:
        open_writers(["wandb", "mlflow"], tmp_path, CONFIG)
        open_writers(["wandb"], tmp_path, CONFIG)
        assert installed["wandb"] == (tmp_path, CONFIG, "its-own-name")

    @pytest.mark.parametrize("damaged", ["{", "[]", '{"other": "x"}'])
    def test_a_damaged_record_is_none(self, installed: Any, tmp_path: Path, damaged: str) -> None:
        (tmp_path / "tracking.json").write_text(damaged)
        open_writers(["wandb"], tmp_path, CONFIG)
        assert installed["wandb"] == (tmp_path, CONFIG, None)

    def test_nothing_is_written_where_nothing_is_asked(self, tmp_path: Path) -> None:
        assert open_writers([], tmp_path, CONFIG).names == []
        assert list(tmp_path.iterdir()) == []

    def test_an_unknown_one(self) -> None:
        with pytest.raises(ConfigError, match=r"--track wand is .*did you mean 'wandb'"):
            check_trackers(["wand"])

    def test_a_missing_one(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
        with pytest.raises(ConfigError, match=r"pip install 'upslope\[mlflow\]'"):
            check_trackers(["mlflow"])

    def test_one_that_cannot_start_closes_the_others(
        self, installed: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        first = Fake("mlflow")
        monkeypatch.setitem(writers._OPEN, "mlflow", lambda *_: first)

        def refuse(*_: Any) -> Any:
            raise ValueError("api_key not configured\nmore")

        monkeypatch.setitem(writers._OPEN, "wandb", refuse)
        with pytest.raises(ConfigError, match=r"not configured\): run `wandb login`") as caught:
            open_writers(["mlflow", "wandb"], tmp_path, CONFIG)
        assert "\n" not in str(caught.value)
        assert first.told == [("end", 1)]
        assert list(tmp_path.iterdir()) == []


SMALL = ["--n-envs=2", "--n-steps=32", "--batch-size=32", "--n-epochs=1", "--net-arch=8",
         "--preset=none", "--quiet"]  # fmt: skip


class TestARunOfTheCommandLine:
    @pytest.fixture(autouse=True)
    def elsewhere(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)

    def train(self, *more: str) -> int:
        return main(["train", "CartPole-v1", *SMALL, "-n=640", "--run-dir=run", *more])

    def test_a_tracker_is_told_all_of_it(
        self, installed: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        fake = Fake()
        given: list[Any] = []
        monkeypatch.setitem(writers._OPEN, "wandb", lambda *how: given.append(how) or fake)
        assert self.train("--track", "--episodes=2") == 0
        ((path, config, known),) = given
        assert (path, known) == (Path("run"), None)
        written = json.loads(Path("run/config.json").read_text())
        assert json.loads(json.dumps(config)) == written
        assert config["command"]["track"] == ["wandb"]
        with open("run/progress.csv", newline="") as file:
            rows = [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(file)]
        told = [what for what in fake.told if what[0] == "add_scalars"]
        assert [values for _, values, _ in told] == rows
        assert [step for *_, step in told] == [row["time/total_timesteps"] for row in rows]
        (score,) = [what[1] for what in fake.told if what[0] == "add_evaluation"]
        assert json.loads(json.dumps(score)) == json.loads(Path("run/evaluation.json").read_text())
        assert fake.told[-2:] == [("add_model", Path("run/model.safetensors")), ("end", 0)]

    def test_one_that_fails_does_not_stop_it(
        self, installed: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        fake = Fake("wandb", "add_scalars")
        monkeypatch.setitem(writers._OPEN, "wandb", lambda *_: fake)
        assert self.train("--track=wandb", "--episodes=0") == 0
        assert fake.told == []
        assert json.loads(Path("run/run.json").read_text())["timesteps"] == 640

    def test_a_run_in_trouble_says_so(
        self, installed: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        Path("mine.py").write_text(
            "import gymnasium as gym\n"
            "class Broken(gym.Wrapper):\n"
            "    t = 0\n"
            "    def step(self, action):\n"
            "        self.t += 1\n"
            "        if self.t == 200: raise OSError('no such robot')\n"
            "        return self.env.step(action)\n"
            "def make_env(**more): return Broken(gym.make('CartPole-v1', **more))\n"
        )
        fake = Fake()
        monkeypatch.setitem(writers._OPEN, "wandb", lambda *_: fake)
        arguments = ["train", "mine.py:make_env", *SMALL, "-n=9999", "--run-dir=run", "--track"]
        monkeypatch.setattr(sys, "path", list(sys.path))
        assert main(arguments) == 3
        assert fake.told[-1] == ("end", 3)

    def test_what_is_wrong_is_said_before_anything_is_made(self) -> None:
        assert self.train("--track=wand") == 2
        assert not Path("run").exists()

    def test_one_that_cannot_start_leaves_a_directory_that_can_be_used(
        self, installed: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(*_: Any) -> Any:
            raise ValueError("no key")

        monkeypatch.setitem(writers._OPEN, "wandb", refuse)
        assert self.train("--track", "--episodes=0") == 2
        assert self.train("--episodes=0") == 0
        assert [path.name for path in Path().iterdir()] == ["run"]

    def resumed(self) -> Any:
        """The run as if its process had died in the middle, finished by the command line."""
        killed_after(Path("run"), 0, Path("killed"))
        return main(["resume", "killed", "--quiet"])

    def test_rows_come_once_though_a_part_is_trained_again(
        self, installed: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        fake = Fake()
        monkeypatch.setitem(writers._OPEN, "wandb", lambda *_: fake)
        assert self.train("--track", "--episodes=0", "--log-interval=1") == 0
        sent = [step for kind, *_, step in fake.told if kind == "add_scalars"]
        assert len(sent) == 10
        fake.told.clear()
        assert self.resumed() == 0
        assert [what[0] for what in fake.told] == ["add_model", "end"]

    def test_a_replay_tells_nobody(self, installed: Any) -> None:
        assert self.train("--track", "--episodes=0") == 0
        installed.clear()
        verify_resume(Path("run"))
        assert installed == {}

    def test_a_resume_goes_on_without_one_that_is_gone(
        self, installed: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        assert self.train("--track", "--episodes=0") == 0

        def refuse(*_: Any) -> Any:
            raise ValueError("no key")

        monkeypatch.setitem(writers._OPEN, "wandb", refuse)
        assert self.resumed() == 0
        assert "the run goes on without its trackers" in caplog.text
        assert json.loads(Path("killed/run.json").read_text())["state"] == "finished"

    def test_a_start_that_was_killed_is_given_again(self, installed: Any) -> None:
        Path("run").mkdir()
        for name, content in ((".lock", "{}"), ("tracking.json", '{"wandb": "its-own-name"}')):
            (Path("run") / name).write_text(content)
        assert self.train("--track", "--episodes=0") == 0
        assert installed["wandb"][2] == "its-own-name"


WHOLE_RUN = """
import sys, time
from pathlib import Path
from test_writers import CONFIG, tell
from upslope.runs.writers import open_writers

path = Path("run")
path.mkdir()
(path / "model.safetensors").write_bytes(b"a model")
tell(open_writers([sys.argv[1]], path, CONFIG), path / "model.safetensors")
time.sleep(1.1)  # W&B names its folders by the second
again = open_writers([sys.argv[1]], path, CONFIG)
again.add_scalars({"time/total_timesteps": 40.0, "rollout/ep_rew_mean": 7.0}, 40)
again.end(143)
"""


def whole_run(name: str, cwd: Path, **environment: str) -> str:
    """A run and its resumption in a process of their own, which no warning here can fail."""
    places = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", WHOLE_RUN, name], capture_output=True, text=True,
        check=False, cwd=cwd, env={**os.environ, "PYTHONPATH": places, **environment},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return str(json.loads((cwd / "run" / "tracking.json").read_text())[name])


def test_mlflow_itself(tmp_path: Path) -> None:
    pytest.importorskip("mlflow")
    database = tmp_path / "m.db"
    run = whole_run("mlflow", tmp_path, MLFLOW_TRACKING_URI=f"sqlite:///{database}")
    with sqlite3.connect(database) as asked:
        rows = "select step, value from metrics where key = 'rollout/ep_rew_mean' order by step"
        assert asked.execute(rows).fetchall() == [(0, 0.0), (10, 1.5), (20, 3.0), (40, 7.0)]
        numbers = dict(asked.execute("select key, value from metrics").fetchall())
        assert numbers["evaluation/sampled/ci95/high"] == 6.0
        assert "evaluation/sampled/success_rate" not in numbers
        settings = dict(asked.execute("select key, value from params").fetchall())
        assert settings["settings/gamma"] == "0.99"
        assert settings["settings/net_arch/pi"] == "[8]"
        status = "select run_uuid, status, name from runs"
        assert asked.execute(status).fetchall() == [(run, "KILLED", "run")]
    asked.close()
    (artifact,) = tmp_path.rglob(f"{run}/artifacts/model.safetensors")
    assert artifact.read_bytes() == b"a model"


def test_wandb_itself(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    run = whole_run("wandb", tmp_path, WANDB_MODE="offline", WANDB_SILENT="true")
    first, second = sorted((tmp_path / "wandb").glob(f"offline-run-*-{run}"))
    steps = [record["rollout/ep_rew_mean"] for record in history(first / f"run-{run}.wandb")]
    assert steps == [0.0, 1.5, 3.0]
    steps = [record["rollout/ep_rew_mean"] for record in history(second / f"run-{run}.wandb")]
    assert steps == [7.0]


def history(file: Path) -> list[dict[str, float]]:
    """The rows in an offline file of W&B: a head of 7 bytes, then records as LevelDB logs them."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, rows, at = file.read_bytes(), [], 7
    assert len(data) < 2**15, "one block, in which no record is split"
    while at < len(data):
        size = int.from_bytes(data[at + 4 : at + 6], "little")
        record = Record()
        record.ParseFromString(data[at + 7 : at + 7 + size])
        at += 7 + size
        if record.HasField("history"):
            items = record.history.item
            rows.append({x.key or "/".join(x.nested_key): json.loads(x.value_json) for x in items})
    return rows
