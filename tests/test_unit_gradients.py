"""The gradient of a unit is that of its own rows, whatever else its environments played."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from upslope.envs.find import find_environment
from upslope.envs.make import make_environments
from upslope.envs.tabular import TabularEnv, sentinel
from upslope.policies.actor_critic import ActorCritic
from upslope.policies.memory import Past
from upslope.rollout import Rollout, collect, evaluate_rollout
from upslope.trees import take
from upslope.unit_gradients import episode_units, pseudo_loss, unit_gradients


def played(memory: str) -> tuple[ActorCritic, Rollout, Any]:
    """Twelve episodes in two environments: several in each column."""
    envs = make_environments(
        find_environment(lambda: TabularEnv(sentinel(4))), n_envs=2, seed=3, vec="sync"
    )
    policy = ActorCritic(
        envs.observation_space, envs.action_space, seed=1, net_arch=(4,), memory=memory,
        memory_size=3, ortho_init=False, dtype="float64",
    )  # fmt: skip
    rollout = collect(envs, policy, n_episodes=12)
    return policy, rollout, evaluate_rollout(policy, rollout)


def alone(policy: ActorCritic, rollout: Rollout, inputs: Tensor, w: Tensor, number: int) -> Tensor:
    """Gradient of sum log pi w of one episode, run by itself from a blank memory."""
    t, b = (rollout.valid & (rollout.episode == number)).nonzero(as_tuple=True)
    past = None
    if policy.has_memory:
        past = Past(torch.arange(len(t)) == 0, policy.blank_state(1))
    log_prob = policy.distribution_of(inputs[t, b], past).log_prob(rollout.actions[t, b])
    parameters = [policy.get_parameter(name) for name in policy.part_names("actor")]
    pieces = torch.autograd.grad((log_prob * w[t, b]).sum(), parameters)
    return torch.cat([piece.flatten() for piece in pieces])


@pytest.mark.parametrize("memory", ["none", "gru", "lstm"])
def test_each_episode_is_as_if_it_had_been_played_alone(memory: str) -> None:
    policy, rollout, evaluated = played(memory)
    w = torch.randn(rollout.valid.shape, generator=torch.Generator().manual_seed(0)).double()
    units = episode_units(rollout)
    held = [(rollout.valid[:, i] & (units[:, i] >= 0)).sum() for i in range(2)]
    assert min(held) > 8  # a column holds several episodes
    found = unit_gradients(policy, rollout, evaluated, {"g": pseudo_loss("w")}, {"w": w}, units)
    numbers = rollout.episode[rollout.valid].unique().tolist()
    wanted = [alone(policy, rollout, evaluated.inputs, w, number) for number in numbers]
    torch.testing.assert_close(found["g"], torch.stack(wanted), rtol=0, atol=1e-12)


@pytest.mark.parametrize("memory", ["none", "gru"])
def test_rows_of_no_unit_are_left_out_and_units_add_up(memory: str) -> None:
    policy, rollout, evaluated = played(memory)
    w = take(evaluated.values, slice(None)) + 1
    one, three = episode_units(rollout), episode_units(rollout, 3)
    losses, columns = {"g": pseudo_loss("w")}, {"w": w}
    each = unit_gradients(policy, rollout, evaluated, losses, columns, one)["g"]
    groups = unit_gradients(policy, rollout, evaluated, losses, columns, three)["g"]
    torch.testing.assert_close(groups, each.view(4, 3, -1).sum(1), rtol=0, atol=1e-12)
    some = torch.where(one < 5, one, -1)
    kept = unit_gradients(policy, rollout, evaluated, losses, columns, some)["g"]
    torch.testing.assert_close(kept, each[:5], rtol=0, atol=1e-12)
