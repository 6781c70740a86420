"""What theory promises of a policy update, beside what it does."""

from __future__ import annotations

import torch
from torch import Tensor

from upslope.envs.tabular import MDP
from upslope.lab.exact import action_values, objective, state_values, visitation


def improvement(mdp: MDP, pi: Tensor, pi_new: Tensor, gamma: float) -> tuple[Tensor, Tensor]:
    """A lower bound of J_gamma(new) - J_gamma(old) from old data, and its exact value.

    The bound is sum_s d(s) (E_new[A] - 2 gamma eps / (1 - gamma) TV(s)), d the discounted visits of
    the old policy, eps = max_s |E_new[A]|, TV the total variation between the policies in s.

    Args:
        mdp: the process, without limit.
        pi, pi_new: ``[S, A]`` probabilities.
        gamma: discount per step, below 1.

    Returns:
        Two scalars, in units of reward.

    Eq: 10.4. Source: Achiam et al. 2017, corollary 1; Schulman et al. 2015, theorem 1; Kakade &
    Langford 2002.
    """
    values = state_values(mdp, pi, gamma)
    gain = (pi_new * (action_values(mdp, values, gamma) - values[:, None])).sum(1)
    distance = 0.5 * (pi_new - pi).abs().sum(1)
    penalty = 2 * gamma * gain.abs().max() / (1 - gamma) * distance
    exact = objective(mdp, pi_new, gamma) - objective(mdp, pi, gamma)
    return visitation(mdp, pi, gamma, None) @ (gain - penalty), torch.as_tensor(exact)
