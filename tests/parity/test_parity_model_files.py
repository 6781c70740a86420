"""One crafted file, given to the loader of Stable-Baselines3 and to ours.

`python tests/parity/test_parity_model_files.py` prints what each makes of it.
"""

from __future__ import annotations

import base64
import json
import os
import pickle
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("stable_baselines3")

from stable_baselines3 import PPO

import upslope
from upslope.cli.main import main
from upslope.errors import ModelFileError

PAGE = Path(__file__).parent.parent.parent / "docs" / "model_file.md"
pytestmark = pytest.mark.parity


class Payload:
    """An object whose unpickling makes an empty file, and could do anything else."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mknod, (str(self.marker),)


def craft(path: Path, marker: Path) -> None:
    """Write a sound model of Stable-Baselines3 with one more field, which carries the payload."""
    PPO("MlpPolicy", "CartPole-v1", n_steps=16, batch_size=16, device="cpu").save(path)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    data = json.loads(members["data"])
    code = base64.b64encode(pickle.dumps(Payload(marker))).decode()
    data["note"] = {":type:": "<class 'str'>", ":serialized:": code}
    members["data"] = json.dumps(data).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def outcome(load: Callable[[Path], Any], path: Path, marker: Path) -> str:
    """Say whether a loader took the file, and whether the file's code ran."""
    marker.unlink(missing_ok=True)
    try:
        load(path)
        said = "loaded"
    except ModelFileError as error:
        said = f"refused (exit {error.exit_code}): {error}"
    ran = "the code in the file RAN" if marker.exists() else "no code ran"
    return f"{ran}; {said}"


def side_by_side(folder: Path) -> dict[str, str]:
    """Return what both loaders make of the same bytes."""
    path, marker = folder / "model.zip", folder / "marker"
    craft(path, marker)
    return {
        "stable_baselines3.PPO.load": outcome(lambda p: PPO.load(p, device="cpu"), path, marker),
        "upslope.load": outcome(upslope.load, path, marker),
        "upslope.PPO.load": outcome(upslope.PPO.load, path, marker),
    }


def test_the_same_file_given_to_both(tmp_path: Path) -> None:
    said = side_by_side(tmp_path)
    assert said["stable_baselines3.PPO.load"] == "the code in the file RAN; loaded"
    for ours in ("upslope.load", "upslope.PPO.load"):
        assert said[ours].startswith("no code ran; refused (exit 5): cannot read model file")
        assert "it is a zip archive, as Stable-Baselines3" in said[ours]


def test_the_command_line_refuses_it(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path, marker = tmp_path / "model.zip", tmp_path / "marker"
    craft(path, marker)
    for command in ("eval", "play"):
        assert main([command, str(path)]) == 5
        out, err = capfd.readouterr()
        assert (out, err.count("\n")) == ("", 1), command
        assert "Stable-Baselines3" in err
    assert not marker.exists()


def test_the_page_shows_what_is_printed(tmp_path: Path) -> None:
    page = PAGE.read_text(encoding="utf-8")
    for loader, said in side_by_side(tmp_path).items():
        assert f"{loader}: {said}".replace(str(tmp_path), "/tmp/crafted") in page


def show() -> None:
    """Print what both make of it."""
    with tempfile.TemporaryDirectory() as folder:
        for loader, said in side_by_side(Path(folder)).items():
            print(f"{loader}: {said}".replace(folder, "/tmp/crafted"))


if __name__ == "__main__":
    show()
