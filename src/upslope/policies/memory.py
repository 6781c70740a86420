"""Memory: a GRU or LSTM between a network's body and its head, run over sequences of rows.

Rows of a rollout are time-major. An episode that begins in the middle starts from a blank state, so
a column of T rows falls into *segments*, one per episode; the segments of all columns are run side
by side, longest first, as torch's packed sequences are. A row between two episodes (an engine's
reset row) is a segment of its own: it advances nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from upslope.trees import Tree, map_tree, take

GATES = {"gru": 3, "lstm": 4}


@dataclass(frozen=True)
class Past:
    """What a policy with memory must know about rows: where episodes begin, and what was before.

    Rows are ``[T * S]``, time-major, of S columns.
    """

    begins: Tensor  # [T * S] bool: the row is the first of its episode
    state: Tree  # [S, ...] state of the nets before the first row

    @classmethod
    def none(cls, n_rows: int, state: Tree) -> Past:
        """Say that every row begins an episode of its own; ``state [n_rows, ...]`` is not read."""
        begins = torch.ones(n_rows, dtype=torch.bool, device=_first_leaf(state).device)
        return cls(begins, state)

    def take(self, rows: Tensor, columns: Tensor) -> Past:
        """Return the part for whole ``columns [S']``, of which ``rows [T * S']`` are the rows."""
        return Past(self.begins[rows], take(self.state, columns))

    @cached_property
    def segments(self) -> Segments:
        """Where the segments lie."""
        n_columns = len(_first_leaf(self.state))
        return Segments(self.begins.view(-1, n_columns))


class Segments:
    """The segments of ``begins [T, S]``, sorted by length, longest first; K of them."""

    def __init__(self, begins: Tensor) -> None:
        steps, n_columns = begins.shape
        if steps == 1:  # while acting: every column is a segment of one row, in order
            self.rows = self.place = self.columns = torch.arange(n_columns, device=begins.device)
            self.of_row = self.last = self.rows
            self.batch_sizes, self.goes_on = torch.tensor([n_columns]), ~begins[0]
            return
        marks = begins.cpu().numpy()
        starts_here = marks.copy()
        starts_here[0] = True
        column, start = np.nonzero(starts_here.T)  # by column, then by time
        stop = np.append(start[1:], steps)
        last_of_column = np.append(column[1:] != column[:-1], True)
        stop[last_of_column] = steps
        order = np.argsort(start - stop, kind="stable")
        length = (stop - start)[order]
        widths = (length[None] > np.arange(length[0])[:, None]).sum(1)  # segments alive at step k
        first_row = (start * n_columns + column)[order]
        rows = np.concatenate(
            [first_row[:width] + k * n_columns for k, width in enumerate(widths.tolist())]
        )
        place = np.empty_like(rows)
        place[rows] = np.arange(len(rows))
        of_row = np.empty(steps * n_columns, dtype=np.int64)
        for k, width in enumerate(widths.tolist()):
            of_row[first_row[:width] + k * n_columns] = np.arange(width)
        device = begins.device
        self.rows = torch.from_numpy(rows).to(device)  # [T * S] rows in packed order
        self.place = torch.from_numpy(place).to(device)  # [T * S] where each row is in it
        self.batch_sizes = torch.from_numpy(widths)  # always on the CPU, as torch wants it
        self.columns = torch.from_numpy(column[order]).to(device)  # [K]
        self.goes_on = torch.from_numpy(~marks[start, column][order]).to(device)  # [K]
        self.of_row = torch.from_numpy(of_row).to(device)  # [T * S] segment of each row
        self.last = self.of_row[-n_columns:]  # [S] segment that ends each column


class Memory(nn.Module):
    """One GRU or LSTM layer. Weights are laid out as in ``torch.nn.GRU`` and ``torch.nn.LSTM``.

    Args:
        kind: "gru" or "lstm".
        inputs: width of a row.
        size: width of the state, which is the output.
        ortho_init, generator, dtype: as for the other layers; orthogonal per gate with gain 1.

    Source: Cho et al. 2014 (GRU); Hochreiter & Schmidhuber 1997 (LSTM).
    """

    def __init__(
        self,
        kind: str,
        inputs: int,
        size: int,
        ortho_init: bool,
        generator: torch.Generator,
        dtype: torch.dtype,
    ) -> None:
        super().__init__()
        self.kind, self.size = kind, size
        rows = GATES[kind] * size
        self.weight_ih = nn.Parameter(torch.empty(rows, inputs, dtype=dtype))
        self.weight_hh = nn.Parameter(torch.empty(rows, size, dtype=dtype))
        self.bias_ih = nn.Parameter(torch.zeros(rows, dtype=dtype))
        self.bias_hh = nn.Parameter(torch.zeros(rows, dtype=dtype))
        bound = 1 / math.sqrt(size)
        with torch.no_grad():
            for weight in (self.weight_ih, self.weight_hh):
                for gate in weight.split(size):  # type: ignore[no-untyped-call]
                    if ortho_init:
                        nn.init.orthogonal_(gate, generator=generator)
                    else:
                        gate.uniform_(-bound, bound, generator=generator)

    def blank(self, n: int) -> Tree:
        """State of ``n`` columns before anything was seen: zeros ``[n, size]``, LSTM: a pair."""
        zeros = self.weight_hh.new_zeros(n, self.size)
        return zeros if self.kind == "gru" else (zeros, zeros.clone())

    def forward(self, x: Tensor, segments: Segments, state: Tree) -> tuple[Tensor, Tree]:
        """Rows ``[T * S, inputs]`` after ``state [S, ...]`` to outputs and final states.

        Returns:
            Outputs ``[T * S, size]`` of the rows, and the state at the end of each segment
            ``[K, ...]``.
        """
        before = map_tree(lambda s: _starting(s, segments), state)
        packed = x[segments.rows]
        weights = [self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh]
        rest: Any = (weights, True, 1, 0.0, False, False)
        if self.kind == "gru":
            outputs, final = torch.gru(packed, segments.batch_sizes, before[None], *rest)
            after: Tree = final[0]
        else:
            pair = [s[None] for s in before]
            outputs, hidden, cell = torch.lstm(packed, segments.batch_sizes, pair, *rest)
            after = (hidden[0], cell[0])
        return outputs[segments.place], after


def _starting(state: Tensor, segments: Segments) -> Tensor:
    """State that each segment starts from: its column's where it goes on, else blank."""
    return state[segments.columns] * segments.goes_on.unsqueeze(-1).to(state.dtype)


def _first_leaf(tree: Tree) -> Tensor:
    while not isinstance(tree, Tensor):
        tree = next(iter(tree.values())) if isinstance(tree, dict) else tree[0]
    return tree
