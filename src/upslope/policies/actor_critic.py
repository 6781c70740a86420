"""The policy: normalise -> encode -> heads, for acting, for updates, and for people."""

from __future__ import annotations

from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from upslope.errors import ConfigError
from upslope.policies.distributions import Distribution, make_actions
from upslope.policies.encoders import FeaturesFactory, linear, mlp, observation_shape, user_features
from upslope.policies.normalizer import ObservationNormalizer, RewardNormalizer
from upslope.seeding import SeedTree
from upslope.trees import Tree

DTYPES = {"float32": torch.float32, "float64": torch.float64}


class Evaluation(NamedTuple):
    """log pi(a|s), entropy and V(s) of each row, all ``[N]``, and the recurrent state after."""

    log_prob: Tensor
    entropy: Tensor
    value: Tensor
    state: Tree


class ActorCritic(nn.Module):
    """A policy and a value function over one observation space.

    Args:
        observation_space: a one-dimensional Box.
        action_space: Discrete or Box of floats.
        seed: initial weights; the global RNG is neither read nor written.
        net_arch: hidden widths, ``(64, 64)`` or ``{"pi": (64, 64), "vf": (64, 64)}``.
        activation_fn: tanh, relu, elu, gelu or silu.
        shared_network: one trunk (that of ``pi``) for both heads.
        ortho_init: orthogonal weights with gains sqrt 2, 0.01 (policy head) and 1 (value head).
        log_std_init: initial log standard deviation of Gaussian actions.
        norm_obs, clip_obs: observation normalisation inside the policy.
        norm_reward, clip_reward, gamma: return normalisation, whose statistics live here too.
        dtype: "float32" or "float64".
        features: a user's ``observation_space -> nn.Module``, put before the hidden layers.

    Raises:
        UnsupportedSpaceError: for any other space.
        ConfigError: if ``features`` cannot be used.

    Source of the initial gains: Engstrom et al. 2020; Andrychowicz et al. 2021.
    """

    def __init__(
        self,
        observation_space: gym.Space[Any],
        action_space: gym.Space[Any],
        *,
        seed: int = 0,
        net_arch: Any = (64, 64),
        activation_fn: str = "tanh",
        shared_network: bool = False,
        ortho_init: bool = True,
        log_std_init: float = 0.0,
        norm_obs: bool = False,
        clip_obs: float = 10.0,
        norm_reward: bool = False,
        clip_reward: float = 10.0,
        gamma: float = 0.99,
        dtype: str = "float32",
        features: FeaturesFactory | None = None,
    ) -> None:
        super().__init__()
        self.observation_space, self.action_space = observation_space, action_space
        self.dtype, self.shared_network = DTYPES[dtype], shared_network
        shape = observation_shape(observation_space)
        arch = net_arch if isinstance(net_arch, dict) else {"pi": net_arch, "vf": net_arch}
        self.obs_normalizer = ObservationNormalizer(shape, clip_obs) if norm_obs else None
        self.reward_normalizer = RewardNormalizer(gamma, clip_reward) if norm_reward else None

        seeds = SeedTree(seed)

        def body(part: str) -> tuple[nn.Sequential, int]:
            layers, width = [], shape[0]
            if features is not None:
                module, width = user_features(
                    features, observation_space, seeds.integer("features", part == "vf"), self.dtype
                )
                layers.append(module)
            generator = seeds.torch_generator("weights", part == "vf")
            hidden = mlp(width, arch[part], activation_fn, ortho_init, generator, self.dtype)
            return nn.Sequential(*layers, *hidden), arch[part][-1] if arch[part] else width

        def head(name: str, inputs: int, outputs: int, gain: float) -> nn.Linear:
            generator = seeds.torch_generator(name)
            return linear(inputs, outputs, gain if ortho_init else None, generator, self.dtype)

        self.actions = make_actions(action_space, log_std_init, self.dtype)
        self.actor, width = body("pi")
        self.actor_head = head("actor_head", width, self.actions.n_outputs, 0.01)
        if not shared_network:
            self.critic, width = body("vf")
            if features is not None and self.critic[0] is self.actor[0]:
                raise ConfigError(
                    "the features factory returned one module twice: make a new one in each call, "
                    "or set shared_network"
                )
        self.critic_head = head("critic_head", width, 1, 1.0)
        self._updates = 0

    @property
    def device(self) -> torch.device:
        """Where the weights live."""
        return self.actor_head.weight.device

    @property
    def version(self) -> int:
        """A number that grows with every change of a weight or statistic, by whatever optimiser."""
        tensors: list[Tensor] = list(self.parameters())
        if self.obs_normalizer is not None:
            tensors += self.obs_normalizer.buffers()
        return self._updates + sum(tensor._version for tensor in tensors)

    def count_update(self) -> None:
        """Say that the weights moved in a way torch does not count: through their flat vector."""
        self._updates += 1

    def part_names(self, part: str) -> list[str]:
        """Names of the parameters of ``all``, ``actor`` or ``critic``, the actor's first.

        Raises:
            ConfigError: for ``actor`` or ``critic`` of a shared network: they cannot move apart.
        """
        names = [name for name, _ in self.named_parameters()]
        critic = [name for name in names if name.startswith("critic")]
        actor = [name for name in names if not name.startswith("critic")]
        if part != "all" and self.shared_network:
            raise ConfigError(
                "a shared network cannot train its actor and critic apart: leave shared_network off"
            )
        return {"all": actor + critic, "actor": actor, "critic": critic}[part]

    def prepare(self, obs: Tree) -> Tree:
        """Raw observations ``[..., *shape]`` to inputs: in the policy's dtype, maybe normalised."""
        normalized = obs if self.obs_normalizer is None else self.obs_normalizer(obs)
        return normalized.to(self.dtype)

    def outputs(self, inputs: Tree, state: Tree = ()) -> tuple[Tensor, Tree]:
        """Prepared inputs ``[N, ...]`` to the numbers ``[N, n_outputs]`` that actions hang on."""
        return self.actor_head(self.actor(inputs)), state

    def values(self, inputs: Tree, state: Tree = ()) -> Tensor:
        """Prepared inputs ``[N, ...]`` to V(s) ``[N]``."""
        trunk = self.actor if self.shared_network else self.critic
        return self.critic_head(trunk(inputs)).squeeze(-1)  # type: ignore[no-any-return]

    def distribution_of(self, inputs: Tree, mask: Tensor | None = None) -> Distribution:
        """pi(.|s) for prepared ``inputs [N, ...]``, differentiable in the weights."""
        return self.actions.distribution(self.outputs(inputs)[0], mask)

    def evaluate_actions(
        self, inputs: Tree, actions: Tree, state: Tree = (), mask: Tensor | None = None
    ) -> Evaluation:
        """Log-probability, entropy and value of ``actions [N, ...]`` in prepared ``inputs``."""
        if self.shared_network:
            hidden = self.actor(inputs)
            outputs, value = self.actor_head(hidden), self.critic_head(hidden).squeeze(-1)
        else:
            outputs, _ = self.outputs(inputs, state)
            value = self.values(inputs, state)
        distribution = self.actions.distribution(outputs, mask)
        return Evaluation(distribution.log_prob(actions), distribution.entropy(), value, state)

    @torch.no_grad()
    def act(
        self,
        obs: NDArray[Any],
        state: Tree = (),
        mask: NDArray[np.bool_] | None = None,
        noise: NDArray[Any] | None = None,
    ) -> tuple[NDArray[Any], Tree]:
        """Raw observations ``[B, ...]`` to actions: samples with ``noise``, the mode without.

        ``noise`` comes from ``policy.actions.draw_noise``. The actions are in the policy's own
        units: ``policy.actions.to_env`` turns them into what ``env.step`` takes.
        """
        outputs, state = self.outputs(self.prepare(torch.as_tensor(obs, device=self.device)), state)
        numbers = outputs.cpu().numpy()
        if noise is None:
            return self.actions.mode(numbers, mask), state
        return self.actions.sample(numbers, noise, self.actions.std(), mask), state

    def distribution(self, obs: Any, mask: Tensor | None = None) -> Distribution:
        """pi(.|s) for raw observations ``[..., *shape]``, differentiable in the weights."""
        outputs, _ = self.outputs(self.prepare(torch.as_tensor(obs, device=self.device)))
        return self.actions.distribution(outputs, mask)

    def value(self, obs: Any) -> Tensor:
        """V(s) ``[...]`` for raw observations ``[..., *shape]``, differentiable in the weights."""
        return self.values(self.prepare(torch.as_tensor(obs, device=self.device)))
