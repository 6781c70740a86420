"""Which engine takes the gradient steps of a run: decided from its plan alone.

What a cache holds, how long a build took or how fast a machine is must not decide: two runs of one
seed would differ in their last bits.
"""

from __future__ import annotations

from upslope.config import Config

BUILD_PAYS = 100_000  # gradient steps, from which a compiled loop earns its build
COMPILED_ROWS = 1000  # of a gradient step, from which arithmetic decides and the tape is as fast


def planned_engine(config: Config, iterations: int) -> str:
    """Return ``aot``, ``tape`` or ``eager``: what to try first in a run of so many iterations.

    What cannot be used gives way to the next one in that order.
    """
    if config.compile == "never":
        return "eager"
    if config.rollout_steps is None:  # whole episodes: a batch's shape serves its critic alone
        fits = getattr(config, "baseline", "") == "value"
        return "tape" if fits else "eager"
    if config.compile == "always":
        return "aot"
    pays = iterations * config.updates_per_iteration >= BUILD_PAYS
    return "aot" if pays and config.rows_per_step < COMPILED_ROWS else "tape"
