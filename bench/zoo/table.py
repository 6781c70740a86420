"""Train every entry of the RL Zoo for Gymnasium's own environments for two iterations.

The table of docs/migration.md is written from it. The files are those of the installed rl_zoo3:

    python bench/zoo/table.py [WORD]        # with a word: print the rows that contain it
"""

from __future__ import annotations

import importlib.util
import logging
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import yaml

from upslope.agent import AGENTS
from upslope.cli.settings_file import settings_from_file
from upslope.config.zoo import read_zoo
from upslope.errors import UpslopeError

PAGE = Path(__file__).parents[2] / "docs" / "migration.md"
ALGORITHMS = ("ppo", "a2c", "trpo")
PACKAGES = ("classic_control", "box2d", "mujoco")  # of gymnasium.envs


class Entry(NamedTuple):
    """An entry of one of the zoo's files and the id it is trained on."""

    algorithm: str
    key: str
    env_id: str
    path: Path

    @property
    def name(self) -> str:
        return f"{self.algorithm} {self.key}"


def main(word: str = "") -> None:
    """Print a row at a time, and write the page if the rows are all there are."""
    logging.getLogger("upslope").setLevel(logging.ERROR)  # the sentences stand in the table
    rows = []
    for entry in of_gymnasium():
        if word in entry.name:
            rows.append(row(entry, two_iterations(entry)))
            print(rows[-1], flush=True)
    if not word:
        head = ["| file | entry | trained on | two iterations |", "| --- | --- | --- | --- |"]
        table = "\n".join([*head, *rows])
        page = PAGE.read_text(encoding="utf-8")
        marked = r"(<!-- zoo -->\n).*?(\n<!-- /zoo -->)"
        PAGE.write_text(
            re.sub(marked, lambda m: m[1] + table + m[2], page, flags=re.DOTALL), encoding="utf-8"
        )


def all_entries() -> Iterator[Entry]:
    """Every entry of the three files but ``default``, which names no environment."""
    spec = importlib.util.find_spec("rl_zoo3")  # found, not imported
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("rl_zoo3 is not installed: run pip install rl_zoo3")
    for algorithm in ALGORITHMS:
        path = Path(spec.origin).parent / "hyperparams" / f"{algorithm}.yml"
        for key in yaml.safe_load(path.read_text(encoding="utf-8")):
            if key != "default":
                yield Entry(algorithm, key, today(key), path)


def of_gymnasium() -> Iterator[Entry]:
    """The entries for classic control, Box2D and MuJoCo."""
    for entry in all_entries():
        spec = gym.registry.get(entry.env_id)
        if spec is not None and str(spec.entry_point).startswith(
            tuple(f"gymnasium.envs.{package}" for package in PACKAGES)
        ):
            yield entry


def today(key: str) -> str:
    """The newest registered version of an entry's id, or a game for ``atari``."""
    if key == "atari":
        return "ALE/Pong-v5"
    stem = key.rpartition("-v")[0]
    versions = [known for known in gym.registry if known.rpartition("-v")[0] == stem]
    return max([key, *versions], key=lambda known: int(known.rpartition("-v")[2]))


def two_iterations(entry: Entry) -> str:
    """Train with the entry's own plan, stop after two iterations, and say what came of it."""
    try:
        file = settings_from_file(str(entry.path), entry.algorithm, entry.env_id, {})
        assert file.total_timesteps is not None
        agent = AGENTS[entry.algorithm](file.env, **file.settings)
        seen: list[Any] = []
        agent.learn(file.total_timesteps, lambda event: seen.append(event) or len(seen) < 2)
        agent.close()
    except UpslopeError as error:
        return f"no: {error}"
    finite = all(value == value for event in seen for value in event.metrics.values())
    return "trained" if len(seen) == 2 and finite else "failed"


def row(entry: Entry, outcome: str) -> str:
    """One line of the table: what came of the entry, and the sentences said on the way."""
    said = "; ".join([outcome, *differences(entry)])
    said = re.sub(r"[\w]+(\.[\w]+){2,}", r"`\g<0>`", said)  # long names, where a line may break
    return f"| {entry.path.name} | {entry.key} | {entry.env_id} | {said} |"


def differences(entry: Entry) -> list[str]:
    """The sentences on the entry, each without the entry's name, which stands beside it."""
    text = entry.path.read_text(encoding="utf-8")
    try:
        notes = read_zoo(text, entry.path.name, entry.algorithm, entry.env_id).notes
    except UpslopeError:
        return []  # the outcome says why
    where = f"{entry.key} in {entry.path.name}: "
    return [note.removeprefix(where) for note in notes if note.startswith(where)]


if __name__ == "__main__":
    main(*sys.argv[1:2])
