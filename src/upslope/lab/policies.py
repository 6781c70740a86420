"""Policies over the states of an MDP: tables, and any network that reads one-hot states."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from upslope.policies.actor_critic import ActorCritic
from upslope.policies.distributions import Categorical


class SoftmaxTable:
    """pi(a|s) = softmax(theta[s])_a, with parameters of its own for every state.

    Args:
        logits: ``[S, A]``, or flat ``[S * A]`` with ``n_actions``.
        n_actions: A, where ``logits`` is flat.
    """

    def __init__(self, logits: Tensor, n_actions: int | None = None) -> None:
        attached = logits.requires_grad
        self.theta = logits if attached else logits.detach().clone().requires_grad_()
        self._n_actions = n_actions or logits.shape[-1]

    def parameters(self) -> list[Tensor]:
        """The one table."""
        return [self.theta]

    def distribution(self, obs: Tensor) -> Categorical:
        """pi(.|s) for one-hot states ``[N, S]``."""
        return Categorical(obs.to(self.theta.dtype) @ self.theta.view(-1, self._n_actions))


def actor_parameters(policy: Any) -> Sequence[Tensor]:
    """The parameters that a policy gradient moves, in the order of their flat vector."""
    if isinstance(policy, ActorCritic):
        named = dict(policy.named_parameters())
        return [named[name] for name in policy.part_names("actor")]
    return list(policy.parameters())


def log_probabilities(policy: Any, n_states: int) -> Tensor:
    """log pi(a|s) ``[S, A]`` of every state, differentiable in the policy's parameters."""
    eye = torch.eye(n_states, dtype=torch.float64)
    return policy.distribution(eye).log_probs  # type: ignore[no-any-return]


def probabilities(policy: Any, n_states: int) -> Tensor:
    """pi(a|s) ``[S, A]``, detached."""
    return log_probabilities(policy, n_states).detach().exp()


def scores(policy: Any, obs: Tensor) -> tuple[Tensor, Tensor]:
    """pi(a|s) ``[N, A]`` and grad log pi(a|s) ``[N, A, d]`` for every action, detached."""
    log_probs = policy.distribution(obs).log_probs
    parameters = actor_parameters(policy)
    one_each = torch.eye(log_probs.numel(), dtype=log_probs.dtype).view(-1, *log_probs.shape)
    pieces = torch.autograd.grad(
        log_probs, parameters, one_each, is_grads_batched=True, allow_unused=True,
        materialize_grads=True,
    )  # fmt: skip
    table = torch.cat([piece.reshape(len(one_each), -1) for piece in pieces], 1)
    return log_probs.detach().exp(), table.view(*log_probs.shape, -1)
