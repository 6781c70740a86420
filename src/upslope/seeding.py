"""One run seed, one tree of independent streams, keyed by name and number, not by order.

A key such as ``("episode", 17)`` always gives the same stream for the same run seed, whatever else
was drawn before it, so that a new consumer moves no other and nothing has to be saved to continue a
run (numpy's ``SeedSequence``). The global random generators of Python, numpy and torch are neither
read nor written.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch

MAX_SEED = 2**31 - 1  # the largest seed every engine takes: EnvPool reads a signed 32-bit integer


@dataclass(frozen=True)
class SeedTree:
    """The streams of one run. ``seed`` is the run's seed, a non-negative integer."""

    seed: int

    def sequence(self, name: str, *numbers: int) -> np.random.SeedSequence:
        """Return the seed sequence of one consumer, e.g. ``sequence("episode", 17)``."""
        return np.random.SeedSequence(self.seed, spawn_key=(zlib.crc32(name.encode()), *numbers))

    def generator(self, name: str, *numbers: int) -> np.random.Generator:
        """Return numpy's generator of one consumer."""
        return np.random.Generator(np.random.PCG64(self.sequence(name, *numbers)))

    def integer(self, name: str, *numbers: int) -> int:
        """Return one seed in ``[0, 2**31)`` for what takes an integer, such as ``env.reset``."""
        return int(self.sequence(name, *numbers).generate_state(1)[0]) & MAX_SEED

    def torch_generator(self, name: str, *numbers: int) -> torch.Generator:
        """Return a CPU torch generator of one consumer (initial weights)."""
        import torch

        return torch.Generator().manual_seed(self.integer(name, *numbers))
