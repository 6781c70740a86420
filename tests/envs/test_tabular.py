"""Small processes as environments: what is played is what the tables say."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from scipy import stats

from upslope.envs.tabular import (
    MDP,
    TabularEnv,
    bandit,
    common_level,
    decision_chain,
    delayed_reward,
    gridworld,
    random_mdp,
    sentinel,
    two_state,
)

NAMED = [
    two_state(),
    delayed_reward(),
    sentinel(),
    gridworld(),
    common_level(2.0),
    bandit(1.0, 0.0, 0.5),
    decision_chain(),
    random_mdp(3, 2, 6, seed=1, termination=0.1),
]


@pytest.mark.parametrize("observe_time", [False, True])
@pytest.mark.parametrize("mdp", NAMED, ids=lambda mdp: mdp.name)
def test_is_a_proper_environment(mdp: MDP, observe_time: bool) -> None:
    check_env(TabularEnv(mdp, observe_time), skip_render_check=True)


def test_plays_its_tables() -> None:
    """Counts of (successor, goes on or ends) after each state and action, by a G-test each."""
    mdp = random_mdp(3, 2, None, seed=2, termination=0.3)
    env, rng = TabularEnv(mdp), np.random.default_rng(0)
    counts = np.zeros((3, 2, 3, 2))
    starts = np.zeros(3)
    obs, _ = env.reset(seed=5)
    starts[obs.argmax()] += 1
    for _ in range(20_000):
        state, action = int(obs.argmax()), int(rng.integers(2))
        obs, reward, terminated, truncated, _ = env.step(np.int64(action))
        arrival = int(obs.argmax())
        assert reward == float(mdp.rewards[state, action, arrival])
        assert not truncated
        counts[state, action, arrival, int(terminated)] += 1
        if terminated:
            obs, _ = env.reset()
            starts[obs.argmax()] += 1
    law = torch.stack([mdp.continuing, mdp.transitions * mdp.termination], -1).numpy()
    p_values = [
        stats.power_divergence(
            counts[s, a].ravel(), counts[s, a].sum() * law[s, a].ravel(), lambda_="log-likelihood"
        ).pvalue
        for s in range(3)
        for a in range(2)
    ]
    p_values.append(stats.chisquare(starts, starts.sum() * mdp.start.numpy()).pvalue)
    assert min(p_values) > 1e-4


@pytest.mark.parametrize("is_task", [True, False])
def test_the_limit_terminates_or_truncates(is_task: bool) -> None:
    mdp = random_mdp(2, 2, 3, seed=0).with_limit(3, is_task=is_task)
    env = TabularEnv(mdp, observe_time=True)
    obs, _ = env.reset(seed=0)
    assert obs[-1] == 0
    for t in (1, 2, 3):
        obs, _, terminated, truncated, _ = env.step(np.int64(0))
        assert obs[-1] == np.float32(t / 3)
        assert truncated == (t == 3 and not is_task)
        assert terminated == (t == 3 and is_task)


def test_an_episode_ends_in_an_ordinary_state() -> None:
    env = TabularEnv(bandit(2.0, 3.0))
    env.reset(seed=0)
    obs, reward, terminated, _, _ = env.step(np.int64(1))
    assert (reward, terminated) == (3.0, True)
    assert obs.tolist() == [1.0]


def test_wind_blows_up() -> None:
    mdp = gridworld(side=3, wind=0.2)
    right_from_the_middle = mdp.transitions[4, 3]
    assert right_from_the_middle[5] == pytest.approx(0.8)
    assert right_from_the_middle[2] == pytest.approx(0.2)
    into_the_corner = mdp.transitions[5, 1, 8]
    assert into_the_corner == pytest.approx(0.8)
    assert mdp.rewards[5, 1, 8] == pytest.approx(0.95)
    assert mdp.termination[5, 1, 8] == 1


def test_time_needs_a_horizon() -> None:
    with pytest.raises(ValueError, match="no horizon"):
        TabularEnv(random_mdp(2, 2, None, seed=0), observe_time=True)
