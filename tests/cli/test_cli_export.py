"""``upslope export``: what is typed, what is printed, what is left."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import nn

import upslope

Command = Callable[..., Any]
SMALL = {"n_envs": 2, "n_steps": 32, "batch_size": 32, "n_epochs": 1, "net_arch": (8,)}


@pytest.fixture
def run(here: Path) -> Path:
    """A run directory as far as export looks into it."""
    upslope.PPO("CartPole-v1", **SMALL).save(here / "run" / "model.safetensors")
    return here / "run"


def test_onnx_is_the_default(upslope_command: Command, run: Path) -> None:
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    done = upslope_command("export", run)
    assert done.err == ""
    lines = done.out.splitlines()
    assert lines[0].startswith(f"onnx     {run}/model.onnx (")
    assert "checked against this library, largest gap" in lines[1]
    assert lines[2:] == [
        "inputs   obs float32[batch, 4]",
        "outputs  action int64[batch]",
        "         logits float32[batch, 2]",
        "         value float32[batch]",
    ]
    assert (run / "model.onnx").stat().st_size > 1000


def test_the_name_says_the_format(upslope_command: Command, run: Path, here: Path) -> None:
    for arguments, path in (
        (["--out=made/policy.pt2"], here / "made" / "policy.pt2"),
        (["--format=torch"], run / "model.pt2"),
        (["--format=torch", "--out=bare"], here / "bare"),
    ):
        said = upslope_command("export", run / "model.safetensors", *arguments).out
        assert said.startswith("torch ")
        assert path.read_bytes()[:2] == b"PK"


def test_masks_of_an_environment(upslope_command: Command, here: Path) -> None:
    (here / "mine.py").write_text(
        "import gymnasium as gym, numpy as np\n"
        "class Masked(gym.Wrapper):\n"
        "    def action_masks(self): return np.array([True, False])\n"
        "def make_env(**more): return Masked(gym.make('CartPole-v1', **more))\n"
    )
    upslope.PPO("mine.py:make_env", **SMALL).save("m.safetensors")
    arguments = ["export", "m.safetensors", "--format=torch"]
    said = upslope_command(*arguments).out
    assert "no action_mask: the environment is unknown" in said
    for more in (["--env", "mine.py:make_env"], ["--action-mask"]):
        assert "         action_mask bool[batch, 2]" in upslope_command(*arguments, *more).out


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["nowhere"], 2, "nowhere is no run directory"),
        (["run", "--format=onx"], 2, "did you mean 'onnx'"),
        (["run", "--out=p.pt2", "--format=onnx"], 2, "give --format torch"),
        (["run", "--out=run"], 2, "is a directory"),
        (["run", "--out=run/model.safetensors"], 2, "is the model itself"),
        (["run", "--format=torch", "--out=run/model.safetensors/x.pt2"], 5, "cannot write torch"),
        (["run", "--env=CartPol-v1"], 2, "did you mean CartPole-v1"),
        (["run", "--card", "--format=onnx"], 2, "has no --format"),
    ],
)
def test_what_cannot_be(
    upslope_command: Command, run: Path, arguments: list[str], code: int, said: str
) -> None:
    error = upslope_command("export", *arguments, code=code).err
    assert said in error
    assert error.count("\n") == 1
    assert [file.name for file in run.iterdir()] == ["model.safetensors"]


def test_features_of_the_users_own(upslope_command: Command, here: Path) -> None:
    agent = upslope.PPO("CartPole-v1", policy=lambda space: nn.Linear(4, 3), **SMALL)
    agent.save("m.safetensors")
    error = upslope_command("export", "m.safetensors", code=2).err
    assert "upslope.export.export_model(..., policy=...)" in error
    assert error.count("\n") == 1


def test_a_damaged_model(upslope_command: Command, run: Path) -> None:
    (run / "model.safetensors").write_bytes(b"no model")
    assert "cannot read model file" in upslope_command("export", run, code=5).err


def test_a_card(upslope_command: Command, run: Path, here: Path) -> None:
    assert upslope_command("export", run, "--card").out == f"card     {run}/README.md\n"
    assert (run / "README.md").read_text().startswith('---\nlibrary_name: "upslope"\n')
    upslope_command("export", run, "--card", "--out=CARD.md")
    assert (here / "CARD.md").read_text() == (run / "README.md").read_text()


def test_help_needs_no_torch(upslope_process: Callable[..., Any], here: Path) -> None:
    process = upslope_process("export", "--help")
    assert "--format {onnx,torch}" in process.communicate(timeout=60)[0]
    assert "torch" not in _imported_by("upslope.cli.export")


def _imported_by(module: str) -> set[str]:
    import subprocess

    code = f"import sys, {module}; print(*{{name.partition('.')[0] for name in sys.modules}})"
    asked = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(asked.stdout.split())
