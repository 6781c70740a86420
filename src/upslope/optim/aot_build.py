"""Build a compiled loop over minibatches from a tape, in a process of its own.

``python -m upslope.optim.aot_build SPEC OUT`` reads the JSON that ``aot.py`` writes and leaves one
AOTInductor package. The loop is the tape, once a minibatch, with the rows gathered inside.
"""

from __future__ import annotations

import json
import sys
from operator import getitem
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from upslope.optim import torch_parts
from upslope.optim.tape import Tape, filled

Spec = dict[str, Any]


def main(spec_path: str, out: str) -> None:
    """Compile what ``spec_path`` describes into the package ``out``."""
    torch.set_num_threads(1)
    spec: Spec = json.loads(Path(spec_path).read_text())
    examples = [example(kind) for kind in spec["arguments"]]
    torch_parts.compile_package(Loop(spec), examples, out)


def example(kind: list[Any]) -> Tensor:
    """A tensor of ``[shape, dtype]``; of zeros, which is a valid row number too."""
    return torch.zeros(kind[0], dtype=getattr(torch, kind[1]))


class Loop(nn.Module):
    """``n`` gradient steps: the first ``n`` rows of ``order [K, size]`` are their minibatches.

    Its arguments are n, the state's tensors, the numbers, ``order`` (none where every step reads
    all rows in order), ``present [K, size]`` where minibatches are padded, the columns
    ``[n_rows, ...]``, what is each step's own ``[K, ...]`` and the constants; it returns the
    state's tensors and the metrics ``[K, M]``.
    """

    def __init__(self, spec: Spec) -> None:
        super().__init__()
        self.n_state, self.n_numbers = spec["n_state"], spec["n_numbers"]
        self.n_columns, self.valid = spec["n_columns"], spec["valid"]
        self.n_per_step = spec["n_per_step"]
        self.n_metrics, self.is_padded = spec["n_metrics"], spec["is_padded"]
        self.in_order, self.n_steps = spec["in_order"], spec["n_steps"]
        self.dtype = getattr(torch, spec["metrics_dtype"])
        self.step = graph_of(Tape.from_json(spec["tape"]))

    def forward(self, n: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        """See the class."""
        state, rest = tensors[: self.n_state], tensors[self.n_state :]
        metrics = torch.zeros(self.n_steps, self.n_metrics, dtype=self.dtype)
        start = torch.zeros((), dtype=torch.int64)

        def goes_on(i: Tensor, metrics: Tensor, *others: Tensor) -> Tensor:
            return i < others[self.n_state]

        def body(i: Tensor, metrics: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
            state, given = others[: self.n_state], others[self.n_state + 1 :]
            *after, row = self.step(*state, *self.minibatch(i, given))
            metrics = metrics.index_copy(0, i.view(1), row.view(1, -1))
            return i + 1, metrics, *after

        carried = (start, metrics, *(x.clone() for x in state))
        _, metrics, *after = torch_parts.while_loop(goes_on, body, carried, (n, *rest))
        return *after, metrics

    def minibatch(self, i: Tensor, given: tuple[Tensor, ...]) -> list[Tensor]:
        """Numbers, rows, the step's own and constants: what the step takes after the state."""
        numbers, rest = list(given[: self.n_numbers]), given[self.n_numbers :]
        first = 0 if self.in_order else 2 if self.is_padded else 1
        columns = list(rest[first : first + self.n_columns])
        after = rest[first + self.n_columns :]
        own = [x.index_select(0, i.view(1)).squeeze(0) for x in after[: self.n_per_step]]
        if not self.in_order:
            rows = rest[0].index_select(0, i.view(1)).view(-1)
            columns = [x.index_select(0, rows) for x in columns]
        if self.is_padded and not self.in_order:
            there = rest[1].index_select(0, i.view(1)).view(-1)
            columns[self.valid] = columns[self.valid] * there
        return [*numbers, *columns, *own, *after[self.n_per_step :]]


def graph_of(tape: Tape) -> nn.Module:
    """The tape as a graph module, which is traced without its Python."""
    graph = torch.fx.Graph()
    held: dict[int, Any] = {}
    for place in tape.inputs:
        held[place] = graph.placeholder(f"x{place}")
    for operator, args, kwargs, results, is_many in tape.instructions:
        found = graph.call_function(operator, filled(args, held), filled(kwargs, held))
        for k, result in enumerate(results):
            if result is not None:
                one = graph.call_function(getitem, (found, k)) if is_many else found
                held[result] = one
    graph.output(tuple(held[place] for place in tape.results))
    return torch.fx.GraphModule(nn.Module(), graph)


if __name__ == "__main__":
    main(*sys.argv[1:])
