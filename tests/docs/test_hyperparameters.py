"""The table of hyperparameter names agrees with the installed libraries and with our configs."""

from __future__ import annotations

import dataclasses
import inspect
import re
from pathlib import Path
from typing import Any

import pytest
import sb3_contrib
import stable_baselines3
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.vec_env import VecNormalize

import upslope
from upslope.config import CONFIGS

PAGE = (Path(__file__).parent.parent.parent / "docs/hyperparameters.md").read_text(encoding="utf-8")
THEIRS = {
    "PPO": stable_baselines3.PPO,
    "A2C": stable_baselines3.A2C,
    "TRPO": sb3_contrib.TRPO,
}
SCOPES = {
    "learn": stable_baselines3.PPO.learn,
    "make_vec_env": make_vec_env,
    "VecNormalize": VecNormalize,
    "policy_kwargs": ActorCriticPolicy,
}
OURS = {f.name: f for config in CONFIGS.values() for f in dataclasses.fields(config)}

pytestmark = pytest.mark.parity


def arguments_of(function: Any) -> dict[str, Any]:
    return {name: p.default for name, p in inspect.signature(function).parameters.items()}


def table(start: str, end: str) -> list[dict[str, str]]:
    """Return the rows of the table between two comments, by heading."""
    lines = re.search(rf"<!-- {start} -->\n(.*?)<!-- {end} -->", PAGE, re.DOTALL)
    assert lines is not None, f"the page has no table {start}"
    cells = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in lines[1].splitlines()
    ]
    assert all(len(row) == len(cells[0]) for row in cells)
    return [dict(zip(cells[0], row, strict=True)) for row in cells[2:]]


NAMES = table("names", "/names")


def names(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


@pytest.mark.parametrize("row", NAMES, ids=lambda row: row["concept"])
def test_our_names_are_settings(row: dict[str, str]) -> None:
    assert names(row["Upslope"])
    for name in names(row["Upslope"]):
        if name == "learn(total_timesteps)":
            assert "total_timesteps" in arguments_of(upslope.PPO.learn)
        else:
            assert name in OURS


@pytest.mark.parametrize("row", NAMES, ids=lambda row: row["concept"])
def test_stable_baselines_names_are_arguments(row: dict[str, str]) -> None:
    known = {name for algorithm in THEIRS.values() for name in arguments_of(algorithm)}
    cell = row["Stable-Baselines3"]
    assert names(cell) or cell == "—"
    for name in names(cell):
        scoped = re.fullmatch(r"(\w+)\((\w+)\)", name)
        if scoped is None:
            assert name in known
        else:
            assert scoped[2] in arguments_of(SCOPES[scoped[1]])


def test_a_name_that_is_equal_in_both_is_not_left_out() -> None:
    known = {name for algorithm in THEIRS.values() for name in arguments_of(algorithm)}
    listed = {name for row in NAMES for name in names(row["Stable-Baselines3"])}
    assert {name for name in OURS if name in known} <= listed


def test_every_setting_of_ours_is_on_the_page() -> None:
    rest = re.search(r"Only here: (.*?)\n\n", PAGE, re.DOTALL)
    assert rest is not None
    listed = {name for row in NAMES for name in names(row["Upslope"])} | set(names(rest[1]))
    assert set(OURS) - listed == set()


def test_what_is_only_here_is_nowhere_else() -> None:
    rest = re.search(r"Only here: (.*?)\n\n", PAGE, re.DOTALL)
    assert rest is not None
    known = {name for algorithm in THEIRS.values() for name in arguments_of(algorithm)}
    assert not set(names(rest[1])) & known


def test_notes_exist() -> None:
    cited = {number for row in NAMES for number in re.findall(r"#n(\d+)", row["notes"])}
    assert cited == set(re.findall(r'<a id="n(\d+)"></a>', PAGE))


@pytest.mark.parametrize(("ours", "theirs"), [("ppo", "PPO"), ("a2c", "A2C"), ("trpo", "TRPO")])
def test_defaults(ours: str, theirs: str) -> None:
    fields = {f.name: f.default for f in dataclasses.fields(CONFIGS[ours])}
    arguments = arguments_of(THEIRS[theirs])
    rows = table(f"defaults {ours} {theirs}", "/defaults")
    column = "sb3-contrib" if theirs == "TRPO" else "Stable-Baselines3"
    for row in rows:
        (name,) = names(row["name here"])
        assert row["Upslope"] == str(fields[name]), name
        assert row[column] == str(arguments[name]), name
    shared = {
        name for name, field in OURS.items()
        if name in arguments and name in fields and field.metadata["group"] == "algorithm"
    }  # fmt: skip
    assert {names(row["name here"])[0] for row in rows} == shared


def test_the_factor_of_the_kl_limit_is_said() -> None:
    source = inspect.getsource(stable_baselines3.PPO.train)
    assert "> 1.5 * self.target_kl" in source
    assert "1.5 * target_kl" in PAGE
