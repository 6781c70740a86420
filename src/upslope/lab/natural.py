"""The natural gradient's matrix, by the solver that trains."""

from __future__ import annotations

import torch
from torch import Tensor

from upslope.optim import FlatParameters
from upslope.policies.actor_critic import ActorCritic
from upslope.theory.trust_region import conjugate_gradient, fisher_matvec, mean_kl


def inverse_fisher(policy: ActorCritic, weights: Tensor, damping: float) -> Tensor:
    """(F_w + c I)^-1 ``[d, d]``, column by column through Fisher-vector products.

    Args:
        policy: over one-hot states.
        weights: w ``[S]``, of the states.
        damping: c, above 0.

    Eq: 9.3. Source: Kakade 2001; Martens 2010 for the products.
    """
    flat = FlatParameters(policy, policy.part_names("actor"))
    theta, states = flat.vector.clone(), torch.eye(len(weights), dtype=torch.float64)
    with torch.no_grad():
        old = policy.distribution(states)

    def kl(vector: Tensor) -> Tensor:
        with flat.replaced_by(vector):
            return mean_kl(old, policy.distribution(states), weights)

    product = fisher_matvec(kl, theta, damping)
    columns = torch.eye(len(theta), dtype=torch.float64)
    solved = [conjugate_gradient(product, column, 10 * len(theta), 1e-14) for column in columns]
    return torch.stack(solved, 1)
