"""The mathematics: pure functions of time-major tensors ``[T, B]``, dtypes kept, each once."""

from upslope.theory import diagnostics, objectives, returns

__all__ = ["diagnostics", "objectives", "returns"]
