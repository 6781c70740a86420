"""The gradient step all pages share: loss -> gradient -> clip -> rule, on one flat vector.

A page supplies only ``loss(policy, batch, hyper) -> (scalar, metrics)``. The whole step is one pure
function of flat tensors, and the same source runs through three engines: eagerly (``step.py``), as
a recorded tape of its operations (``tape.py``), or as a compiled loop made from that tape
(``aot.py``). ``engines.py`` says which; what they need of torch's private parts is in
``torch_parts.py``.
"""

from __future__ import annotations

from upslope.optim.actor import ActorFunctions, Objective
from upslope.optim.flat import FlatParameters
from upslope.optim.minibatches import Batch, Minibatches, PerStep
from upslope.optim.rules import RULES, Moments, Rule, adam, rmsprop
from upslope.optim.step import GradientStep, Hyper, Loss

__all__ = [
    "ActorFunctions",
    "Batch",
    "FlatParameters",
    "GradientStep",
    "Hyper",
    "Loss",
    "Minibatches",
    "Moments",
    "Objective",
    "PerStep",
    "RULES",
    "Rule",
    "adam",
    "rmsprop",
]
