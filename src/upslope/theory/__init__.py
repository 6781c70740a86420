"""The mathematics: pure functions of time-major tensors ``[T, B]``, dtypes kept, each once."""

from upslope.theory import diagnostics, objectives, returns, trust_region

__all__ = ["diagnostics", "objectives", "returns", "trust_region"]
