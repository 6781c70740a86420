"""A checkpoint is whole or not there, and the newest that verifies is the one that counts."""

from __future__ import annotations

import json
import logging
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from broken_runs import seal_anew, tiny

from upslope.errors import ModelFileError, RunDirectoryBusyError
from upslope.runs.checkpoint import (
    FILES,
    KEEP,
    newest,
    numbers,
    prune,
    read_checkpoint,
    remove_leftovers,
    set_aside,
    verified,
    write_checkpoint,
)
from upslope.runs.directory import RunDirectory
from upslope.runs.lock import RunLock
from upslope.runs.model_file import write_model

STATE = {"scheduled": True, "finished": False, "run": {"resumed": []}, "more": [1, 0.1, None]}


def put(directory: Path) -> None:
    """Two small model files."""
    write_model(directory / "model.safetensors", {}, {"w": torch.arange(3.0)})
    write_model(directory / "optim.safetensors", {}, {"all.0": torch.arange(2.0)})


def kept(folder: Path, *names: int, **state: Any) -> None:
    for number in names:
        write_checkpoint(folder, number, STATE | state, put)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "run" / "checkpoints"


@pytest.fixture(autouse=True)
def _make(folder: Path) -> None:
    folder.parent.mkdir()


class TestWriting:
    def test_what_lies_in_it(self, folder: Path) -> None:
        path = write_checkpoint(folder, 123, STATE, put)
        assert path == folder / "000123"
        assert {x.name for x in path.iterdir()} == {*FILES, "manifest.json"}
        assert [x.name for x in folder.iterdir()] == ["000123"]
        found = read_checkpoint(path)
        assert found.state == STATE
        assert found.number == 123
        assert found.moments()["all.0"].tolist() == [0, 1]
        manifest = json.loads((path / "manifest.json").read_text())
        assert manifest["files"].keys() == set(FILES)
        assert manifest["versions"].keys() >= {"upslope", "torch", "numpy", "python"}
        assert manifest["cpu"]

    def test_the_manifest_is_written_last(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """So that what has one is whole, even on a disk that forgot the rest."""
        synced: list[str] = []
        fsync = os.fsync

        def note(descriptor: int) -> None:
            mode = os.fstat(descriptor)
            path = os.readlink(f"/proc/self/fd/{descriptor}")
            synced.append("folder" if stat.S_ISDIR(mode.st_mode) else Path(path).name)
            fsync(descriptor)

        monkeypatch.setattr(os, "fsync", note)
        if not Path("/proc/self/fd").exists():
            pytest.skip("the names of open files are not known here")
        write_checkpoint(folder, 1, STATE, put)
        files = [name for name in synced if name != "folder"]
        assert [x.partition(".")[0].lstrip(".") or x for x in files][-2:] == ["state", "manifest"]
        assert len(files) == 4
        assert synced[-2:] == ["folder", "folder"]  # its own names, then its name

    @pytest.mark.parametrize("file", ["model.safetensors", "optim.safetensors", "state", "rename"])
    @pytest.mark.parametrize("times", [1, 2])
    def test_a_disk_that_fails(
        self, file: str, times: int, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Once is tried again; twice is an error, and what there was is as it was."""
        kept(folder, 4)
        before = {x: x.read_bytes() for x in folder.rglob("*") if x.is_file()}
        left = times

        def failing(call: Callable[..., Any], at: str) -> Callable[..., Any]:
            def attempt(*arguments: Any) -> Any:
                nonlocal left
                if left and file == at:
                    left -= 1
                    raise OSError(28, "No space left on device")
                return call(*arguments)

            return attempt

        module = "upslope.runs.checkpoint"
        monkeypatch.setattr(f"{module}._seal", failing(sys.modules[module]._seal, "state"))
        monkeypatch.setattr(os, "replace", failing(os.replace, "rename"))
        write = failing(put, file)
        if times == 1:
            write_checkpoint(folder, 5, STATE, write)
            assert numbers(folder) == ["000004", "000005"]
        else:
            with pytest.raises(ModelFileError) as caught:
                write_checkpoint(folder, 5, STATE, write)
            said = str(caught.value)
            assert "No space left on device" in said
            assert f"upslope resume {folder.parent}" in said
            assert "000005 (" in said
            assert caught.value.exit_code == 5
            assert numbers(folder) == ["000004"]
        assert {x: x.read_bytes() for x in before} == before
        assert not list(folder.glob(".tmp*"))

    def test_an_interrupt_leaves_nothing(self, folder: Path) -> None:
        def interrupted(directory: Path) -> None:
            put(directory)
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            write_checkpoint(folder, 5, STATE, interrupted)
        assert list(folder.iterdir()) == []

    def test_one_of_the_same_number_is_set_aside(self, folder: Path) -> None:
        for more in range(3):
            kept(folder, 4, more=more)
        assert sorted(x.name for x in folder.iterdir()) == [
            "000004", "000004.aside", "000004.aside-2",
        ]  # fmt: skip
        assert numbers(folder) == ["000004"]
        assert read_checkpoint(folder / "000004").state["more"] == 2
        assert json.loads((folder / "000004.aside" / "state.json").read_text())["more"] == 0
        set_aside(folder / "000009")  # which is not there


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


DAMAGE: dict[str, Callable[[Path], Any]] = {
    "gone": Path.unlink,
    "empty": lambda path: path.write_bytes(b""),
    "cut": lambda path: os.truncate(path, path.stat().st_size - 1),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b" "),
    "flipped": flip,
    "a directory": lambda path: (path.unlink(), path.mkdir()),
}


class TestDamage:
    @pytest.mark.parametrize("file", [*FILES, "manifest.json"])
    @pytest.mark.parametrize("damage", DAMAGE)
    def test_is_found_and_stepped_over(
        self, damage: str, file: str, folder: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        kept(folder, 4, 6)
        DAMAGE[damage](folder / "000006" / file)
        with pytest.raises(ModelFileError, match=r"000006 is damaged \(.+\)$") as caught:
            read_checkpoint(folder / "000006")
        if damage != "gone":
            assert file in str(caught.value) or damage == "a directory" or file == "manifest.json"
        assert newest(folder).number == 4
        (said,) = [x for x in caplog.records if x.levelno == logging.WARNING]
        assert said.getMessage() == f"{caught.value}; the one before it is looked at"

    def test_every_bit_of_a_small_one(self, folder: Path) -> None:
        """Random bits of all its files: none is accepted."""
        kept(folder, 4)
        rng = np.random.default_rng(0)
        for file in (*FILES, "manifest.json"):
            path = folder / "000004" / file
            sound = path.read_bytes()
            for bit in rng.integers(8 * len(sound), size=60).tolist():
                data = bytearray(sound)
                data[bit // 8] ^= 1 << bit % 8
                path.write_bytes(data)
                with pytest.raises(ModelFileError, match="is damaged"):
                    read_checkpoint(folder / "000004")
            path.write_bytes(sound)
        assert read_checkpoint(folder / "000004").number == 4

    def test_says_both_hashes(self, folder: Path) -> None:
        path = write_checkpoint(folder, 4, STATE, put)
        expected = json.loads((path / "manifest.json").read_text())["files"]["state.json"][1]
        flip(path / "state.json")
        with pytest.raises(ModelFileError, match=f"SHA-256 [0-9a-f]{{64}}, .* says {expected}"):
            read_checkpoint(path)

    @pytest.mark.parametrize(
        "state", [{}, [], None, 3, {"scheduled": 1}, {"scheduled": "yes"}, "text"]
    )
    def test_a_state_that_is_none(self, state: Any, folder: Path) -> None:
        path = write_checkpoint(folder, 4, STATE, put)
        (path / "state.json").write_text(json.dumps(state))
        seal_anew(path)
        with pytest.raises(ModelFileError, match="is damaged"):
            read_checkpoint(path)

    def test_one_that_is_deep(self, folder: Path) -> None:
        path = write_checkpoint(folder, 4, STATE, put)
        (path / "state.json").write_text("[" * 200_000)
        seal_anew(path)
        with pytest.raises(ModelFileError, match="is damaged"):
            read_checkpoint(path)

    def test_a_newer_format_is_no_damage(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """An older one before it would fork the run, so it is not taken either."""
        kept(folder, 4)
        with monkeypatch.context() as patched:
            patched.setattr("upslope.runs.checkpoint.FORMAT", 2)
            patched.setattr("upslope.runs.checkpoint.versions", lambda: {"upslope": "99.0"})
            kept(folder, 6)
        with pytest.raises(ModelFileError, match=r"was written by upslope 99\.0, this is .*update"):
            newest(folder)


class TestWhichOne:
    def test_by_number_not_by_name_or_time(self, folder: Path) -> None:
        kept(folder, 999_999, 1_000_000, 7)
        assert numbers(folder) == ["000007", "999999", "1000000"]
        assert [x.number for x in verified(folder)] == [1_000_000, 999_999, 7]
        assert newest(folder).number == 1_000_000

    def test_a_scheduled_one(self, folder: Path) -> None:
        kept(folder, 4)
        kept(folder, 5, scheduled=False)
        assert newest(folder).number == 5
        assert newest(folder, scheduled=True).number == 4

    def test_other_names_are_none(self, folder: Path) -> None:
        kept(folder, 4)
        for name in ("000005.aside", ".tmp-1-000006", "7", "latest", "000008x"):
            shutil.copytree(folder / "000004", folder / name)
        (folder / "000009").write_text("a file")
        assert numbers(folder) == ["000004", "000009"]
        assert newest(folder).number == 4

    def test_there_is_none(self, folder: Path) -> None:
        for _ in range(2):
            with pytest.raises(
                ModelFileError, match=r"no checkpoint that is whole: .*command\.txt"
            ):
                newest(folder)
            folder.mkdir(exist_ok=True)


class TestRoom:
    def test_the_newest_stay(self, folder: Path) -> None:
        kept(folder, *range(1, 8))
        set_aside(folder / "000003")
        prune(folder, 3)
        assert sorted(x.name for x in folder.iterdir()) == [
            "000003.aside", "000005", "000006", "000007",
        ]  # fmt: skip
        prune(folder, 10)
        assert len(numbers(folder)) == 3

    def test_in_a_run(self, tmp_path: Path) -> None:
        agent = tiny("reinforce", "CartPole-v1", tmp_path / "long", checkpoints=100_000)
        agent.learn(14 * 2 * (KEEP + 8))
        kept_ones = numbers(tmp_path / "long" / "checkpoints")
        assert len(kept_ones) == KEEP
        assert int(kept_ones[-1]) == agent.training.iteration > KEEP

    def test_leftovers_go(self, folder: Path) -> None:
        kept(folder, 4)
        for name in (".tmp-1-000006", ".tmp-old-000001"):
            shutil.copytree(folder / "000004", folder / name)
        remove_leftovers(folder)
        assert [x.name for x in folder.iterdir()] == ["000004"]
        remove_leftovers(folder.parent / "nowhere")


class TestLock:
    def test_one_at_a_time(self, tmp_path: Path) -> None:
        held = RunLock(tmp_path)
        said = rf"{tmp_path} is in use by process {os.getpid()} on .+ since 20\d\d-.*--run-dir"
        with pytest.raises(RunDirectoryBusyError, match=said) as caught:
            RunLock(tmp_path)
        assert caught.value.exit_code == 6
        held.release()
        held.release()
        RunLock(tmp_path).release()

    def test_dies_with_its_process(self, tmp_path: Path) -> None:
        code = (
            "import os, sys; from pathlib import Path; from upslope.runs.lock import RunLock; "
            "lock = RunLock(Path(sys.argv[1])); os.kill(os.getpid(), 9)"
        )
        done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
        assert done.returncode == -9
        assert json.loads((tmp_path / ".lock").read_text())["pid"] != os.getpid()
        RunLock(tmp_path).release()

    @pytest.mark.parametrize("content", [b"[]"])
    def test_a_holder_without_a_name(self, content: bytes, tmp_path: Path) -> None:
        held = RunLock(tmp_path)
        (tmp_path / ".lock").write_bytes(content)
        with pytest.raises(RunDirectoryBusyError, match="in use by another process"):
            RunLock(tmp_path)
        held.release()

    def test_a_run_holds_it_from_its_making_to_its_end(self, tmp_path: Path) -> None:
        agent, path = tiny("ppo", "CartPole-v1", None), tmp_path / "held"
        directory = RunDirectory(path, agent, 40)
        with pytest.raises(RunDirectoryBusyError):
            RunLock(path)
        busy: list[bool] = []

        def look(event: Any) -> None:
            with pytest.raises(RunDirectoryBusyError):
                RunLock(path)
            busy.append(True)

        agent.train_to(40, [look], directory)
        assert len(busy) == 3
        RunLock(path).release()

    def test_a_failed_run_lets_go(self, tmp_path: Path) -> None:
        def burn(event: Any) -> None:
            raise RuntimeError("burnt")

        path = tmp_path / "burnt"
        with pytest.raises(RuntimeError, match="burnt"):
            tiny("ppo", "CartPole-v1", path).learn(40, callback=burn)
        RunLock(path).release()
