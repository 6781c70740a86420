"""A module's parameters and where they are kept, found once instead of at every look."""

from __future__ import annotations

from torch import nn


class Held:
    """The modules of a network and the parameters they hold, as they were when it was made.

    ``parameters`` are by name, each once; ``slots`` says in which module's dictionary, and under
    which key, a parameter is looked up (one that is shared by layers in several). ``buffers`` are
    the dictionaries of the buffers of every module but the children called ``without``.
    """

    def __init__(self, network: nn.Module, without: tuple[str, ...] = ()) -> None:
        self.modules = list(network.modules())
        self.buffers = [
            module._buffers
            for name, module in network.named_modules()
            if name.partition(".")[0] not in without
        ]
        self.parameters = dict(network.named_parameters())
        self.slots = [
            (module._parameters, key, parameter)
            for module in self.modules
            for key, parameter in module._parameters.items()
            if parameter is not None
        ]
        kept = [d for m in self.modules for d in (m._modules, m._parameters)]
        self._full = [(held, list(map(id, held.values()))) for held in kept if held]
        self._empty = [held for held in kept if not held]

    def is_current(self) -> bool:
        """Whether every module still holds the very modules and parameters of then."""
        for held, then in self._full:
            if list(map(id, held.values())) != then:
                return False
        return not any(self._empty)
