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
GATHERED = 2**20  # bytes of rows that are gathered at once: they stay in a core's cache


@dataclass(frozen=True)
class Minibatches:
    """Which rows each gradient step reads: ``rows [epochs, steps, size]``.

    The last step is padded where ``present [steps, size]`` is 0. ``columns [epochs, steps, S]`` are
    the environments whose sequences a step reads whole, where it does. ``in_order`` says that every
    step reads all rows as they lie.
    """

    rows: Tensor
    present: Tensor
    columns: Tensor
    in_order: bool = False

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
        return cls(rows, torch.ones(1, n_rows, dtype=torch.bool), columns, in_order=True)

    def __len__(self) -> int:
        """Number of gradient steps."""
        return self.rows.shape[0] * self.rows.shape[1]


class Steps(NamedTuple):
    """The rows that some steps read: for each column a tensor ``[size, ...]`` a step."""

    columns: list[tuple[Tensor, ...]]

    def __len__(self) -> int:
        """Number of steps."""
        return len(self.columns[0])

    def part(self, first: int, n: int) -> Steps:
        """The ``n`` steps from ``first`` on."""
        return Steps([column[first : first + n] for column in self.columns])


class Columns:
    """A batch's columns as a flat list of tensors, and back: what a pure step is a function of.

    A column is a tree of tensors ``[n_rows, ...]``, the :class:`Past` of the rows, or None. The
    tensors ``rows`` of the trees are the arguments of a step; what is no tree stays beside them.

    ``valid`` is the place among ``rows`` of the column of that name.

    Args:
        batch: columns, ``valid`` among them.
    """

    def __init__(self, batch: Batch) -> None:
        self._batch = batch
        self._trees = {
            name: column
            for name, column in batch.items()
            if isinstance(column, Tensor | dict | tuple)
        }
        self.rows: list[Tensor] = leaves(self._trees)
        self.past: Past | None = batch.get("past")
        self.are_rows = all(column is None or name in self._trees for name, column in batch.items())
        self.valid = next(i for i, x in enumerate(self.rows) if x is batch["valid"])

    def batch_of(self, rows: Sequence[Tensor], past: Past | None = None) -> Batch:
        """Put tensors back into the columns they came from."""
        each = iter(rows)
        return {**self._batch, **map_tree(lambda _: next(each), self._trees), "past": past}

    def minibatches(
        self, minibatches: Minibatches
    ) -> Iterator[tuple[tuple[Tensor, ...], Past | None]]:
        """Yield the rows of each step, one tensor a column, and their past."""
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
            yield Steps([(column,) * len(minibatches) for column in self.rows])
            return
        device, size = self.rows[0].device, minibatches.rows.shape[2]
        rows = minibatches.rows.flatten(0, 1).to(device)
        padded = not bool(minibatches.present.all())
        present = minibatches.present.to(device).repeat(minibatches.rows.shape[0], 1)
        chunk = self._steps_at_once(size)
        for first in range(0, len(rows), chunk):
            order = rows[first : first + chunk].reshape(-1)
            pieces = [column.index_select(0, order) for column in self.rows]
            if padded:
                there = present[first : first + chunk].reshape(-1)
                pieces[self.valid] = pieces[self.valid] * there
            yield Steps([piece.split(size) for piece in pieces])  # type: ignore[no-untyped-call]

    def first(self, minibatches: Minibatches) -> tuple[Tensor, ...]:
        """The rows of the first step."""
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
