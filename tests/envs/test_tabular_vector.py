"""The vector form of small processes plays what the plain form plays."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from upslope.envs.engines import VectorEngine
from upslope.envs.find import find_environment
from upslope.envs.make import make_environments
from upslope.envs.probe import check_contract
from upslope.envs.tabular import MDP, random_mdp, sentinel
from upslope.envs.tabular_vector import TabularVectorEnv
from upslope.policies.actor_critic import ActorCritic
from upslope.rollout import collect, evaluate_rollout

MDPS = [
    random_mdp(3, 2, 6, seed=1, termination=0.1),
    sentinel(4).with_limit(4, is_task=False),
    random_mdp(4, 3, None, seed=2, termination=0.3),
]


@pytest.mark.parametrize("mdp", MDPS, ids=lambda mdp: mdp.name)
def test_is_a_vector_that_keeps_its_word(mdp: MDP) -> None:
    env = TabularVectorEnv(mdp, 5)
    engine = VectorEngine(lambda seeds: env, name="vector")
    found = check_contract(engine, np.random.default_rng(0))
    assert "DISABLED with reset_mask seen" in found or "no episode" not in found
    obs, _ = env.reset(seed=3)
    assert obs.shape == (5, mdp.n_states)
    assert (obs.sum(1) == 1).all()
    again, _ = env.reset(seed=3)
    np.testing.assert_array_equal(obs, again)


@pytest.mark.parametrize("mdp", MDPS, ids=lambda mdp: mdp.name)
def test_collected_transitions_have_the_law_of_the_tables(mdp: MDP) -> None:
    """G-test of (successor, goes on or ends) after each state and action, and of the starts."""
    envs = make_environments(find_environment(TabularVectorEnv(mdp, 64)), seed=4)
    policy = ActorCritic(envs.observation_space, envs.action_space, net_arch=(), dtype="float64")
    with torch.no_grad():
        policy.critic_head.weight.copy_(torch.arange(mdp.n_states, dtype=torch.float64)[None])
        policy.critic_head.bias.zero_()
    rollout = collect(envs, policy, n_episodes=4000)
    evaluated = evaluate_rollout(policy, rollout)
    valid = rollout.valid
    s = evaluated.values.round().long()[valid].numpy()
    arrival = evaluated.next_values.round().long()[valid].numpy()
    a = rollout.actions[valid].numpy()
    step = rollout.episode_step[valid].numpy()
    limited = step == (mdp.horizon or 10**9) - 1
    ended = rollout.terminated[valid].numpy()
    np.testing.assert_array_equal(
        rollout.rewards[valid].numpy(), mdp.rewards.numpy()[s, a, arrival]
    )
    np.testing.assert_array_equal(
        rollout.truncated[valid].numpy(), limited & (not mdp.limit_is_task)
    )
    if mdp.limit_is_task:
        assert ended[limited].all()
    inside = ~limited
    counts = np.zeros((mdp.n_states, mdp.n_actions, mdp.n_states, 2))
    np.add.at(counts, (s[inside], a[inside], arrival[inside], ended[inside].astype(int)), 1)
    law = torch.stack([mdp.continuing, mdp.transitions * mdp.termination], -1).numpy()
    p_values = []
    for i in range(mdp.n_states):
        for j in range(mdp.n_actions):
            possible = law[i, j].ravel() > 0
            seen = counts[i, j].ravel()
            assert seen[~possible].sum() == 0
            if possible.sum() > 1:
                expected = seen.sum() * law[i, j].ravel()[possible]
                p_values.append(
                    stats.power_divergence(
                        seen[possible], expected, lambda_="log-likelihood"
                    ).pvalue
                )
    starts = np.bincount(s[step == 0], minlength=mdp.n_states)
    p_values.append(stats.chisquare(starts, starts.sum() * mdp.start.numpy()).pvalue)
    assert min(p_values) > 1e-4


def test_a_copy_outside_the_mask_goes_on() -> None:
    env = TabularVectorEnv(MDPS[0], 4)
    env.reset(seed=0)
    before, *_ = env.step(np.zeros(4, dtype=np.int64))
    mask = np.array([True, False, True, False])
    after, _ = env.reset(options={"reset_mask": mask})
    np.testing.assert_array_equal(before[~mask], after[~mask])
    assert env._steps.tolist() == [0, 1, 0, 1]
