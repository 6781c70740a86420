"""The mathematics: pure functions of tensors, time-major ``[T, B]``, dtype-preserving, each formula once."""

from upslope.theory import diagnostics, objectives, returns

__all__ = ["diagnostics", "objectives", "returns"]
