"""The gradient lab: exact answers on small problems, against which every estimator is measured."""

from upslope.lab import baselines, bias, bounds, exact, floor, linear_quadratic, moments, tests

__all__ = [
    "baselines", "bias", "bounds", "exact", "floor", "linear_quadratic", "moments", "tests",
]  # fmt: skip
