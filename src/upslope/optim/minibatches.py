"""Which rows each gradient step reads, and how they are gathered."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from upslope.policies.memory import Past
from upslope.trees import leaves, map_tree

Batch = dict[str, Any]


@dataclass(frozen=True)
class PerStep:
    """A column that is not gathered: step k of an update reads ``values[k]``."""

    values: Tensor  # [steps, ...]


GATHERED = 2**20  # bytes of rows that are gathered at once: they stay in a core's cache


@dataclass(frozen=True)
class Minibatches:
    """Which rows each gradient step reads: ``rows [epochs, steps, size]``.

    The last step is padded where ``present [steps, size]`` is 0. ``columns [epochs, steps, S]`` are
    the environments whose sequences a step reads whole, where it does. ``in_order`` says that every
    step reads all rows as they lie, ``is_padded`` that the last one is.
    """

    rows: Tensor
    present: Tensor
    columns: Tensor
    in_order: bool = False
    is_padded: bool = False

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
            is_padded=steps * per_step > n_envs,
        )

    @classmethod
    def whole(cls, shape: Sequence[int], n_epochs: int = 1) -> Minibatches:
        """One step an epoch over all rows of a ``(T, B)`` rollout in order."""
        n_rows, n_envs = shape[0] * shape[1], shape[1]
        rows = torch.arange(n_rows).expand(n_epochs, 1, n_rows)
        columns = torch.arange(n_envs).expand(n_epochs, 1, n_envs)
        return cls(rows, torch.ones(1, n_rows, dtype=torch.bool), columns, in_order=True)

    def __len__(self) -> int:
        """Number of gradient steps."""
        return self.rows.shape[0] * self.rows.shape[1]

    def gather(self, column: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """A column ``[n_rows]`` and ``valid`` as each step reads them: ``[steps, size]`` both."""
        rows = self.rows.flatten(0, 1).to(column.device)
        gathered = valid[rows]
        if self.is_padded:
            gathered *= self.present.to(valid).repeat(self.rows.shape[0], 1)
        return column[rows], gathered


class Steps(NamedTuple):
    """The rows that ``n`` steps read: for each column a tensor ``[n, size, ...]``."""

    columns: list[Tensor]

    def __len__(self) -> int:
        """Number of steps."""
        return len(self.columns[0])

    def part(self, first: int, n: int) -> Steps:
        """The ``n`` steps from ``first`` on."""
        return Steps([column[first : first + n] for column in self.columns])


class Columns:
    """A batch's columns as flat lists of tensors, and back: what a pure step is a function of.

    A column is a tree of tensors ``[n_rows, ...]``, a :class:`PerStep`, the :class:`Past` of the
    rows, or None. The arguments of a step are its rows of the tensors ``rows`` of the trees, then
    its own of ``per_step``; what is neither stays beside them.

    ``valid`` is the place among ``rows`` of the column of that name.

    Args:
        batch: columns, ``valid`` among them.
        numbers: more of which each step has its own: ``[steps]`` each.
    """

    def __init__(self, batch: Batch, numbers: Sequence[Tensor] = ()) -> None:
        self._batch = batch
        self._trees = {
            name: column
            for name, column in batch.items()
            if isinstance(column, Tensor | dict | tuple)
        }
        self._per_step = [name for name, column in batch.items() if isinstance(column, PerStep)]
        self.rows: list[Tensor] = leaves(self._trees)
        self.per_step = [*(batch[name].values for name in self._per_step), *numbers]
        self.past: Past | None = batch.get("past")
        known = {None, *self._trees, *self._per_step}
        self.are_rows = all(x is None or name in known for name, x in batch.items())
        self.valid = next(i for i, x in enumerate(self.rows) if x is batch["valid"])

    def batch_of(
        self, arguments: Sequence[Tensor], past: Past | None = None
    ) -> tuple[Batch, Sequence[Tensor]]:
        """Put a step's arguments back into the columns they came from; return its numbers too."""
        each = iter(arguments)
        trees = map_tree(lambda _: next(each), self._trees)
        own = {name: next(each) for name in self._per_step}
        return {**self._batch, **trees, **own, "past": past}, list(each)

    def minibatches(
        self, minibatches: Minibatches
    ) -> Iterator[tuple[tuple[Tensor, ...], Past | None]]:
        """Yield the arguments of each step, one tensor a column, and the past of its rows."""
        step = 0
        for steps in self.chunks(minibatches):
            for rows in zip(*steps.columns, strict=True):
                yield rows, self._past_of(minibatches, step)
                step += 1

    def chunks(self, minibatches: Minibatches) -> Iterator[Steps]:
        """Yield the rows of all steps, as many steps at a time as stay in a core's cache.

        Columns are permuted several epochs at a time and then cut: few calls, whatever the size.
        """
        if minibatches.in_order:
            n = len(minibatches)
            expanded = [column.expand(n, *column.shape) for column in self.rows]
            yield Steps([*expanded, *self.per_step])
            return
        device, size = self.rows[0].device, minibatches.rows.shape[2]
        rows = minibatches.rows.flatten(0, 1).to(device)
        if minibatches.is_padded:
            present = minibatches.present.to(device).repeat(minibatches.rows.shape[0], 1)
        chunk = self._steps_at_once(size)
        for first in range(0, len(rows), chunk):
            order = rows[first : first + chunk].reshape(-1)
            pieces = [column.index_select(0, order) for column in self.rows]
            if minibatches.is_padded:
                there = present[first : first + chunk].reshape(-1)
                pieces[self.valid] = pieces[self.valid] * there
            cut = [piece.view(-1, size, *piece.shape[1:]) for piece in pieces]
            yield Steps([*cut, *(x[first : first + chunk] for x in self.per_step)])

    def first(self, minibatches: Minibatches) -> tuple[Tensor, ...]:
        """The arguments of the first step."""
        return next(iter(self.minibatches(minibatches)))[0]

    def _past_of(self, minibatches: Minibatches, step: int) -> Past | None:
        if self.past is None or minibatches.in_order:
            return self.past
        rows = minibatches.rows.flatten(0, 1)[step].to(self.rows[0].device)
        columns = minibatches.columns.flatten(0, 1)[step]
        return self.past.take(rows, columns.to(rows.device))

    def _steps_at_once(self, size: int) -> int:
        """How many steps' rows may lie beside the batch: ``GATHERED`` bytes of them."""
        each = sum(x[:1].numel() * x.element_size() for x in self.rows)
        return max(1, GATHERED // max(1, size * each))
