"""A save that is killed at a system call, or that the disk refuses, loses nothing."""

from __future__ import annotations

import errno
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from saving import save_checkpoint, save_model

from upslope.runs.checkpoint import newest, numbers, remove_leftovers
from upslope.runs.durable import remove_temporaries
from upslope.runs.model_file import read_model

# Every call of a save that touches the disk; those of a machine that has them not never come.
CALLS = (
    "openat", "write", "fsync", "close", "rename", "renameat", "renameat2", "mkdir", "mkdirat",
    "unlink", "unlinkat", "rmdir",
)  # fmt: skip
MAKE = {"save_checkpoint": save_checkpoint, "save_model": save_model}


def before(folder: Path, do: str) -> None:
    """Put number 1 there."""
    folder.mkdir()
    MAKE[do](folder, 1)


def there(folder: Path, do: str) -> int:
    """The number of what is there and whole, by each of its parts."""
    if do == "save_model":
        numbers_found = set(read_model(folder / "model.safetensors")[1]["x"].tolist())
    else:
        found = newest(folder)
        policy = read_model(found.policy)[1]["x"]
        numbers_found = {*policy.tolist(), *found.moments()["x"].tolist(), found.state["number"]}
        assert found.number in numbers_found
    (number,) = numbers_found
    return int(number)


def cleaned(folder: Path) -> list[str]:
    """The names in a folder once the next start has removed what was left behind."""
    remove_leftovers(folder)
    remove_temporaries(folder)
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.usefixtures("strace")
@pytest.mark.parametrize("call", ["write", "fsync", "rename"])
def test_killed_at_some_system_calls(saver: Any, tmp_path: Path, call: str) -> None:
    for k in (1, 2):
        folder = tmp_path / str(k)
        before(folder, "save_checkpoint")
        assert saver.save("save_checkpoint", folder, f"{call}:signal=KILL:when={k}").code == -9
        number = there(folder, "save_checkpoint")
        assert number == 1
        assert "000001" in cleaned(folder)


@pytest.mark.slow
@pytest.mark.usefixtures("strace")
@pytest.mark.parametrize("do", MAKE)
@pytest.mark.parametrize("performed", [True, False], ids=["after", "instead-of"])
def test_killed_at_every_system_call(saver: Any, tmp_path: Path, do: str, performed: bool) -> None:
    seen, killed = set(), 0
    how = "signal=KILL" if performed else "error=EIO:signal=KILL"
    for call in CALLS:
        for k in range(1, 200):
            folder = tmp_path / f"{call}-{k}"
            before(folder, do)
            ended = saver.save(do, folder, f"{call}:{how}:when={k}")
            assert ended.code in (0, -9), (call, k, ended)
            number = there(folder, do)
            seen.add(number)
            expected = {"000001", "000002"} if do == "save_checkpoint" else {"model.safetensors"}
            assert set(cleaned(folder)) <= expected, (call, k)
            assert there(folder, do) == number
            shutil.rmtree(folder)
            if ended.code == 0:
                assert number == 2
                break
            killed += 1
        else:
            pytest.fail(f"a save makes more than 200 calls of {call}")
    assert seen == {1, 2}
    assert killed > (25 if do == "save_checkpoint" else 6)


@pytest.mark.slow
@pytest.mark.usefixtures("strace")
@pytest.mark.parametrize("do", MAKE)
@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO], ids=errno.errorcode.__getitem__)
def test_refused_from_every_system_call_on(saver: Any, tmp_path: Path, do: str, error: int) -> None:
    refused = 0
    for call in ("write", "fsync", "rename", "mkdir"):
        for k in range(1, 200):
            folder = tmp_path / f"{call}-{k}"
            before(folder, do)
            ended = saver.save(do, folder, f"{call}:error={errno.errorcode[error]}:when={k}+")
            assert ended.code in (0, 5), (call, k, ended)
            number = there(folder, do)
            if ended.code == 5:
                refused += 1
                if do == "save_model" and number == 2:  # whole, and only its folder not synced
                    assert "cannot be synced to disk" in ended.said
                else:
                    assert "bytes needed" in ended.said
                    assert " free" in ended.said
                if do == "save_checkpoint":
                    assert f"upslope resume {tmp_path}" in ended.said
            shutil.rmtree(folder)
            if ended.code == 0:
                assert number == 2
                break
            if call != "fsync":  # that of the folder comes after the rename
                assert number == 1
    assert refused > (10 if do == "save_checkpoint" else 2)


@pytest.mark.usefixtures("strace")
def test_one_refusal_is_tried_again(saver: Any, tmp_path: Path) -> None:
    for k in (1, 3, 6):
        folder = tmp_path / str(k)
        before(folder, "save_checkpoint")
        ended = saver.save("save_checkpoint", folder, f"write:error=ENOSPC:when={k}")
        assert ended.code == 0, ended
        assert there(folder, "save_checkpoint") == 2
        assert cleaned(folder) == ["000001", "000002"]


@pytest.mark.parametrize("do", MAKE)
def test_a_limit_on_the_size_of_files(saver: Any, tmp_path: Path, do: str) -> None:
    """What a quota does, without strace: a write stops in the middle of a file."""
    codes = []
    for limit in (0, 1, 7, 8, 100, 500, 1000, 1500, 2000, 5000, 100_000):
        folder = tmp_path / str(limit)
        before(folder, do)
        ended = saver.save(do, folder, limit=limit)
        codes.append(ended.code)
        assert there(folder, do) == (2 if ended.code == 0 else 1)
        if ended.code:
            assert "bytes needed" in ended.said
        names = {"000001", "000002"} if do == "save_checkpoint" else {"model.safetensors"}
        assert {path.name for path in folder.iterdir()} <= names
    assert codes[0] == 5
    assert codes[-1] == 0
    assert set(codes) == {0, 5}


@pytest.mark.slow
def test_ten_thousand_checkpoints(tmp_path: Path) -> None:
    """Memory and descriptors stay flat, and the newest is whole after each."""
    from upslope.runs.checkpoint import KEEP, prune

    shared = Path("/dev/shm")  # in memory, where there is such a place
    root = Path(tempfile.mkdtemp(dir=shared if shared.is_dir() else tmp_path))
    folder = root / "checkpoints"
    folder.mkdir()
    try:
        held: list[tuple[int, int]] = []
        for number in range(10_000):
            save_checkpoint(folder, number)
            prune(folder)
            assert len(numbers(folder)) == min(number + 1, KEEP)
            if number % 1000 == 999:
                assert newest(folder).number == number
                assert torch.equal(newest(folder).moments()["x"], torch.full((300,), float(number)))
                held.append((len(list(Path("/proc/self/fd").iterdir())), memory()))
        assert {descriptors for descriptors, _ in held} == {held[0][0]}
        assert held[-1][1] - held[1][1] < 4096  # kB
    finally:
        shutil.rmtree(root)


def memory() -> int:
    """What this process holds, in kB."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0])
