"""The gradient step: one pure function, taken minibatch after minibatch by an engine."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from upslope.errors import NonFiniteError
from upslope.optim.aot import AotEngine
from upslope.optim.flat import FlatParameters
from upslope.optim.minibatches import Batch, Columns, Minibatches
from upslope.optim.replay import Taken, TapeEngine, run_eagerly
from upslope.optim.rules import RULES, Moments
from upslope.optim.torch_parts import Unavailable
from upslope.policies.actor_critic import ActorCritic
from upslope.policies.memory import Past

log = logging.getLogger("upslope")
Hyper = Mapping[str, Any]  # numbers: floats, or tensors without axes
Loss = Callable[[ActorCritic, Batch, Hyper], tuple[Tensor, dict[str, Tensor]]]
Until = Callable[[dict[str, Tensor]], bool]


class GradientStep:
    """An optimiser's state over one part of a policy's flat vector, and the step that moves it.

    Args:
        policy: whose parameters move.
        loss: the page's ``loss(policy, batch, hyper)``.
        part: ``all``, ``actor`` or ``critic``.
        rule: ``adam`` or ``rmsprop``.
        max_grad_norm: longer gradients are scaled down to it; ``None`` leaves them.
        eps: added to the denominator of the rule.

    ``engine`` is what takes the steps, ``aot``, ``tape`` or ``eager``; where it cannot be used,
    the next one down does.
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
        self.rule = RULES[rule]
        self._flat = FlatParameters(policy, self.names)
        weights = self._flat.vector
        self.moments: Moments = tuple(torch.zeros_like(weights) for _ in range(self.rule.n_moments))
        self.steps = 0
        self.engine = "eager"
        self._tapes, self._loops = TapeEngine(self._fall_back), AotEngine()
        self._metrics: dict[Hashable, list[str]] = {}  # their names, which a replay does not say

    def run(
        self, batch: Batch, minibatches: Minibatches, hyper: Hyper, until: Until | None = None
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
        if not self._flat.is_current(self.policy):
            self._flat = FlatParameters(self.policy, self.names)
            self.moments = tuple(moment.to(self._flat.vector) for moment in self.moments)
        flat, steps = self._flat, self.steps + np.arange(1.0, len(minibatches) + 1)
        numbers = [torch.from_numpy(x) for x in self.rule.numbers(steps, self.eps)]
        columns = Columns(batch, numbers)
        step = _Step(self, flat, columns, hyper)
        state = (flat.vector, *self.moments)
        state, record, taken = self._take(step, state, columns, minibatches, until)
        self.policy.count_update()
        totals = record.sum(0).tolist()
        if not (_is_finite(totals, record) and _is_finite([float(state[0].sum())], state[0])):
            raise NonFiniteError(_name_culprit(step.metrics, record, self.steps))
        flat.vector.copy_(state[0])
        self.moments = state[1:]
        self.steps += taken
        means = (total / len(record) for total in totals)
        return dict(zip(step.metrics, means, strict=True))

    def _take(
        self,
        step: _Step,
        state: tuple[Tensor, ...],
        columns: Columns,
        minibatches: Minibatches,
        until: Until | None,
    ) -> Taken:
        """Step through the minibatches with the engine, or with the next one down."""
        stop = None if until is None else partial(_is_enough, step, until)
        self._check_engine(columns)
        if self.engine == "eager":
            return run_eagerly(step, state, columns, minibatches, stop)
        key = step.key(None if minibatches.in_order else minibatches.rows.shape[2])
        step.kind = repr(key[:3])
        step.metrics = self._metrics.setdefault(key[1:], step.metrics)  # whatever n_rows is
        if self.engine == "aot":
            try:
                return self._loops.run(key, step, state, columns, minibatches, stop)
            except Unavailable as reason:
                self._fall_back(str(reason))
        return self._tapes.run(key, step, state, columns, minibatches, stop)

    def _check_engine(self, columns: Columns) -> None:
        """Leave to the eager engine what is no function of tensors on the CPU: nobody lacks it."""
        device = self.policy.device
        while self.engine != "eager" and device.type != "cpu":
            self._fall_back(f"only the CPU has it, and the policy is on {device}", logging.INFO)
        while self.engine != "eager" and not columns.are_rows:
            why = "the policy has memory, and its sequences differ from step to step"
            self._fall_back(why, logging.INFO)

    def _fall_back(self, why: str, level: int = logging.WARNING) -> None:
        """Go on with the next engine down, and say so once."""
        down = "tape" if self.engine == "aot" else "eager"
        log.log(level, "the gradient step runs by %s, not %s: %s", down, self.engine, why)
        self.engine = down

    def state(self) -> dict[str, Any]:
        """Everything beside the moments that continues this optimiser, as JSON types."""
        return {"steps": self.steps, "engine": self.engine, "seen": dict(self._tapes.seen)}

    def load_state(self, state: Mapping[str, Any], moments: Sequence[Tensor]) -> None:
        """Go on from what :meth:`state` returned and from the moments, ``[d]`` each."""
        self.moments = tuple(x.to(self._flat.vector) for x in moments)
        self.steps, self.engine = int(state["steps"]), str(state["engine"])
        self._tapes.go_on_from(state["seen"])


class _Step:
    """One gradient step as a pure function of tensors, for one call of :meth:`GradientStep.run`.

    It takes weights, moments, the numbers of ``hyper``, a minibatch's rows and what the rule is
    told of the step; it returns weights, moments and the metrics ``[M]``, whose names are
    ``metrics``.
    """

    def __init__(
        self, owner: GradientStep, flat: FlatParameters, columns: Columns, hyper: Hyper
    ) -> None:
        self._owner, self._flat, self._columns = owner, flat, columns
        self._hyper = list(hyper)
        # In float64, which as a tensor without axes changes no result's dtype.
        self.numbers = [torch.as_tensor(x, dtype=torch.float64) for x in hyper.values()]
        self.metrics: list[str] = []
        self.past: Past | None = None
        self.kind = ""

    def __call__(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        owner, n_state = self._owner, 1 + self._owner.rule.n_moments
        weights, n_given = tensors[0], n_state + len(self._hyper)
        hyper = dict(zip(self._hyper, tensors[n_state:n_given], strict=True))
        batch, numbers = self._columns.batch_of(tensors[n_given:], self.past)
        gradient, metrics = self._gradient(weights, batch, hyper)
        with torch.no_grad():
            norm = torch.linalg.vector_norm(gradient)
            if owner.max_grad_norm is not None:
                gradient = gradient * (owner.max_grad_norm / (norm + 1e-6)).clamp(max=1.0)
            above, below, moments = owner.rule.direction(gradient, tensors[1:n_state], *numbers)
            moved = weights.addcdiv(hyper["learning_rate"] * above, below, value=-1)
            for frozen in self._flat.frozen:
                moved[frozen] = weights[frozen]
            metrics["grad_norm"] = norm
            self.metrics[:] = metrics
            return moved, *moments, torch.stack(list(metrics.values()))

    def key(self, n_rows: int | None) -> tuple[Hashable, ...]:
        """All that the operators of the step hang on, beside the values of its arguments."""
        policy, owner = self._owner.policy, self._owner
        columns = self._columns
        kinds = [(x.shape[1:], x.dtype) for x in (*columns.rows, *columns.per_step)]
        return (
            n_rows or len(columns.rows[0]),
            tuple(kinds),
            tuple(self._hyper),
            owner.loss,
            _Same(getattr(getattr(owner.loss, "__self__", None), "config", None)),
            (owner.max_grad_norm, owner.eps),
            _Same(self._flat),  # made anew where a parameter is exchanged, frozen or cast
            tuple(module.training for module in policy.held.modules),
            tuple(_Same(x) for buffers in policy.held.buffers for x in buffers.values()),
        )

    def _gradient(
        self, weights: Tensor, batch: Batch, hyper: Hyper
    ) -> tuple[Tensor, dict[str, Tensor]]:
        leaf = weights.detach().requires_grad_()
        with torch.enable_grad(), self._flat.replaced_by(leaf):
            loss, metrics = self._owner.loss(self._owner.policy, batch, hyper)
        (gradient,) = torch.autograd.grad(loss, leaf)
        return gradient, {name: value.detach() for name, value in metrics.items()}


def _is_enough(step: _Step, until: Until, metrics: Tensor) -> bool:
    return until(dict(zip(step.metrics, metrics, strict=True)))


class _Same:
    """An object as a part of a key: equal to itself alone."""

    def __init__(self, thing: object) -> None:
        self.thing = thing

    def __hash__(self) -> int:
        return id(self.thing)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.thing is other.thing


def _is_finite(totals: list[float], numbers: Tensor) -> bool:
    """Whether all numbers are: a sum says so at once, unless it overflowed."""
    return all(map(math.isfinite, totals)) or bool(numbers.isfinite().all())


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
