"""``upslope lab estimators`` as a user types it."""

from __future__ import annotations

import csv
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from upslope.cli.main import main

KEYS = {"mdp", "name", "target", "relative_bias", "relative_bias_ci", "exact_relative_bias"}
KEYS |= {"variance", "exact_variance", "mse", "cosine", "snr", "predicted_unbiased", "verdict"}
SMALL = ["lab", "estimators", "--mdp", "sentinel", "--batches", "60"]


def test_json_is_one_object_with_every_key(capsys: Any) -> None:
    assert main([*SMALL, "--json"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    rows = json.loads(out)["estimators"]
    assert len(rows) >= 14
    for row in rows:
        assert set(row) >= KEYS
        assert row["target"] in ("finite", "discounted", "undiscounted-weights")
        assert row["verdict"] in ("unbiased", "biased", "undecided")
        low, high = row["relative_bias_ci"]
        assert low <= row["relative_bias"] <= high
    assert len({row["name"] for row in rows}) == len(rows)


def test_files_and_text(tmp_path: Path, capsys: Any) -> None:
    assert main([*SMALL, "--out", str(tmp_path / "new" / "folder")]) == 0
    said = capsys.readouterr().out
    assert "estimators measured" in said
    assert "reward-to-go - V" in said
    folder = tmp_path / "new" / "folder"
    written = json.loads((folder / "estimators.json").read_text())["estimators"]
    with (folder / "estimators.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == [row["name"] for row in written]
    assert float(rows[0]["variance"]) == written[0]["variance"]
    assert (folder / "estimators.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--mdp", "sentinal"], "did you mean 'sentinel'"),
        (["--batches", "3"], "not a whole number >= 60"),
        (["--jobs", "0"], "not a whole number >= 1"),
        (["--mpd", "sentinel"], "did you mean '--mdp'"),
    ],
)
def test_bad_input_is_one_sentence(arguments: list[str], said: str, capsys: Any) -> None:
    assert main(["lab", "estimators", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert said in err
    assert err.count("\n") == 1


def test_a_folder_that_cannot_be_made(tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "file").write_text("")
    assert main([*SMALL, "--out", str(tmp_path / "file" / "below")]) == 2
    assert "cannot be made" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["lab"], ["lab", "--help"]])
def test_help_lists_the_commands(arguments: list[str], capsys: Any) -> None:
    assert main(arguments) == 0
    said = capsys.readouterr().out
    assert all(name in said for name in ("estimators", "gradient", "ladder"))


def test_an_unknown_command_of_the_lab(capsys: Any) -> None:
    assert main(["lab", "estimator"]) == 2
    assert "did you mean 'estimators'" in capsys.readouterr().err


def test_ctrl_c_ends_the_processes_too() -> None:
    command = [sys.executable, "-m", "upslope", "lab", "estimators", "--batches", "5000"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and len(members_of(process.pid)) < 3:
        time.sleep(0.1)
    time.sleep(0.5)
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert out == ""
    assert err.strip().splitlines()[-1] == "upslope: interrupted"
    assert "Traceback" not in err
    deadline = time.monotonic() + 5  # multiprocessing's own helper sees the pipe close, and goes
    while members_of(process.pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not members_of(process.pid)


def members_of(group: int) -> list[int]:
    """Living processes of a process group."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[2]) == group and fields[0] != "Z":
                found.append(int(entry.name))
    return found


def test_a_missing_extra_is_said_before_anything_is_measured(
    tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "matplotlib" else real(name)
    )
    monkeypatch.setattr("upslope.lab.study.study_all", None)  # nothing is called
    assert main([*SMALL, "--out", str(tmp_path)]) == 2
    assert "pip install 'upslope[plots]'" in capsys.readouterr().err
