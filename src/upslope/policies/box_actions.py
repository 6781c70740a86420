"""Box action spaces: a clipped Gaussian, a squashed one, and Beta (see ``actions.py``)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor, nn

from upslope.errors import UnsupportedSpaceError
from upslope.policies.distributions import Beta, DiagonalGaussian, SquashedGaussian

LOG_STD_RANGE = (-10.0, 2.0)
EDGE = {torch.float32: 1e-6, torch.float64: 1e-12}  # kept away from 0 and 1, where logs end


class GaussianActions(nn.Module):
    """A Box action space under a Gaussian whose log standard deviation is the same in every state.

    Where both bounds are finite (and less than 1e6 apart) the Gaussian lives in units of half the
    range, centred: -1 is ``low`` and 1 ``high``. What falls outside is clipped for the environment;
    the log-probability stays that of the sampled action, so the clip is part of the environment and
    no bias (Fujita & Maeda 2018).
    """

    name = "gaussian"
    n_mask = 0

    def __init__(self, space: spaces.Box, log_std_init: float, dtype: torch.dtype) -> None:
        super().__init__()
        self.n_outputs = int(np.prod(space.shape, dtype=int))
        self.noise_shape = (self.n_outputs,)
        self._numpy_dtype = np.float32 if dtype == torch.float32 else np.float64
        self._env_shape, self._env_dtype = space.shape, space.dtype
        low, high = space.low.reshape(-1).astype(float), space.high.reshape(-1).astype(float)
        with np.errstate(invalid="ignore", over="ignore"):
            bounded = is_bounded(space)
            self._centre = np.where(bounded, (low + high) / 2, 0.0).astype(self._numpy_dtype)
            self._scale = np.where(bounded, (high - low) / 2, 1.0).astype(self._numpy_dtype)
        self._low, self._high = space.low.reshape(-1), space.high.reshape(-1)
        self._is_unit = bool((self._scale == 1).all() and (self._centre == 0).all())
        self._is_alike = self._numpy_dtype == space.dtype and len(space.shape) == 1
        self.log_std = nn.Parameter(torch.full((self.n_outputs,), float(log_std_init), dtype=dtype))

    def bounded_log_std(self) -> Tensor:
        """log sigma ``[d]``, kept inside ``LOG_STD_RANGE``."""
        return self.log_std.clamp(*LOG_STD_RANGE)

    def distribution(self, outputs: Tensor, mask: Tensor | None = None) -> DiagonalGaussian:
        """Means ``[..., d]`` to a distribution; a mask has no meaning here."""
        return DiagonalGaussian(outputs, self.bounded_log_std())

    def draw_noise(self, rng: np.random.Generator, shape: tuple[int, ...]) -> NDArray[Any]:
        """Standard normal noise ``[*shape, d]`` in the policy's dtype."""
        return rng.standard_normal((*shape, *self.noise_shape), dtype=self._numpy_dtype)

    def std(self) -> Any:
        """sigma ``[d]`` as an array: computed once a rollout, as it is the same in every state."""
        return self.bounded_log_std().detach().exp().cpu().numpy()

    def sample(self, outputs: Any, noise: Any, std: Any, mask: Any = None) -> Any:
        """Means, standard normal noise and sigma to actions ``[..., d]``, arrays or tensors."""
        return outputs + std * noise

    def mode(self, outputs: Any, mask: Any = None) -> Any:
        """The means."""
        return outputs

    def to_env(self, actions: NDArray[Any]) -> NDArray[Any]:
        """Sampled actions ``[B, d]`` to the environment's units, shape, dtype and bounds."""
        scaled = actions if self._is_unit else actions * self._scale + self._centre
        clipped: NDArray[Any] = np.minimum(np.maximum(scaled, self._low), self._high)
        if self._is_alike:
            return clipped
        return clipped.astype(self._env_dtype, copy=False).reshape(-1, *self._env_shape)

    def zeros(self, n: int) -> NDArray[Any]:
        """Room for the sampled actions of ``n`` environments."""
        return np.zeros((n, self.n_outputs), self._numpy_dtype)

    def clipped_share(self, actions: NDArray[Any]) -> float:
        """Share of action components that the bounds clip."""
        if actions.size == 0:
            return 0.0
        scaled = actions * self._scale + self._centre
        return float(np.mean((scaled < self._low) | (scaled > self._high)))


class SquashedActions(GaussianActions):
    """A Box under tanh of a Gaussian, spread over the range; components without bounds stay normal.

    A rollout stores the action before the tanh. Nothing is clipped.
    """

    name = "squashed gaussian (entropy estimated by quadrature)"

    def __init__(self, space: spaces.Box, log_std_init: float, dtype: torch.dtype) -> None:
        super().__init__(space, log_std_init, dtype)
        self._bounded = is_bounded(space)

    def distribution(self, outputs: Tensor, mask: Tensor | None = None) -> SquashedGaussian:
        """Means ``[..., d]`` before the tanh to a distribution; a mask has no meaning here."""
        bounded = torch.from_numpy(self._bounded).to(outputs.device)
        return SquashedGaussian(outputs, self.bounded_log_std(), bounded)

    def to_env(self, actions: NDArray[Any]) -> NDArray[Any]:
        """Actions ``[B, d]`` before the tanh to the environment's units, shape and dtype."""
        return super().to_env(np.where(self._bounded, np.tanh(actions), actions))

    def clipped_share(self, actions: NDArray[Any]) -> float:
        """Share of action components that the bounds clip: none that has two of them."""
        return super().clipped_share(
            np.where(self._bounded, np.tanh(actions) * (1 - 1e-6), actions)
        )


class BetaActions(nn.Module):
    """A Box with finite bounds under Beta distributions, whose two numbers hang on the state.

    A rollout stores the action as a share of the range, in (0, 1). Nothing is clipped.
    """

    name = "beta"
    n_mask = 0

    def __init__(self, space: spaces.Box, dtype: torch.dtype) -> None:
        super().__init__()
        if not is_bounded(space).all():
            raise UnsupportedSpaceError(
                f"action_dist=beta needs finite bounds (less than 1e6 apart), not {space}: "
                "use --action-dist gaussian"
            )
        size = int(np.prod(space.shape, dtype=int))
        self.n_outputs, self.noise_shape = 2 * size, (size,)
        self._edge = EDGE[dtype]
        self._numpy_dtype = np.float32 if dtype == torch.float32 else np.float64
        self._low, self._high = space.low.reshape(-1), space.high.reshape(-1)
        self._env_shape, self._env_dtype = space.shape, space.dtype

    def distribution(self, outputs: Tensor, mask: Tensor | None = None) -> Beta:
        """Outputs ``[..., 2 d]`` to a distribution; a mask has no meaning here."""
        return Beta(outputs)

    def draw_noise(self, rng: np.random.Generator, shape: tuple[int, ...]) -> NDArray[Any]:
        """Uniform noise ``[*shape, d]``, float64: the quantiles to be drawn."""
        return rng.random((*shape, *self.noise_shape))

    def std(self) -> Any:
        """Nothing: the spread is part of the outputs."""
        return None

    def sample(self, outputs: Any, noise: Any, std: Any, mask: Any = None) -> Any:
        """Outputs ``[B, 2 d]`` and quantiles to actions ``[B, d]`` in (0, 1)."""
        from scipy.special import betaincinv

        alpha, beta = np.split(1 + np.logaddexp(0, outputs.astype(np.float64)), 2, -1)
        return self._inside(betaincinv(alpha, beta, noise))

    def mode(self, outputs: Any, mask: Any = None) -> Any:
        """The most probable actions."""
        return self._inside(Beta(torch.from_numpy(np.array(outputs))).mode().numpy())

    def _inside(self, share: NDArray[Any]) -> NDArray[Any]:
        inside: NDArray[Any] = np.clip(share, self._edge, 1 - self._edge)
        return inside.astype(self._numpy_dtype)

    def to_env(self, actions: NDArray[Any]) -> NDArray[Any]:
        """Shares of the range ``[B, d]`` to the environment's units, shape and dtype."""
        scaled = self._low + actions * (self._high - self._low)
        clipped: NDArray[Any] = np.clip(scaled, self._low, self._high)  # of rounding alone
        return clipped.astype(self._env_dtype, copy=False).reshape(-1, *self._env_shape)

    def zeros(self, n: int) -> NDArray[Any]:
        """Room for the sampled actions of ``n`` environments."""
        return np.zeros((n, *self.noise_shape), self._numpy_dtype)

    def clipped_share(self, actions: NDArray[Any]) -> float:
        """Nothing is clipped."""
        return 0.0


def is_bounded(space: spaces.Box) -> NDArray[np.bool_]:
    """Which components ``[d]`` have finite bounds less than 1e6 apart."""
    low, high = space.low.reshape(-1).astype(float), space.high.reshape(-1).astype(float)
    with np.errstate(invalid="ignore", over="ignore"):
        bounded: NDArray[np.bool_] = np.isfinite(low) & np.isfinite(high) & (high - low < 1e6)
    return bounded
