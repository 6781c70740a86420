"""A run that is killed at any moment and resumed ends as the undisturbed one, to the bit."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from upslope.runs.model_file import read_model, write_model

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="moments are read from /proc")
SETTINGS = {
    "CartPole PPO": (),
    "CartPole PPO, normalised, evaluated": (),
    "Pendulum A2C": (),
    "Pendulum A2C, normalised, evaluated": (),
    "CartPole PPO, native": (),
    "CartPole PPO, EnvPool": (pytest.mark.envpool,),
}


def killed(suites: Any, known: Any, folder: Path, setting: str, trials: range) -> None:
    for number in trials:
        trial = folder / str(number)
        trial.mkdir()
        found = suites.trial(known(setting), trial, setting, number)
        assert found["failure"] == "", found
        assert int(found["kills"]) >= 1


def test_a_few(suites: Any, known: Any, tmp_path: Path) -> None:
    killed(suites, known, tmp_path, "CartPole PPO", range(1000, 1002))


@pytest.mark.slow
@pytest.mark.parametrize(
    "setting", [pytest.param(name, marks=marks) for name, marks in SETTINGS.items()]
)
def test_more(suites: Any, known: Any, tmp_path: Path, setting: str) -> None:
    if "EnvPool" in setting:
        pytest.importorskip("envpool")
    killed(suites, known, tmp_path, setting, range(2000, 2006))


def test_a_difference_is_seen(suites: Any, known: Any, tmp_path: Path) -> None:
    """The comparison itself: one bit of one weight, a row lost, a file left behind."""
    expected = known("CartPole PPO").folder
    found = Path(shutil.copytree(expected, tmp_path / "found"))
    assert suites.difference(expected, found) == ""
    header, tensors = read_model(found / "model.safetensors")
    name = next(name for name, x in tensors.items() if x.dtype == torch.float32 and x.numel() > 8)
    tensors[name].view(-1).view(torch.int32)[3] ^= 1
    write_model(found / "model.safetensors", header, tensors)
    assert suites.difference(expected, found) == f"model.safetensors: {name}"
    shutil.copy(expected / "model.safetensors", found)
    rows = (found / "progress.csv").read_text().splitlines(keepends=True)
    (found / "progress.csv").write_text("".join(rows[:-2] + rows[-1:]))
    assert "rows instead of" in suites.difference(expected, found)
    (found / "progress.csv").write_text("".join([*rows, rows[-1]]))
    assert "rows instead of" in suites.difference(expected, found)
    shutil.copy(expected / "progress.csv", found)
    (found / ".0123.upslope-tmp").touch()
    assert "left behind" in suites.difference(expected, found)
