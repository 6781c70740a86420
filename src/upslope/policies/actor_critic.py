"""The policy: normalise -> encode -> remember -> heads, for acting, for updates, for people."""

from __future__ import annotations

from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from upslope.errors import ConfigError
from upslope.policies.actions import make_actions
from upslope.policies.distributions import Distribution
from upslope.policies.encoders import Encoder, FeaturesFactory, linear, mlp, user_features
from upslope.policies.held import Held
from upslope.policies.memory import Memory, Past
from upslope.policies.normalizer import RewardNormalizer, make_normalizer
from upslope.policies.observations import (
    as_numbers,
    is_normalised,
    is_plain_vector,
    part_of,
    parts,
    replaced,
)
from upslope.seeding import SeedTree
from upslope.trees import Tree, leaves, map_tree, take

STATISTICS = ("obs_normalizer", "reward_normalizer")  # what they make of rows, a step is given
DTYPES = {"float32": torch.float32, "float64": torch.float64}


class Evaluation(NamedTuple):
    """log pi(a|s), entropy and V(s) of each row, all ``[N]``."""

    log_prob: Tensor
    entropy: Tensor
    value: Tensor


class ActorCritic(nn.Module):
    """A policy and a value function over one observation space.

    Args:
        observation_space: Box, Discrete, MultiDiscrete, MultiBinary, or Dict or Tuple of these.
        action_space: the same, where Box is one of floats.
        seed: initial weights; the global RNG is neither read nor written.
        net_arch: hidden widths, ``(64, 64)`` or ``{"pi": (64, 64), "vf": (64, 64)}``.
        activation_fn: tanh, relu, elu, gelu or silu.
        shared_network: one trunk (that of ``pi``) for both heads.
        ortho_init: orthogonal weights with gains sqrt 2, 0.01 (policy head) and 1 (value head).
        action_dist: distribution over Box actions: gaussian, squashed or beta.
        log_std_init: initial log standard deviation of Gaussian actions.
        cnn: for images: auto, nature, impala or small.
        memory, memory_size: none, gru or lstm between the hidden layers and the heads, one for
            actor and one for critic, and the width of its state.
        norm_obs, clip_obs: observation normalisation inside the policy.
        norm_reward, clip_reward, gamma: return normalisation, whose statistics live here too.
        dtype: "float32" or "float64".
        features: a user's ``observation_space -> nn.Module``, put before the hidden layers.

    Raises:
        UnsupportedSpaceError: for any other space.
        ConfigError: if ``features`` or ``cnn`` cannot be used.

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
        action_dist: str = "gaussian",
        log_std_init: float = 0.0,
        cnn: str = "auto",
        memory: str = "none",
        memory_size: int = 64,
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
        self._parts = list(parts(observation_space))
        self._is_plain = is_plain_vector(observation_space)
        arch = net_arch if isinstance(net_arch, dict) else {"pi": net_arch, "vf": net_arch}
        self.obs_normalizer = make_normalizer(observation_space, clip_obs) if norm_obs else None
        self.reward_normalizer = RewardNormalizer(gamma, clip_reward) if norm_reward else None

        seeds = SeedTree(seed)

        def body(part: str) -> tuple[nn.Sequential, int]:
            layers: list[nn.Module] = []
            if features is not None:
                module, width = user_features(
                    features,
                    observation_space,
                    seeds.integer("features", part == "vf"),
                    self.dtype,
                    self.prepare,
                )
                layers.append(module)
            elif self._is_plain:
                width = (observation_space.shape or ())[0]
            else:
                generator = seeds.torch_generator("encoder", part == "vf")
                encoder = Encoder(observation_space, cnn, ortho_init, generator, self.dtype)
                layers, width = [encoder], encoder.width
            generator = seeds.torch_generator("weights", part == "vf")
            hidden = mlp(width, arch[part], activation_fn, ortho_init, generator, self.dtype)
            return nn.Sequential(*layers, *hidden), arch[part][-1] if arch[part] else width

        def remembering(part: str, width: int) -> tuple[Memory | None, int]:
            if memory == "none":
                return None, width
            generator = seeds.torch_generator("memory", part == "vf")
            made = Memory(memory, width, memory_size, ortho_init, generator, self.dtype)
            return made, memory_size

        def head(name: str, inputs: int, outputs: int, gain: float) -> nn.Linear:
            generator = seeds.torch_generator(name)
            return linear(inputs, outputs, gain if ortho_init else None, generator, self.dtype)

        self.actions = make_actions(action_space, log_std_init, self.dtype, action_dist)
        self.actor, width = body("pi")
        self.actor_memory, width = remembering("pi", width)
        self.actor_head = head("actor_head", width, self.actions.n_outputs, 0.01)
        if not shared_network:
            self.critic, width = body("vf")
            if features is not None and self.critic[0] is self.actor[0]:
                raise ConfigError(
                    "the features factory returned one module twice: make a new one in each call, "
                    "or set shared_network"
                )
            self.critic_memory, width = remembering("vf", width)
        self.critic_head = head("critic_head", width, 1, 1.0)
        self._updates = 0
        self._held: list[Held] = []  # no module, so that none is registered

    @property
    def device(self) -> torch.device:
        """Where the weights live."""
        return self.actor_head.weight.device

    @property
    def version(self) -> int:
        """A number that grows with every change of a weight or statistic, by whatever optimiser."""
        version = self._updates
        for parameter in self.held.parameters.values():
            version += parameter._version
        if self.obs_normalizer is not None:
            version += sum(buffer._version for buffer in self.obs_normalizer.buffers())
        return version

    @property
    def held(self) -> Held:
        """The parameters and their places; the same object until one of them is exchanged."""
        if not (self._held and self._held[0].is_current()):
            self._held = [Held(self, without=STATISTICS)]
        return self._held[0]

    def count_update(self) -> None:
        """Say that the weights moved in a way torch does not count: through their flat vector."""
        self._updates += 1

    def part_names(self, part: str) -> list[str]:
        """Names of the parameters of ``all``, ``actor`` or ``critic``, the actor's first.

        Raises:
            ConfigError: for ``actor`` or ``critic`` of a shared network: they cannot move apart.
        """
        names = list(self.held.parameters)
        critic = [name for name in names if name.startswith("critic")]
        actor = [name for name in names if not name.startswith("critic")]
        if part != "all" and self.shared_network:
            raise ConfigError(
                "a shared network cannot train its actor and critic apart: leave shared_network off"
            )
        return {"all": actor + critic, "actor": actor, "critic": critic}[part]

    @property
    def has_memory(self) -> bool:
        """Whether rows must be given with their past, whole sequences at a time."""
        return self.actor_memory is not None

    def blank_state(self, n: int) -> Tree:
        """State of ``n`` environments before they saw anything; ``()`` without memory."""
        if self.actor_memory is None:
            return ()
        state = {"actor": self.actor_memory.blank(n)}
        if not self.shared_network:
            assert self.critic_memory is not None
            state["critic"] = self.critic_memory.blank(n)
        return state

    def prepare(self, obs: Tree) -> Tree:
        """Raw observations ``[..., *shape]`` to inputs: numbers in the policy's dtype, normalised.

        Choices and large images stay as they are up to the layers that read them.
        """
        normalized = obs if self.obs_normalizer is None else self.obs_normalizer(obs)
        if self._is_plain:
            return normalized.to(self.dtype)
        numbers = {
            path: as_numbers(part_of(normalized, path), self.dtype)
            for path, part in self._parts
            if is_normalised(part)
        }
        return replaced(normalized, numbers)

    def outputs(self, inputs: Tree, past: Past | None = None) -> tuple[Tensor, Tree]:
        """Prepared inputs ``[N, ...]`` to the numbers ``[N, n_outputs]`` that actions hang on.

        Without a ``past`` each row is the first of its episode. The second result is the actor's
        state at the end of each segment of rows (``()`` without memory).
        """
        hidden, after = self._hidden("actor", inputs, past)
        return self.actor_head(hidden), after

    def values(self, inputs: Tree, past: Past | None = None) -> Tensor:
        """Prepared inputs ``[N, ...]`` to V(s) ``[N]``."""
        hidden, _ = self._hidden(self._critic, inputs, past)
        return self.critic_head(hidden).squeeze(-1)  # type: ignore[no-any-return]

    def values_along(
        self, inputs: Tree, past: Past | None, ends: Tensor, successors: Tree
    ) -> tuple[Tensor, Tensor]:
        """V of rows, and V of what followed some of them.

        Args:
            inputs: prepared, ``[N, ...]``.
            past: of those rows.
            ends: ``[K]`` rows after which no row of their sequence comes.
            successors: prepared, ``[K, ...]``: what was seen after those.
        """
        hidden, after = self._hidden(self._critic, inputs, past)
        values = self.critic_head(hidden).squeeze(-1)
        then = None
        if past is not None:
            state = {self._critic: take(after, past.segments.of_row[ends])}
            then = Past(torch.zeros(len(ends), dtype=torch.bool, device=ends.device), state)
        return values, self.values(successors, then)

    def _hidden(self, part: str, inputs: Tree, past: Past | None) -> tuple[Tensor, Tree]:
        """What the head of ``actor`` or ``critic`` reads, and the state after each segment."""
        hidden = getattr(self, part)(inputs)
        memory = getattr(self, f"{part}_memory")
        if memory is None:
            return hidden, ()
        if past is None:
            past = Past.none(len(hidden), self.blank_state(len(hidden)))
        after: tuple[Tensor, Tree] = memory(hidden, past.segments, past.state[part])
        return after

    @property
    def _critic(self) -> str:
        return "actor" if self.shared_network else "critic"

    def distribution_of(
        self, inputs: Tree, past: Past | None = None, mask: Tensor | None = None
    ) -> Distribution:
        """pi(.|s) for prepared ``inputs [N, ...]``, differentiable in the weights."""
        return self.actions.distribution(self.outputs(inputs, past)[0], mask)

    def evaluate_actions(
        self, inputs: Tree, actions: Tree, past: Past | None = None, mask: Tensor | None = None
    ) -> Evaluation:
        """Log-probability, entropy and value of ``actions [N, ...]`` in prepared ``inputs``."""
        hidden, _ = self._hidden("actor", inputs, past)
        distribution = self.actions.distribution(self.actor_head(hidden), mask)
        if not self.shared_network:
            hidden, _ = self._hidden("critic", inputs, past)
        value = self.critic_head(hidden).squeeze(-1)
        return Evaluation(distribution.log_prob(actions), distribution.entropy(), value)

    def step(self, obs: Tree, state: Tree, episode_start: Tensor) -> tuple[Tensor, Tree]:
        """Outputs ``[B, n_outputs]`` for raw ``obs [B, ...]`` tensors, and both nets' next state.

        Where ``episode_start [B]`` the state before is blank, whatever ``state [B, ...]`` says.
        """
        inputs = self.prepare(obs)
        if not self.has_memory:
            return self.outputs(inputs)[0], ()
        past = Past(episode_start, state)
        outputs, actor = self.outputs(inputs, past)
        after = {"actor": actor}
        if not self.shared_network:
            after["critic"] = self._hidden("critic", inputs, past)[1]
        return outputs, after

    @torch.no_grad()
    def act(
        self,
        obs: Tree,
        state: Tree = (),
        mask: NDArray[np.bool_] | None = None,
        noise: NDArray[Any] | None = None,
        episode_start: NDArray[np.bool_] | None = None,
    ) -> tuple[Tree, Tree]:
        """Raw observations ``[B, ...]`` to actions: samples with ``noise``, the mode without.

        ``noise`` comes from ``policy.actions.draw_noise``. The actions are in the policy's own
        units: ``policy.actions.to_env`` turns them into what ``env.step`` takes. ``state`` is what
        the last call returned, ``()`` where every row begins an episode.
        """
        tensors = map_tree(lambda x: torch.as_tensor(x, device=self.device), obs)
        n = len(leaves(tensors)[0])
        begins = np.zeros(n, dtype=bool) if episode_start is None else np.asarray(episode_start)
        if self.has_memory and isinstance(state, tuple):
            state, begins = self.blank_state(n), np.ones(n, dtype=bool)
        start = torch.as_tensor(begins, dtype=torch.bool, device=self.device)
        outputs, state = self.step(tensors, state, start)
        numbers = outputs.cpu().numpy()
        if noise is None:
            return self.actions.mode(numbers, mask), state
        return self.actions.sample(numbers, noise, self.actions.std(), mask), state

    def distribution(self, obs: Any, mask: Tensor | None = None) -> Distribution:
        """pi(.|s) for raw observations ``[..., *shape]``, differentiable in the weights.

        With memory each is the first of its episode.
        """
        return self.actions.distribution(self.outputs(self._inputs(obs))[0], mask)

    def value(self, obs: Any) -> Tensor:
        """V(s) ``[...]`` for raw observations ``[..., *shape]``, differentiable in the weights."""
        return self.values(self._inputs(obs))

    def _inputs(self, obs: Any) -> Tree:
        return self.prepare(map_tree(lambda x: torch.as_tensor(x, device=self.device), obs))
