"""Streams keyed by name and number: stable, independent of order, apart from global state."""

from __future__ import annotations

import random
from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from upslope.seeding import MAX_SEED, SeedTree

KEYS = [("episode", 0), ("episode", 1), ("episode", 17), ("actions", 0), ("actions",), ("idle",)]


def draw(tree: SeedTree, *key: object) -> list[float]:
    return tree.generator(*key).random(4).tolist()  # type: ignore[arg-type]


def test_a_key_always_gives_the_same_stream() -> None:
    forwards = [draw(SeedTree(3), *key) for key in KEYS]
    tree = SeedTree(3)
    backwards = []
    for key in reversed(KEYS):
        tree.integer("newcomer", len(backwards))
        tree.torch_generator("another")
        backwards.append(draw(tree, *key))
    assert backwards[::-1] == forwards
    assert draw(tree, *KEYS[0]) == forwards[0]


def test_streams_are_those_of_every_version() -> None:
    """Pinned: a change would silently move every recorded run."""
    tree = SeedTree(7)
    assert tree.integer("episode", 17) == 137988696
    assert tree.integer("minibatches") == 1821428362
    assert tree.generator("episode", 17).integers(1000, size=3).tolist() == [451, 697, 900]


def test_every_key_and_every_seed_has_its_own_stream() -> None:
    streams = [draw(SeedTree(seed), *key) for seed in (0, 1, 2**31 - 1, 2**40) for key in KEYS]
    assert all(a != b for a, b in combinations(streams, 2))
    assert len({SeedTree(0).integer("episode", i) for i in range(2000)}) == 2000


def test_streams_look_independent() -> None:
    """Neighbouring episodes, seeds and names: no correlation, and uniform across streams."""
    first = np.array([SeedTree(5).generator("episode", i).random(200) for i in range(60)])
    others = np.array([SeedTree(6).generator("episode", i).random(200) for i in range(60)])
    correlation = np.corrcoef(np.concatenate([first, others]))
    assert abs(correlation - np.eye(120)).max() < 5 / np.sqrt(200)
    assert stats.kstest(first[:, 0], "uniform").pvalue > 1e-3
    integers = [SeedTree(5).integer("episode", i) / 2**31 for i in range(1000)]
    assert stats.kstest(integers, "uniform").pvalue > 1e-3


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**64), st.text(max_size=8), st.lists(st.integers(0, 2**32 - 1), max_size=3))
def test_integers_are_seeds_that_every_engine_takes(
    seed: int, name: str, numbers: list[int]
) -> None:
    tree = SeedTree(seed)
    value = tree.integer(name, *numbers)
    assert isinstance(value, int)
    assert 0 <= value <= MAX_SEED == 2**31 - 1
    assert tree.integer(name, *numbers) == value
    assert tree.torch_generator(name, *numbers).initial_seed() == value


def test_torch_streams_are_keyed_too() -> None:
    tree = SeedTree(3)
    first, again, other = (
        torch.randn(5, generator=tree.torch_generator(name))
        for name in ("actor", "actor", "critic")
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_the_global_generators_are_neither_read_nor_written() -> None:
    def state() -> tuple[object, str, list[int]]:
        legacy = np.random.get_state()  # noqa: NPY002
        return random.getstate(), repr(legacy), torch.get_rng_state().tolist()

    def everything() -> list[object]:
        tree = SeedTree(3)
        streams = [draw(tree, *key) for key in KEYS]
        return [*streams, tree.integer("a"), tree.torch_generator("b").initial_seed()]

    before = state()
    drawn = everything()
    assert state() == before
    torch.rand(1)
    random.random()
    np.random.random()  # noqa: NPY002
    assert everything() == drawn


def test_a_negative_seed_is_refused() -> None:
    with pytest.raises(ValueError, match="non-negative"):
        SeedTree(-1).integer("episode", 0)
