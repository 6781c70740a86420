"""The examples do what their first lines say."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import numpy as np
import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"


def train_of(name: str) -> Callable[..., list[float]]:
    spec = spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.train


@pytest.mark.parametrize(("name", "lines"), [("simplest_policy_gradient", 40), ("custom_loop", 60)])
def test_are_short(name: str, lines: int) -> None:
    assert len((EXAMPLES / f"{name}.py").read_text().splitlines()) <= lines


def test_simplest_is_plain_pytorch() -> None:
    text = (EXAMPLES / "simplest_policy_gradient.py").read_text()
    assert "upslope" not in text
    for word in ("Categorical", "log_prob", "backward()", "step()"):
        assert word in text


def test_simplest_learns(capsys: pytest.CaptureFixture[str]) -> None:
    means = train_of("simplest_policy_gradient")(batches=20, steps_per_batch=600)
    assert len(means) == 20
    assert np.mean(means[:3]) < 40
    assert np.mean(means[-3:]) > 60
    assert "average return" in capsys.readouterr().out


def test_custom_loop_learns(capsys: pytest.CaptureFixture[str]) -> None:
    averages = train_of("custom_loop")(iterations=120)
    assert np.mean(averages[:5]) < 40
    assert np.mean(averages[-10:]) > 80
    assert "return" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "best"), [("simplest_policy_gradient", 300), ("custom_loop", 300)]
)
def test_in_full(name: str, best: float) -> None:
    assert max(train_of(name)()) > best


@pytest.mark.slow
def test_as_a_script(tmp_path: Path) -> None:
    command = [sys.executable, str(EXAMPLES / "custom_loop.py")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=True)
    assert "300: return" in done.stdout
    assert list(tmp_path.iterdir()) == []
