"""Action spaces as distributions: log-probability, entropy, sampling from *given* noise.

Each kind of action is a small module with three faces: numbers out of the network become a
distribution (:meth:`distribution`), numbers plus noise become a sampled action (:meth:`sample`,
written so that the same line runs on NumPy arrays while acting and on tensors elsewhere), and a
sampled action becomes what ``env.step`` takes (:meth:`to_env`). A rollout stores the sampled
action; its log-probability is the sampled action's.
"""

from __future__ import annotations

import math
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from upslope.errors import UnsupportedSpaceError

LOG_STD_RANGE = (-10.0, 2.0)
MASKED = -1e30  # logit of a choice that is not allowed: probability 0, gradients still finite
_LOG_SQRT_2PI = 0.5 * math.log(2 * math.pi)


class Categorical:
    """Distribution over ``n`` choices from logits ``[..., n]``; only where ``mask`` is True."""

    def __init__(self, logits: Tensor, mask: Tensor | None = None) -> None:
        if mask is not None:
            logits = logits.masked_fill(~mask, MASKED)
        self.logits = logits
        self.log_probs = logits.log_softmax(-1)

    def log_prob(self, action: Tensor) -> Tensor:
        """Log-probability of ``action [...]`` (integers): ``[...]``."""
        return self.log_probs.gather(-1, action.unsqueeze(-1)).squeeze(-1)

    def entropy(self) -> Tensor:
        """Exact entropy in nats: ``[...]``."""
        return -(self.log_probs.exp() * self.log_probs).sum(-1)

    def kl(self, other: Categorical) -> Tensor:
        """KL(self || other) in nats: ``[...]``."""
        return (self.log_probs.exp() * (self.log_probs - other.log_probs)).sum(-1)

    def rounding(self, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What rounding of the log-probability hangs on (arguments of Eq. 11.7): the logits."""
        one = torch.ones_like(self.logits)
        return one, self.logits * (self.logits > MASKED), one

    def mode(self) -> Tensor:
        """The most probable choice: ``[...]``."""
        return self.logits.argmax(-1)


class DiagonalGaussian:
    """Independent normals with ``mean [..., d]`` and ``log_std [d]``."""

    def __init__(self, mean: Tensor, log_std: Tensor) -> None:
        self.mean, self.log_std = mean, log_std

    def log_prob(self, action: Tensor) -> Tensor:
        """Log-density of ``action [..., d]``: ``[...]``."""
        z = (action - self.mean) * (-self.log_std).exp()
        constant = self.log_std.sum() + _LOG_SQRT_2PI * self.log_std.numel()
        return -0.5 * z.square().sum(-1) - constant

    def entropy(self) -> Tensor:
        """Exact differential entropy in nats: ``[...]``."""
        entropy = (self.log_std + _LOG_SQRT_2PI + 0.5).sum()
        return entropy.expand(self.mean.shape[:-1])

    def kl(self, other: DiagonalGaussian) -> Tensor:
        """KL(self || other) in nats: ``[...]``."""
        gap = ((self.mean - other.mean) * (-other.log_std).exp()).square()
        ratio = (2 * (self.log_std - other.log_std)).exp()
        return (other.log_std - self.log_std + 0.5 * (ratio + gap - 1)).sum(-1)

    def rounding(self, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What rounding of the log-probability hangs on (arguments of Eq. 11.7): z, mean, sigma."""
        sigma = self.log_std.exp()
        return (action - self.mean) / sigma, self.mean, sigma

    def mode(self) -> Tensor:
        """The mean: ``[..., d]``."""
        return self.mean


Distribution = Categorical | DiagonalGaussian


class CategoricalActions(nn.Module):
    """A Discrete action space with any ``start``."""

    shape: tuple[int, ...] = ()
    sampled_dtype = torch.int64

    def __init__(self, space: gym.spaces.Discrete) -> None:
        super().__init__()
        self.n_outputs = int(space.n)
        self.noise_shape = (self.n_outputs,)
        self._start = space.start
        self._env_dtype = space.dtype

    def distribution(self, outputs: Tensor, mask: Tensor | None = None) -> Categorical:
        """Logits ``[..., n]`` to a distribution."""
        return Categorical(outputs, mask)

    def draw_noise(self, rng: np.random.Generator, shape: tuple[int, ...]) -> NDArray[Any]:
        """Gumbel noise ``[*shape, n]``, float32: argmax of logits plus it is an exact sample."""
        uniform = rng.random((*shape, *self.noise_shape), dtype=np.float32)
        return -np.log(-np.log(np.maximum(uniform, 1e-30)) + 1e-30)

    def sample(self, outputs: Any, noise: Any, std: Any, mask: Any = None) -> Any:
        """Logits ``[..., n]`` and noise to choices ``[...]``, on arrays or tensors."""
        scores = outputs + noise
        if mask is not None:
            scores = scores + (~mask) * MASKED
        return scores.argmax(-1)

    def mode(self, outputs: Any, mask: Any = None) -> Any:
        """Logits to the most probable choices."""
        return self.sample(outputs, 0.0, None, mask)

    def std(self) -> Any:
        """Nothing: a categorical has no spread of its own (the Gaussian's counterpart)."""
        return None

    def to_env(self, actions: NDArray[Any]) -> NDArray[Any]:
        """Choices 0..n-1 to the environment's own ``start .. start + n - 1``."""
        return (actions + self._start).astype(self._env_dtype, copy=False)

    def clipped_share(self, actions: NDArray[Any]) -> float:
        """No discrete action is ever clipped."""
        return 0.0


class GaussianActions(nn.Module):
    """A Box action space under a Gaussian whose log standard deviation is the same in every state.

    Where both bounds are finite (and less than 1e6 apart) the Gaussian lives in units of half the
    range, centred: -1 is ``low`` and 1 ``high``. What falls outside is clipped for the environment;
    the log-probability stays that of the sampled action, so the clip is part of the environment and
    no bias (Fujita & Maeda 2018).
    """

    sampled_dtype: torch.dtype

    def __init__(self, space: gym.spaces.Box, log_std_init: float, dtype: torch.dtype) -> None:
        super().__init__()
        self.n_outputs = int(np.prod(space.shape, dtype=int))
        self.shape = (self.n_outputs,)
        self.noise_shape = (self.n_outputs,)
        self.sampled_dtype = dtype
        self._numpy_dtype = np.float32 if dtype == torch.float32 else np.float64
        self._env_shape, self._env_dtype = space.shape, space.dtype
        low, high = space.low.reshape(-1).astype(float), space.high.reshape(-1).astype(float)
        with np.errstate(invalid="ignore", over="ignore"):
            bounded = np.isfinite(low) & np.isfinite(high) & (high - low < 1e6)
            self._centre = np.where(bounded, (low + high) / 2, 0.0).astype(self._numpy_dtype)
            self._scale = np.where(bounded, (high - low) / 2, 1.0).astype(self._numpy_dtype)
        self._low, self._high = space.low.reshape(-1), space.high.reshape(-1)
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
        scaled = actions * self._scale + self._centre
        clipped: NDArray[Any] = np.minimum(np.maximum(scaled, self._low), self._high)
        return clipped.astype(self._env_dtype, copy=False).reshape(-1, *self._env_shape)

    def clipped_share(self, actions: NDArray[Any]) -> float:
        """Share of action components that the bounds clip."""
        if actions.size == 0:
            return 0.0
        scaled = actions * self._scale + self._centre
        return float(np.mean((scaled < self._low) | (scaled > self._high)))


Actions = CategoricalActions | GaussianActions


def make_actions(space: gym.Space[Any], log_std_init: float, dtype: torch.dtype) -> Actions:
    """Return the actions module of a space.

    Raises:
        UnsupportedSpaceError: naming the space and what is supported.
    """
    if isinstance(space, gym.spaces.Discrete):
        return CategoricalActions(space)
    if isinstance(space, gym.spaces.Box) and space.dtype.kind == "f" and 0 not in space.shape:
        if np.isnan(space.low).any() or np.isnan(space.high).any():
            raise UnsupportedSpaceError(
                f"the action space {space} has NaN bounds: give finite bounds or infinities"
            )
        return GaussianActions(space, log_std_init, dtype)
    raise UnsupportedSpaceError(
        f"the action space {space} is not supported: Discrete and Box of floats are; "
        "wrap the environment to offer one"
    )
