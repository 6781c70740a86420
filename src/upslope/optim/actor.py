"""A batch as functions of the actor's flat vector: what trust regions solve on."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from upslope.errors import NonFiniteError
from upslope.optim.flat import FlatParameters
from upslope.optim.minibatches import Batch
from upslope.policies.actor_critic import ActorCritic

Objective = Callable[[ActorCritic, Batch], tuple[Tensor, Tensor]]


class ActorFunctions:
    """One batch seen as functions of the actor's flat vector theta: what trust regions solve on.

    Args:
        policy: whose actor moves.
        objective: the page's ``objective(policy, batch) -> (what to maximise, mean KL)``.
        batch: its columns; nothing in it changes.
    """

    def __init__(self, policy: ActorCritic, objective: Objective, batch: Batch) -> None:
        self.policy, self._objective, self._batch = policy, objective, batch
        self._flat = FlatParameters(policy, policy.part_names("actor"))
        self.theta = self._flat.vector.clone()

    def gradient(self) -> Tensor:
        """Gradient ``[d]`` of the objective at theta.

        Raises:
            NonFiniteError: if it is not finite; nothing has moved.
        """
        leaf = self.theta.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(self._at(leaf)[0], leaf)
        if not torch.isfinite(gradient).all():
            raise NonFiniteError(
                "the policy gradient became non-finite; the weights are those before the update: "
                "normalise rewards with --norm-reward, or check the environment's rewards"
            )
        return gradient

    def kl(self, theta: Tensor) -> Tensor:
        """Mean KL of the policy at ``theta [d]`` from the old one, differentiable."""
        return self._at(theta)[1]

    @torch.no_grad()
    def evaluate(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """Objective and mean KL at ``theta [d]``, two scalars."""
        return self._at(theta)

    @torch.no_grad()
    def move_to(self, theta: Tensor) -> None:
        """Let the policy's actor be the one at ``theta [d]``."""
        self._flat.vector.copy_(theta)
        self.policy.count_update()

    def _at(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        with self._flat.replaced_by(theta):
            return self._objective(self.policy, self._batch)
