"""A page per algorithm: quoted code is the source's, settings and metrics are those that ship."""

from __future__ import annotations

import ast
import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest

import upslope
from upslope.config import CONFIGS
from upslope.config.settings import plain

ROOT = Path(__file__).parents[2]
PAGES = ROOT / "docs" / "algorithms"
SOURCES = ROOT / "src" / "upslope" / "algorithms"
PARTS = [
    "## The idea", "## Equations", "## Pseudocode beside the code", "## Details", "## Settings",
    "## Metrics", "## When to use it", "## Sources",
]  # fmt: skip


def text_of(algorithm: str) -> str:
    return (PAGES / f"{algorithm}.md").read_text()


def section(algorithm: str, title: str) -> str:
    return text_of(algorithm).split(f"\n{title}\n")[1].split("\n## ")[0]


def setting_rows(algorithm: str) -> list[str]:
    """The lines of the page's table of settings, from their declarations."""
    rows = []
    for declared in dataclasses.fields(CONFIGS[algorithm]):
        rule = declared.metadata
        if rule["group"] == "algorithm":
            default = plain(declared.default)
            rows.append(f"| `{declared.name}` | {default} | {rule['doc']} | {rule['source']} |")
    return rows


@pytest.mark.parametrize("algorithm", CONFIGS)
def test_every_page_has_the_same_parts(algorithm: str) -> None:
    positions = [text_of(algorithm).find(f"\n{part}\n") for part in PARTS]
    assert -1 not in positions
    assert positions == sorted(positions)


@pytest.mark.parametrize("algorithm", CONFIGS)
def test_quoted_code_is_in_the_source(algorithm: str) -> None:
    """Each numbered line `n. words: `code`` quotes code of the page or of what it calls."""
    quotes = re.findall(
        r"^\| \d+ \|[^|]*\| `([^`]+)` \|$",
        section(algorithm, "## Pseudocode beside the code"),
        re.MULTILINE,
    )
    source = " ".join((SOURCES / f"{algorithm}.py").read_text().split())
    assert len(quotes) >= 4
    for quote in quotes:
        assert " ".join(quote.split()) in source, quote


@pytest.mark.parametrize("algorithm", CONFIGS)
def test_settings_are_those_of_the_config(algorithm: str) -> None:
    rows = [line for line in section(algorithm, "## Settings").splitlines() if "| `" in line]
    assert rows == setting_rows(algorithm)


@pytest.mark.parametrize("algorithm", CONFIGS)
def test_every_metric_is_in_the_glossary(algorithm: str) -> None:
    told = set(re.findall(r"^\| `train/([a-z_]+)` \|", section(algorithm, "## Metrics"), re.M))
    settings: dict[str, Any] = {"n_envs": 2, "net_arch": (8,), "norm_obs": True}
    settings |= {"baseline": "value"} if algorithm == "reinforce" else {"n_steps": 128}
    settings |= {"clip_range_vf": 0.2, "target_kl": 0.1} if algorithm == "ppo" else {}
    seen: set[str] = set()
    agent = getattr(upslope, algorithm.upper())("CartPole-v1", **settings)
    agent.training.plan(600)
    agent.training.snr_every = 1
    agent.learn(600, callback=lambda event: seen.update(event.metrics))
    assert told == {name.removeprefix("train/") for name in seen if name.startswith("train/")}


def test_one_line_of_code_lies_between_npg_and_trpo() -> None:
    """Names and docstrings apart, the two pages differ by ``must_improve=False``."""

    def statements(algorithm: str) -> list[str]:
        tree = ast.parse((SOURCES / f"{algorithm}.py").read_text())
        for node in ast.walk(tree):
            body = getattr(node, "body", None)
            if isinstance(body, list) and body and isinstance(body[0], ast.Expr):
                body.pop(0)  # the docstring
        code = ast.unparse(tree).replace("NPGConfig", "Config").replace("TRPOConfig", "Config")
        return code.splitlines()

    npg, trpo = statements("npg"), statements("trpo")
    pairs = [(a, b) for a, b in zip(npg, trpo, strict=True) if a != b]
    assert len(pairs) == 1
    assert pairs[0][0].replace(", must_improve=False", "") == pairs[0][1]
