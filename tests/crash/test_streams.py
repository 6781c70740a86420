"""Pipes and terminals that go away, files that cannot be written, a process that sleeps."""

from __future__ import annotations

import errno
import json
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import upslope
from upslope.cli.main import main
from upslope.runs.directory import BEGINNING
from upslope.runs.progress import CLOCKS, read_rows

UPSLOPE = f"{sys.executable} -m upslope"
RUN = ("CartPole-v1 --preset none -n 512 --n-envs 2 --n-steps 64 --batch-size 64 --n-epochs 1 "
       "--net-arch 8 --log-interval 1 --max-episode-steps 30 --checkpoints 4 --episodes 2 "
       "--run-dir run")  # fmt: skip


def shell(folder: Path, command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-c", command], cwd=folder, env=os.environ | environment, text=True,
        stdin=subprocess.DEVNULL, capture_output=True, timeout=120, check=False,
    )  # fmt: skip


def finished(folder: Path) -> bool:
    state = json.loads((folder / "run" / "run.json").read_text())
    return (state["state"], state["exit_code"]) == ("finished", 0) and (
        folder / "run" / "evaluation.json"
    ).exists()


@pytest.mark.parametrize(
    ("around", "environment"),
    [
        (f"set -o pipefail; {UPSLOPE} train {RUN} | head -1", {"LC_ALL": "C", "NO_COLOR": "1"}),
        (f"{UPSLOPE} train {RUN} >&- 2>&- <&-", {}),
    ],
    ids=["head", "all-closed"],
)
def test_training_goes_on(tmp_path: Path, around: str, environment: dict[str, str]) -> None:
    ended = shell(tmp_path, around, **environment)
    assert ended.returncode == 0, ended
    assert ended.stderr == ""
    assert "\x1b" not in ended.stdout
    assert finished(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("around", "environment"),
    [
        (f"{UPSLOPE} train {RUN} 2>&-", {}),
        (f"{UPSLOPE} train {RUN} >&-", {}),
        (f"{UPSLOPE} train {RUN} 2>/dev/full >/dev/full", {}),
        (f"{UPSLOPE} train {RUN} 2>&1 | true", {"TERM": "dumb"}),
        (f"env -i PATH=$PATH LC_ALL=C PYTHONIOENCODING=ascii {UPSLOPE} train {RUN}", {}),
    ],
    ids=["stderr-closed", "stdout-closed", "full", "nobody-reads", "bare-environment"],
)
def test_training_goes_on_elsewhere(
    tmp_path: Path, around: str, environment: dict[str, str]
) -> None:
    ended = shell(tmp_path, around, **environment)
    assert ended.returncode == 0, ended
    assert ended.stderr == ""
    assert finished(tmp_path)


@pytest.mark.slow
def test_a_process_that_is_stopped_and_continued(tmp_path: Path) -> None:
    def run(name: str, *, pause: bool) -> Path:
        command = [*UPSLOPE.split(), "train", *RUN.split()[:-1], name, "--vec=async"]
        process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True,
                                   stdout=subprocess.DEVNULL, start_new_session=True)  # fmt: skip
        if pause:
            while not (tmp_path / name / "checkpoints" / "000000").exists():
                time.sleep(0.005)
            os.killpg(process.pid, signal.SIGSTOP)
            time.sleep(3)
            os.killpg(process.pid, signal.SIGCONT)
        _, said = process.communicate(timeout=60)
        assert (process.returncode, said) == (0, "")
        return tmp_path / name

    undisturbed, slept = run("undisturbed", pause=False), run("slept", pause=True)
    for name in ("model.safetensors", "evaluation.json"):
        assert (slept / name).read_bytes() == (undisturbed / name).read_bytes(), name
    assert without_clocks(slept) == without_clocks(undisturbed)


def without_clocks(run: Path) -> list[dict[str, str]]:
    rows = read_rows(run / "progress.csv")
    return [{key: x for key, x in row.items() if key not in CLOCKS} for row in rows]


def learn(run: Path) -> None:
    agent = upslope.A2C(
        "CartPole-v1", preset="none", n_envs=2, n_steps=8, net_arch=(8,), max_episode_steps=16,
        checkpoints=4, log_interval=1, run_dir=run,
    )  # fmt: skip
    agent.learn(320)
    agent.close()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("streams") / "run"
    learn(run)
    return run


class TestAFullDisk:
    """For one file alone, from some row on, and for a while."""

    @pytest.mark.parametrize("part", [0, 7], ids=["nothing", "half-a-line"])
    def test_of_progress_csv(
        self, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture, part: int,
    ) -> None:  # fmt: skip
        really, calls = os.pwrite, 0

        def pwrite(descriptor: int, data: bytes, offset: int) -> int:
            nonlocal calls
            if not os.readlink(f"/proc/self/fd/{descriptor}").endswith("progress.csv"):
                return really(descriptor, data, offset)
            calls += 1
            if 5 <= calls < 12 and (not part or calls % 2):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return really(descriptor, data[:part] if 5 <= calls < 12 else data, offset)

        monkeypatch.setattr(os, "pwrite", pwrite)
        with caplog.at_level(logging.WARNING, "upslope"):
            learn(tmp_path / "run")
        said = [x.getMessage() for x in caplog.records if "progress.csv" in x.getMessage()]
        assert len(said) == 1
        assert "training goes on" in said[0]
        assert calls > 12
        assert without_clocks(tmp_path / "run") == without_clocks(undisturbed)
        for name in ("model.safetensors",):
            assert (tmp_path / "run" / name).read_bytes() == (undisturbed / name).read_bytes()

    def test_of_the_events_file(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        pytest.importorskip("tensorboard")
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        from upslope.runs import tensorboard

        monkeypatch.setattr(tensorboard, "WAIT", -1.0)
        really, calls = tensorboard.Events._append, 0

        def append(self: Any, event: Any) -> None:
            nonlocal calls
            calls += 1
            if 3 <= calls < 9:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            really(self, event)

        monkeypatch.setattr(tensorboard.Events, "_append", append)
        with caplog.at_level(logging.WARNING, "upslope"):
            learn(tmp_path / "run")
        said = [x.getMessage() for x in caplog.records if "tfevents" in x.getMessage()]
        assert len(said) == 1
        assert "training goes on" in said[0]
        (file,) = (tmp_path / "run").glob("events.*")
        events = EventAccumulator(str(file)).Reload().Scalars("time/iterations")
        rows = without_clocks(tmp_path / "run")
        assert [event.value for event in events] == [float(x["time/iterations"]) for x in rows]

    def test_of_every_file(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
    ) -> None:
        """What ended the run is what is said, whatever else fails after it."""
        monkeypatch.chdir(tmp_path)
        really, calls = os.fsync, 0

        def fsync(descriptor: int) -> None:
            nonlocal calls
            calls += 1
            if calls > 25:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            really(descriptor)

        with monkeypatch.context() as patched:
            patched.setattr(os, "fsync", fsync)
            assert main(["train", *RUN.split(), "--quiet"]) == 5
        said = capfd.readouterr().err
        assert "cannot write checkpoint run/checkpoints/" in said
        assert "bytes needed" in said
        assert said.endswith("make room, then upslope resume run\n")
        assert main(["resume", "run", "--quiet"]) == 0
        resumed = Path("run").rename("resumed")
        assert main(["train", *RUN.split(), "--quiet"]) == 0
        assert without_clocks(resumed) == without_clocks(Path("run"))
        for name in ("model.safetensors", "evaluation.json"):
            assert (resumed / name).read_bytes() == Path("run", name).read_bytes()

    @pytest.mark.slow
    def test_of_the_whole_run(self, tmp_path: Path) -> None:
        """A small file system of its own, which is made larger afterwards."""
        disk = tmp_path / "disk"
        disk.mkdir()
        mount = shell(tmp_path, "mount -t tmpfs -o size=64k none disk")
        if mount.returncode:
            pytest.skip(f"no file system can be mounted here: {mount.stderr.strip()}")
        try:
            ended = shell(disk, f"{UPSLOPE} train {RUN} --quiet")
            assert ended.returncode == 5, ended
            assert "bytes needed" in ended.stderr
            assert "0 free" in ended.stderr or " free" in ended.stderr
            assert "upslope resume run" in ended.stderr
            assert "unexpected" not in ended.stderr
            shell(tmp_path, "mount -o remount,size=64m disk")
            again = shell(disk, f"{UPSLOPE} resume run --quiet")
            assert (again.returncode, again.stderr) == (0, "")
            assert finished(disk)
            undisturbed = shell(tmp_path, f"{UPSLOPE} train {RUN} --quiet")
            assert undisturbed.returncode == 0
            assert without_clocks(disk / "run") == without_clocks(tmp_path / "run")
        finally:
            shell(tmp_path, "umount disk")


def test_a_start_that_was_killed_is_begun_again(tmp_path: Path) -> None:
    """Before config.json is there nothing was trained, and the same command may be given again."""
    run = tmp_path / "run"
    learn(run)
    for path in run.iterdir():
        if path.name not in BEGINNING | {".lock"}:
            path.unlink()
    (run / ".1234.upslope-tmp").write_text("half of config.json")
    with pytest.raises(upslope.UpslopeError, match="not empty"):  # it has checkpoints and rows
        learn(run)
    for path in sorted((run / "checkpoints").iterdir())[1:]:
        path.rename(tmp_path / path.name)
    with pytest.raises(upslope.UpslopeError, match="not empty"):
        learn(run)
    header = (run / "progress.csv").read_text().splitlines()[0]
    (run / "progress.csv").write_text(header + "\n")
    learn(run)
    assert json.loads((run / "run.json").read_text())["state"] == "finished"
    assert not list(run.glob(".*.upslope-tmp"))
