"""The parameters of a policy as views of one flat vector."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from upslope.policies.actor_critic import ActorCritic


class FlatParameters:
    """The named parameters of a policy as one flat vector, of which they are views.

    All parameters of a policy share one vector in its own order, actor first; ``names`` is a run of
    it. Parameters that are no such views yet (new, moved to a device, copied) are made so.
    """

    def __init__(self, policy: ActorCritic, names: list[str]) -> None:
        self._source = policy.held
        parameters = self._source.parameters
        self._shared = [parameters[name] for name in policy.part_names("all")]
        _share_one_vector(self._shared)
        self._held = [parameters[name] for name in names]
        self._constants = [
            p for name, p in parameters.items() if p.requires_grad and name not in set(names)
        ]
        place = {id(p): i for i, p in enumerate(self._held) if p.requires_grad}
        self._slots = [  # where a module looks a parameter up; a tied one is looked up in several
            (owner, key, place[id(parameter)])
            for owner, key, parameter in self._source.slots
            if id(parameter) in place
        ]
        self._sizes = [parameter.numel() for parameter in self._held]
        ends = np.cumsum([0, *self._sizes])
        self.frozen = [  # where the vector holds parameters that their owner froze
            slice(ends[i], ends[i + 1]) for i, p in enumerate(self._held) if not p.requires_grad
        ]
        first = self._held[0].detach()
        self.vector = first.as_strided((sum(self._sizes),), (1,), first.storage_offset())
        self._kind_then = self._kind()

    def is_current(self, policy: ActorCritic) -> bool:
        """Whether the vector still is what the policy's parameters are views of, as they were."""
        return (
            policy.held is self._source
            and _is_shared(self._shared)
            and self._held[0].data_ptr() == self.vector.data_ptr()
            and self._kind() == self._kind_then
        )

    def _kind(self) -> list[Any]:
        """What else of the parameters decides what a step is."""
        every = self._source.parameters.values()
        return [(p.requires_grad, p.dtype) for p in every]

    @contextmanager
    def replaced_by(self, vector: Tensor) -> Iterator[None]:
        """Let the parameters be views of ``vector``, the others constants, while the block runs."""
        pieces = vector.split(self._sizes)  # type: ignore[no-untyped-call]
        try:
            for constant in self._constants:
                constant.requires_grad_(False)
            for owner, key, i in self._slots:
                owner[key] = pieces[i].view(self._held[i].shape)
            yield
        finally:
            for owner, key, i in self._slots:
                owner[key] = self._held[i]
            for constant in self._constants:
                constant.requires_grad_(True)


def _is_shared(parameters: list[nn.Parameter]) -> bool:
    """Whether the parameters are views of one vector, in order."""
    at, storage = parameters[0].data_ptr(), parameters[0].untyped_storage().data_ptr()
    for parameter in parameters:
        if parameter.data_ptr() != at or not parameter.is_contiguous():
            return False
        at += parameter.numel() * parameter.element_size()
    return parameters[-1].untyped_storage().data_ptr() == storage


def _share_one_vector(parameters: list[nn.Parameter]) -> None:
    """Make the parameters views of one vector, in order, unless they are already."""
    if _is_shared(parameters):
        return
    vector, offset = torch.cat([p.detach().reshape(-1) for p in parameters]), 0
    for parameter in parameters:
        parameter.data = vector[offset : offset + parameter.numel()].view_as(parameter)
        offset += parameter.numel()
