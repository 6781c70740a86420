"""The gradient step all pages share: loss -> gradient -> clip -> rule, on one flat vector.

A page supplies only ``loss(policy, batch, hyper) -> (scalar, metrics)``. The whole step is one pure
function of ``(weights, moments, hyper, batch)``; the module's parameters are views of the flat
vector, so nothing is copied for acting, evaluating or saving. Here it runs eagerly, minibatch after
minibatch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from upslope.errors import NonFiniteError
from upslope.policies.actor_critic import ActorCritic
from upslope.policies.memory import Past
from upslope.trees import take

Batch = dict[str, Any]
Hyper = Mapping[str, float]
Moments = tuple[Tensor, ...]
Objective = Callable[[ActorCritic, Batch], tuple[Tensor, Tensor]]
Loss = Callable[[ActorCritic, Batch, Hyper], tuple[Tensor, dict[str, Tensor]]]


def adam(gradient: Tensor, moments: Moments, step: int, eps: float) -> tuple[Tensor, Moments]:
    """Adam's direction (times the learning rate: the step) and new moments, ``beta = (.9, .999)``.

    Source: Kingma & Ba 2015, algorithm 1; equal to ``torch.optim.Adam``.
    """
    first = moments[0].lerp(gradient, 0.1)
    second = moments[1] * 0.999 + 0.001 * gradient.square()
    scale = second.sqrt() / (1 - 0.999**step) ** 0.5 + eps
    return first / (scale * (1 - 0.9**step)), (first, second)


def rmsprop(gradient: Tensor, moments: Moments, step: int, eps: float) -> tuple[Tensor, Moments]:
    """RMSprop's direction and its new moment, ``alpha = .99``; equal to ``torch.optim.RMSprop``."""
    second = moments[0] * 0.99 + 0.01 * gradient.square()
    return gradient / (second.sqrt() + eps), (second,)


RULES: dict[str, tuple[Callable[..., tuple[Tensor, Moments]], int]] = {
    "adam": (adam, 2),
    "rmsprop": (rmsprop, 1),
}


@dataclass(frozen=True)
class Minibatches:
    """Which rows each gradient step reads: ``rows [epochs, steps, size]``.

    The last step is padded where ``present [steps, size]`` is 0. ``columns [epochs, steps, S]`` are
    the environments whose sequences a step reads whole, where it does.
    """

    rows: Tensor
    present: Tensor
    columns: Tensor

    @classmethod
    def shuffled(
        cls,
        rng: np.random.Generator,
        shape: Sequence[int],
        size: int,
        n_epochs: int,
        by_sequence: bool = False,
    ) -> Minibatches:
        """Every row of a ``(T, B)`` rollout once an epoch, in an order drawn from ``rng``.

        Rows are numbered time-major. ``by_sequence`` keeps the T rows of an environment together
        and in order: a minibatch is then as many whole columns as fit ``size``, at least one.
        """
        length, n_envs = (shape[0], shape[1]) if by_sequence else (1, shape[0] * shape[1])
        per_step = max(1, size // length)  # columns, or single rows
        steps = -(-n_envs // per_step)
        order = np.zeros((n_epochs, steps * per_step), dtype=np.int64)
        for epoch in order:
            epoch[:n_envs] = rng.permutation(n_envs)
        present = (np.arange(steps * per_step) < n_envs).reshape(steps, 1, per_step)
        columns = order.reshape(n_epochs, steps, per_step)
        rows = np.arange(length)[:, None] * n_envs + columns[:, :, None, :]
        return cls(
            torch.from_numpy(rows.reshape(n_epochs, steps, length * per_step)),
            torch.from_numpy(np.broadcast_to(present, rows.shape[1:]).reshape(steps, -1).copy()),
            torch.from_numpy(columns),
        )

    @classmethod
    def whole(cls, shape: Sequence[int], n_epochs: int = 1) -> Minibatches:
        """One step an epoch over all rows of a ``(T, B)`` rollout in order."""
        n_rows, n_envs = shape[0] * shape[1], shape[1]
        rows = torch.arange(n_rows).expand(n_epochs, 1, n_rows)
        columns = torch.arange(n_envs).expand(n_epochs, 1, n_envs)
        return cls(rows, torch.ones(1, n_rows, dtype=torch.bool), columns)


class GradientStep:
    """An optimiser's state over one part of a policy's flat vector, and the step that moves it.

    Args:
        policy: whose parameters move.
        loss: the page's ``loss(policy, batch, hyper)``.
        part: ``all``, ``actor`` or ``critic``.
        rule: ``adam`` or ``rmsprop``.
        max_grad_norm: longer gradients are scaled down to it; ``None`` leaves them.
        eps: added to the denominator of the rule.
    """

    def __init__(
        self,
        policy: ActorCritic,
        loss: Loss,
        *,
        part: str = "all",
        rule: str = "adam",
        max_grad_norm: float | None = None,
        eps: float = 1e-5,
    ) -> None:
        self.policy, self.loss, self.max_grad_norm, self.eps = policy, loss, max_grad_norm, eps
        self.names = policy.part_names(part)
        self.rule, n_moments = RULES[rule]
        weights = FlatParameters(policy, self.names).vector
        self.moments: Moments = tuple(torch.zeros_like(weights) for _ in range(n_moments))
        self.steps = 0

    def run(
        self,
        batch: Batch,
        minibatches: Minibatches,
        hyper: Hyper,
        until: Callable[[dict[str, Tensor]], bool] | None = None,
    ) -> dict[str, float]:
        """Take one gradient step a minibatch and return the metrics' means over the steps taken.

        Args:
            batch: columns of ``[n_rows, ...]`` each, ``valid`` among them.
            minibatches: which rows each step reads.
            hyper: numbers the loss reads, and ``learning_rate``.
            until: called with a minibatch's metrics before its step; True ends without that step.

        Raises:
            NonFiniteError: if a gradient or weight is not finite; the weights are then those from
                before the call.
        """
        flat = FlatParameters(self.policy, self.names)
        weights = flat.vector
        before, moments, steps = weights.clone(), self.moments, self.steps
        history: list[Tensor] = []
        names: list[str] = []
        for minibatch in _gather(batch, minibatches):
            new_weights, new_moments, metrics = self._step(flat, minibatch, hyper)
            names = list(metrics)
            history.append(torch.stack(list(metrics.values())))
            if until is not None and until(metrics):
                break
            for frozen in flat.frozen:
                new_weights[frozen] = weights[frozen]
            weights.copy_(new_weights)
            self.moments, self.steps = new_moments, self.steps + 1
        self.policy.count_update()
        record = torch.stack(history)
        if not (torch.isfinite(weights).all() and torch.isfinite(record).all()):
            weights.copy_(before)
            self.moments, self.steps = moments, steps
            raise NonFiniteError(_name_culprit(names, record, self.steps))
        means = record.mean(0).tolist()
        return dict(zip(names, means, strict=True))

    def _step(
        self, flat: FlatParameters, batch: Batch, hyper: Hyper
    ) -> tuple[Tensor, Moments, dict[str, Tensor]]:
        """One pure step: nothing it is given changes."""
        leaf = flat.vector.detach().requires_grad_()
        with flat.replaced_by(leaf):
            loss, metrics = self.loss(self.policy, batch, hyper)
        (gradient,) = torch.autograd.grad(loss, leaf)
        norm = torch.linalg.vector_norm(gradient)
        if self.max_grad_norm is not None:
            gradient = gradient * (self.max_grad_norm / (norm + 1e-6)).clamp(max=1.0)
        direction, moments = self.rule(gradient, self.moments, self.steps + 1, self.eps)
        metrics = {name: value.detach() for name, value in metrics.items()}
        return (
            flat.vector - hyper["learning_rate"] * direction,
            moments,
            metrics | {"grad_norm": norm},
        )

    def state(self) -> dict[str, Any]:
        """Everything that continues this optimiser: its moments and step count."""
        return {"moments": self.moments, "steps": self.steps}


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


class FlatParameters:
    """The named parameters of a policy as one flat vector, of which they are views.

    All parameters of a policy share one vector in its own order, actor first; ``names`` is a run of
    it. Parameters that are no such views yet (new, moved to a device, copied) are made so.
    """

    def __init__(self, policy: ActorCritic, names: list[str]) -> None:
        parameters = dict(policy.named_parameters())
        _share_one_vector([parameters[name] for name in policy.part_names("all")])
        self._held = [parameters[name] for name in names]
        self._constants = [
            p for name, p in parameters.items() if p.requires_grad and name not in set(names)
        ]
        place = {id(p): i for i, p in enumerate(self._held) if p.requires_grad}
        self._slots = [  # where a module looks a parameter up; a tied one is looked up in several
            (module._parameters, key, place[id(parameter)])
            for module in policy.modules()
            for key, parameter in module._parameters.items()
            if id(parameter) in place
        ]
        self._sizes = [parameter.numel() for parameter in self._held]
        ends = np.cumsum([0, *self._sizes])
        self.frozen = [  # where the vector holds parameters that their owner froze
            slice(ends[i], ends[i + 1]) for i, p in enumerate(self._held) if not p.requires_grad
        ]
        first = self._held[0].detach()
        self.vector = first.as_strided((sum(self._sizes),), (1,), first.storage_offset())

    @contextmanager
    def replaced_by(self, vector: Tensor) -> Iterator[None]:
        """Let the parameters be views of ``vector``, the others constants, while the block runs."""
        pieces = vector.split(self._sizes)  # type: ignore[no-untyped-call]
        for constant in self._constants:
            constant.requires_grad_(False)
        try:
            for owner, key, i in self._slots:
                owner[key] = pieces[i].view(self._held[i].shape)
            yield
        finally:
            for owner, key, i in self._slots:
                owner[key] = self._held[i]
            for constant in self._constants:
                constant.requires_grad_(True)


def _share_one_vector(parameters: list[nn.Parameter]) -> None:
    """Make the parameters views of one vector, in order, unless they are already."""
    storage, offset, shared = parameters[0].untyped_storage().data_ptr(), 0, True
    for parameter in parameters:
        shared &= parameter.untyped_storage().data_ptr() == storage
        shared &= parameter.storage_offset() == offset and parameter.is_contiguous()
        offset += parameter.numel()
    if shared:
        return
    vector, offset = torch.cat([p.detach().reshape(-1) for p in parameters]), 0
    for parameter in parameters:
        parameter.data = vector[offset : offset + parameter.numel()].view_as(parameter)
        offset += parameter.numel()


def _gather(batch: Batch, minibatches: Minibatches) -> Iterator[Batch]:
    """Yield one dict of rows a step: each column is permuted once an epoch and then sliced.

    A column is a tree of tensors, the :class:`Past` of the rows, or None, which stays None.
    """
    steps, size = minibatches.rows.shape[1:]
    padded = not bool(minibatches.present.all())
    device = batch["valid"].device
    past: Past | None = batch.get("past")
    given = {
        name: column for name, column in batch.items() if isinstance(column, Tensor | dict | tuple)
    }
    for epoch, columns in zip(
        minibatches.rows.to(device), minibatches.columns.to(device), strict=True
    ):
        shuffled = take(given, epoch.reshape(-1))
        for step in range(steps):
            minibatch: Batch = dict.fromkeys(batch)
            minibatch |= take(shuffled, slice(step * size, (step + 1) * size))
            if padded:
                present = minibatches.present[step].to(device)
                minibatch["valid"] = minibatch["valid"] * present
            if past is not None:
                minibatch["past"] = past.take(epoch[step], columns[step])
            yield minibatch


def _name_culprit(names: list[str], record: Tensor, steps: int) -> str:
    bad = [
        name
        for name, column in zip(names, record.T, strict=True)
        if not torch.isfinite(column).all()
    ]
    what = " and ".join(bad) if bad else "a weight"
    return (
        f"{what} became non-finite in the update after {steps} gradient steps; "
        "the weights are those before it: "
        "lower learning_rate, set max_grad_norm, or normalise rewards with --norm-reward"
    )
