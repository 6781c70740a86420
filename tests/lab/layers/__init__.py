"""The layers of tests of the gradient: same data, enumerated expectation, sampling, and the ratio.

A *check* takes no argument that it needs, runs what ships, looked up when it is called, and raises
AssertionError where that is wrong. The same checks pass on clean code in ``test_layers.py`` and
fail on faulty code in ``test_mutations.py``.
"""

from __future__ import annotations

from collections.abc import Callable

from upslope.errors import StaleRolloutError

from . import enumerated, on_policy, same_data, sampled

LAYERS: dict[str, dict[str, Callable[..., None]]] = {
    "same data": same_data.CHECKS,
    "enumerated": enumerated.CHECKS,
    "sampled": sampled.CHECKS,
    "ratio": on_policy.CHECKS,
}
ALARMS = (AssertionError, StaleRolloutError)  # the library's own guard is the layer "ratio"


def alarm(check: Callable[..., None], **given: float) -> str | None:
    """What a check says against the code as it is now, or None."""
    try:
        check(**given)
    except ALARMS as said:
        return str(said).splitlines()[0] if str(said) else type(said).__name__
    return None
