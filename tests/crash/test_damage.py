"""A damaged checkpoint is never taken for a whole one, and never silently passed over."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
from saving import save_checkpoint

import upslope
from upslope.cli.main import main
from upslope.errors import ModelFileError
from upslope.runs.checkpoint import FORMAT, _sealed, newest, numbers, prune, read_checkpoint


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two checkpoints."""
    made = tmp_path / "run" / "checkpoints"
    made.mkdir(parents=True)
    for number in (1, 2):
        save_checkpoint(made, number)
    return made


def files(checkpoint: Path) -> list[Path]:
    return sorted(checkpoint.iterdir())


@pytest.mark.parametrize("flip", [0xFF, 0x01, 0x20], ids=hex)
def test_every_byte(folder: Path, flip: int) -> None:
    """All three files and the manifest, byte by byte."""
    checkpoint, tried = folder / "000002", 0
    read_checkpoint(checkpoint)
    for path in files(checkpoint):
        whole = path.read_bytes()
        with path.open("r+b") as file:
            for at in range(len(whole)):
                file.seek(at)
                file.write(bytes([whole[at] ^ flip]))
                file.flush()
                with pytest.raises(ModelFileError):
                    read_checkpoint(checkpoint)
                file.seek(at)
                file.write(whole[at : at + 1])
                file.flush()
                tried += 1
    read_checkpoint(checkpoint)
    assert tried > 3000


@pytest.mark.parametrize("name", ["manifest.json", "state.json", "model.safetensors",
                                  "optim.safetensors"])  # fmt: skip
@pytest.mark.parametrize("how", ["cut", "longer", "empty", "missing", "a directory"])
def test_the_one_before_is_taken_with_a_warning(
    folder: Path, name: str, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = folder / "000002" / name
    whole = path.read_bytes()
    path.unlink()
    if how == "a directory":
        path.mkdir()
    elif how != "missing":
        path.write_bytes({"cut": whole[:-1], "longer": whole + b"\n", "empty": b""}[how])
    with caplog.at_level(logging.WARNING, "upslope"):
        assert newest(folder).number == 1
    (said,) = [record.getMessage() for record in caplog.records]
    assert f"checkpoint {folder / '000002'} is damaged" in said
    assert "the one before it is looked at" in said


def test_both_hashes_are_named(folder: Path) -> None:
    path = folder / "000002" / "optim.safetensors"
    data = bytearray(path.read_bytes())
    expected = json.loads((folder / "000002" / "manifest.json").read_text())["files"][path.name][1]
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(ModelFileError, match=f"{path.name} has SHA-256 [0-9a-f]{{64}}, .*") as told:
        read_checkpoint(folder / "000002")
    assert expected in str(told.value)


def test_empty_directories_are_none(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    (folder / "000003").mkdir()
    (folder / "000004").write_text("a file")
    (folder / "notes").mkdir()
    assert newest(folder).number == 1 + 1
    assert len(caplog.records) == 2


def test_none_left(folder: Path) -> None:
    for name in numbers(folder):
        (folder / name / "state.json").write_text("{}")
    with pytest.raises(ModelFileError, match=r"holds no checkpoint that is whole.*command.txt"):
        newest(folder)


def test_a_newer_format_is_not_passed_over(folder: Path) -> None:
    path = folder / "000002" / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["sha256"]
    manifest |= {"format": FORMAT + 1, "versions": {"upslope": "9.9.9"}}
    path.write_bytes(_sealed(manifest))
    expected = rf"was written by upslope 9\.9\.9, this is {upslope.__version__}: update it"
    with pytest.raises(ModelFileError, match=expected):
        newest(folder)


def test_pruning_leaves_the_only_whole_one(folder: Path) -> None:
    """The one just written is the newest, so damage to all the others cannot cost it."""
    for number in range(3, 25):
        save_checkpoint(folder, number)
    for name in numbers(folder)[:-1]:
        (folder / name / "manifest.json").unlink()
    prune(folder)
    assert newest(folder).number == 24
    prune(folder, keep=1)
    assert numbers(folder) == ["000024"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("damage") / "run"
    agent = upslope.A2C("CartPole-v1", preset="none", n_envs=2, n_steps=8, net_arch=(8,),
                        max_episode_steps=16, checkpoints=4, run_dir=run)  # fmt: skip
    agent.learn(160)
    agent.close()
    return run


class TestResume:
    """What ``upslope resume`` says and does."""

    @pytest.fixture
    def run(self, whole: Path, tmp_path: Path) -> Path:
        return Path(shutil.copytree(whole, tmp_path / "run"))

    def test_falls_back_with_a_warning(self, run: Path, caplog: pytest.LogCaptureFixture) -> None:
        last = numbers(run / "checkpoints")[-1]
        (run / "checkpoints" / last / "model.safetensors").unlink()
        assert main(["resume", str(run), "--quiet"]) == 0
        (said,) = [x.getMessage() for x in caplog.records if "damaged" in x.getMessage()]
        assert f"checkpoint {run / 'checkpoints' / last} is damaged" in said
        assert newest(run / "checkpoints").number == int(last)
        assert (run / "checkpoints" / f"{last}.aside").is_dir()

    def test_all_damaged_is_exit_5(self, run: Path, capfd: Any) -> None:
        for name in numbers(run / "checkpoints"):
            (run / "checkpoints" / name / "manifest.json").write_bytes(b"\0")
        before = (run / "progress.csv").read_bytes()
        assert main(["resume", str(run)]) == 5
        assert "holds no checkpoint that is whole" in capfd.readouterr().err
        assert (run / "progress.csv").read_bytes() == before
