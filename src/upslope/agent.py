"""The object a user holds: learn, predict, evaluate, save, load."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from upslope import arguments
from upslope.algorithms import make_learner
from upslope.callbacks import Callback, CallbackList
from upslope.config import Config, whole_number
from upslope.envs.find import EnvLike, Source, find_environment
from upslope.envs.make import environment_settings, make_environments
from upslope.errors import ConfigError, EnvironmentFaultError, ModelFileError
from upslope.evaluation import Sample, Score, evaluate
from upslope.interrupts import Interrupted, interrupts
from upslope.policies.actor_critic import ActorCritic
from upslope.policies.encoders import FeaturesFactory
from upslope.policies.make import check_readable, find_device, make_policy
from upslope.recorder import check_buffer
from upslope.runs.policy_file import load_model, save_model
from upslope.seeding import SeedTree
from upslope.training import Event, Training
from upslope.trees import Tree, leaves

if TYPE_CHECKING:
    from upslope.runs.directory import RunDirectory

log = logging.getLogger("upslope")
OF_ENVIRONMENT = ("env_kwargs", "max_episode_steps")  # settings that another one need not know
OF_POLICY = (  # settings that a network's weights were made with
    "net_arch", "activation_fn", "shared_network", "cnn", "memory", "memory_size", "action_dist",
    "norm_obs", "clip_obs", "norm_reward", "clip_reward", "dtype",
)  # fmt: skip
EVALUATION_ENVS = 16  # slots of an evaluation; fixed, so that a score depends on nothing else


class Agent:
    """A policy, its environments and the algorithm that trains it. Use ``PPO``, ``TRPO`` and so on.

    Args:
        env: an environment id (``module:Env-v0`` works), ``my_env.py:make_env``, a ``gym.Env``, a
            factory, or a ``gymnasium.vector.VectorEnv``. ``PPO("MlpPolicy", env)`` is understood.
        policy: ``"MlpPolicy"`` or a factory ``observation_space -> torch.nn.Module`` of features.
        preset: ``"auto"`` takes the tuned settings of this environment, as the command line does.
        run_dir: where ``learn`` writes a run directory; without it nothing is written to disk.
        settings: the algorithm's settings by name (``upslope train --algo ... --help`` lists them).

    Raises:
        ConfigError: a setting that does not exist or is out of range, with its nearest or range.
        UnknownEnvironmentError, UnsupportedSpaceError: as they say.
    """

    algorithm: ClassVar[str]
    load = arguments.OnClassOnly()

    def __init__(
        self,
        env: EnvLike | None,
        *positional: Any,
        policy: str | FeaturesFactory = "MlpPolicy",
        preset: str | None = None,
        run_dir: str | os.PathLike[str] | None = None,
        **settings: Any,
    ) -> None:
        env, policy = arguments.env_and_policy(type(self).__name__, env, positional, policy)
        source = find_environment(env)
        config = arguments.make_config(self.algorithm, source, preset, settings)
        self._features = arguments.features_of(policy)
        if not isinstance(run_dir, (str, os.PathLike, type(None))):
            raise ConfigError(f"run_dir={run_dir!r} is no path: give a string or a pathlib.Path")
        self.run_dir = None if run_dir is None else Path(run_dir)
        self._begin(source, config, None)
        _ = self.training  # made now, so that whatever is wrong with the environment is said now

    def _begin(self, source: Source | None, config: Config, policy: ActorCritic | None) -> None:
        """Hold the parts; a policy that exists already needs no environment before it learns."""
        self.config = config
        self.source = None if source is None else self._prepared(source)
        self._training: Training | None = None
        self._predict_noise = SeedTree(config.seed).generator("predict")
        if policy is not None:
            self.policy = policy.to(find_device(config.device))

    @property
    def training(self) -> Training:
        """The run in progress: its counters, environments and optimisers; made when needed."""
        if self._training is None:
            source, config = self._needed_source(), self.config
            envs = make_environments(
                source,
                n_envs=config.n_envs,
                seed=config.seed,
                vec=config.vec,
                log_info=config.log_info,
                accept=partial(check_readable, action_dist=config.action_dist),
                **environment_settings(config),
            )
            resolved = config.resolve(envs.n_envs)
            self.config = config = replace(resolved, frame_stack=source.frame_stack)
            if config.rollout_steps is not None:
                check_buffer(envs, config.rollout_steps)
            spaces = (envs.observation_space, envs.action_space)
            if hasattr(self, "policy"):
                arguments.check_spaces(self.policy, *spaces)
            else:
                policy = make_policy(config, *spaces, self._features)
                self.policy = policy.to(find_device(config.device))
            learner = make_learner(config, self.policy)
            self._training = Training(config, self.policy, learner, envs, source.max_episode_steps)
        return self._training

    def _prepared(self, source: Source) -> Source:
        return source.prepared(self.config.frame_stack, self.config.atari_preprocessing)

    def _needed_source(self) -> Source:
        if self.source is None:
            raise ConfigError(
                "this model's environment is not one that Gymnasium has registered, and names in a "
                "file are not imported: give it, as in upslope.load(path, env=...)"
            )
        return self.source

    @property
    def num_timesteps(self) -> int:
        """Environment steps learned from so far."""
        return 0 if self._training is None else self._training.timesteps

    def learn(
        self,
        total_timesteps: int,
        callback: Callback | Sequence[Callback] | None = None,
        progress_bar: bool = False,
        reset_num_timesteps: bool = True,
    ) -> Self:
        """Train for ``total_timesteps`` more environment steps, in whole iterations.

        The last iteration may overshoot. Ctrl-C raises KeyboardInterrupt: an update that is running
        is finished first, a rollout is dropped. The agent is then that of the last whole iteration
        and stays usable. A second one stops at once.

        Args:
            total_timesteps: environment steps, at least 1.
            callback: ``f(event)`` or several, called after each iteration; False stops.
            progress_bar: show a live line on standard error.
            reset_num_timesteps: count from 0 again, schedules included; otherwise go on counting.

        Raises:
            EnvironmentFaultError, NonFiniteError: the policy is then that of the last whole
                iteration.
        """
        total_timesteps = whole_number("total_timesteps", total_timesteps)
        training = self.training
        if reset_num_timesteps:
            training.count_anew()
        goal = training.timesteps + total_timesteps
        calls = arguments.as_list(callback)
        directory: RunDirectory | None = None
        if self.run_dir is not None:
            from upslope.runs.directory import RunDirectory

            path = self.run_dir
            directory = RunDirectory.create(path, self, goal, callbacks=tuple(calls))
        with contextlib.ExitStack() as stack:
            if progress_bar:
                from upslope.runs.live import LiveProgress

                calls.append(stack.enter_context(LiveProgress(self, goal)))
            self.train_to(goal, calls, directory)
        return self

    def train_to(
        self, goal: int, callbacks: Sequence[Callback], directory: RunDirectory | None = None
    ) -> None:
        """Train until ``num_timesteps`` reaches ``goal``; what :meth:`learn` and a run's resume do.

        Args:
            goal: environment steps, counted as ``num_timesteps`` is.
            callbacks: called after each iteration.
            directory: where the run is written, if it is.
        """
        training, call_all = self.training, CallbackList(callbacks)
        with contextlib.ExitStack() as stack:
            if directory is not None:
                stack.enter_context(directory)
            interrupted = stack.enter_context(interrupts())
            training.envs.stop = interrupted
            stack.callback(setattr, training.envs, "stop", ())

            def on_iteration(event: Event) -> bool:
                try:
                    goes_on = call_all(event)
                except Interrupted:  # in an evaluation, say: the iteration is whole all the same
                    if directory is not None:
                        directory.record(event, stops=True, is_cut=True)
                    raise
                stops = bool(interrupted)
                if directory is not None:
                    is_last = not goes_on or event.timesteps >= goal
                    directory.record(event, is_last=is_last, stops=stops)
                if stops:
                    raise Interrupted(interrupted[0])
                return goes_on

            try:
                training.run(goal, on_iteration, self)
            except EnvironmentFaultError:
                if interrupted:  # the signal reached the workers first
                    raise Interrupted(interrupted[0]) from None
                raise
            if interrupted:  # as the last iteration was written
                raise Interrupted(interrupted[0])
        over = training.timesteps - goal
        if over > 0:
            log.info(
                "trained %d steps, %d more than asked: iterations are whole", goal + over, over
            )

    def predict(
        self,
        observation: Any,
        state: Tree | None = None,
        episode_start: NDArray[np.bool_] | None = None,
        deterministic: bool = False,
        action_masks: Any = None,
    ) -> tuple[Any, Tree | None]:
        """Return the action for one observation or a batch of them, as ``env.step`` takes it.

        Args:
            observation: ``[*shape]`` or ``[N, *shape]``; a dict or tuple of such.
            state: what the last call returned; None at the start, and always for policies without
                memory.
            episode_start: ``[N]``, where an episode begins and the memory is blank.
            deterministic: the mode instead of a sample.
            action_masks: ``[n_mask]`` or ``[N, n_mask]``, which choices are allowed; by default
                what the key ``action_mask`` of the observation says, if it has one.

        Raises:
            ConfigError: if the observation does not have the space's shape, or nothing is allowed.
        """
        policy = self.policy
        batch, single = arguments.as_batch(observation, policy.observation_space)
        n = len(leaves(batch)[0])
        mask = arguments.as_masks(action_masks, observation, policy.action_space, n)
        noise = None
        if not deterministic:
            noise = policy.actions.draw_noise(self._predict_noise, (n,))
        begins = None if episode_start is None else np.atleast_1d(episode_start)
        before = () if state is None else state
        actions, after = policy.act(batch, before, mask, noise, begins)
        in_env_units = policy.actions.to_env(actions)
        then = after if policy.has_memory else state
        return (
            arguments.first_of(in_env_units, policy.action_space) if single else in_env_units
        ), then

    def evaluate(
        self,
        n_episodes: int = 100,
        seed: int | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> Score:
        """Run fresh numbered episodes twice, with sampled actions and with the mode.

        Args:
            n_episodes: for each of the two.
            seed: of environments and actions; by default one derived from the run's seed.
            progress: told how many episodes have finished, up to ``2 * n_episodes``.
        """
        sampled = self.evaluate_one_way(
            n_episodes, seed=seed, deterministic=False, progress=progress
        )
        offset = None if progress is None else (lambda done: progress(n_episodes + done))
        mode = self.evaluate_one_way(n_episodes, seed=seed, deterministic=True, progress=offset)
        return Score(sampled, mode, self._evaluation_seed(seed))

    def evaluate_one_way(
        self,
        n_episodes: int,
        *,
        seed: int | None = None,
        deterministic: bool = True,
        progress: Callable[[int], None] | None = None,
        env: EnvLike | None = None,
    ) -> Sample:
        """Evaluate with either sampled or deterministic actions; see :meth:`evaluate`.

        ``env`` is by default the agent's own, of which fresh copies are made; where that is an
        environment made by the user, it is used itself and training goes on with new episodes.
        """
        n_episodes = whole_number("n_episodes", n_episodes)
        config = self.config if env is None else self.config.for_other_environments()
        source = self._needed_source() if env is None else self._prepared(find_environment(env))
        given = source.instance is not None
        envs = make_environments(
            source,
            n_envs=None if given else min(EVALUATION_ENVS, n_episodes),
            # never the episodes of training, not even under the run's own seed
            seed=SeedTree(self._evaluation_seed(seed)).integer("evaluation"),
            vec="auto" if given else "sync",
            **environment_settings(config, own=env is None),
        )
        timed: contextlib.AbstractContextManager[object] = contextlib.nullcontext()
        if self._training is not None:  # an evaluation while training stops with it
            envs.stop, timed = self._training.envs.stop, self._training.phase("evaluation")
        try:
            arguments.check_spaces(self.policy, envs.observation_space, envs.action_space)
            with timed:
                return evaluate(
                    self.policy,
                    envs,
                    n_episodes,
                    deterministic=deterministic,
                    threshold=source.reward_threshold,
                    progress=progress,
                )
        finally:
            if not given:
                envs.close()
            elif env is None:
                self.training.restart_environments()

    def _evaluation_seed(self, seed: int | None) -> int:
        """The seed that is recorded: asked for, or the run's."""
        return self.config.seed if seed is None else whole_number("seed", seed, low=0)

    def save(self, path: str | os.PathLike[str], evaluation: Score | None = None) -> None:
        """Write one model file: weights, normaliser, spaces, settings, and the score where given.

        Raises:
            ModelFileError: if it cannot be written; what was at ``path`` is then unharmed.
        """
        observations = None if self._training is None else self._training.envs.obs
        source = self.source or Source("unknown")
        save_model(path, self.policy, self.config, source, self._features, observations, evaluation)

    @classmethod
    def _load(
        cls,
        path: str | os.PathLike[str],
        env: EnvLike | None = None,
        *,
        policy: FeaturesFactory | None = None,
        **settings: Any,
    ) -> Agent:
        """Make an agent as :func:`upslope.load` does; the file's algorithm must be this one."""
        agent = load(path, env, policy=policy, **settings)
        if cls is not Agent and not isinstance(agent, cls):
            raise ModelFileError(
                f"{path} holds a {agent.algorithm} model, not {cls.algorithm}: "
                "use upslope.load(path)"
            )
        return agent

    def set_env(self, env: EnvLike) -> None:
        """Go on with another environment of the same spaces."""
        config = self.config if isinstance(env, str) else self.config.for_other_environments()
        before = (self.source, self.config, self._training)
        try:
            self._begin(find_environment(env), config, self.policy)
            _ = self.training
        except Exception:
            self.source, self.config, self._training = before
            raise
        if before[2] is not None:
            before[2].envs.close()

    def get_env(self) -> Any:
        """Return the environments that training steps."""
        return self.training.envs

    def close(self) -> None:
        """Release the environments."""
        if self._training is not None:
            self._training.envs.close()
            self._training = None


class REINFORCE(Agent):
    """REINFORCE (Williams 1992); settings: :class:`upslope.config.ReinforceConfig`."""

    algorithm = "reinforce"


class VPG(Agent):
    """VPG with GAE (Schulman et al. 2016); settings: :class:`upslope.config.VPGConfig`."""

    algorithm = "vpg"


class A2C(Agent):
    """A2C (Mnih et al. 2016); settings: :class:`upslope.config.A2CConfig`."""

    algorithm = "a2c"


class NPG(Agent):
    """Natural policy gradient (Kakade 2001); settings: :class:`upslope.config.NPGConfig`."""

    algorithm = "npg"


class TRPO(Agent):
    """TRPO (Schulman et al. 2015); settings: :class:`upslope.config.TRPOConfig`."""

    algorithm = "trpo"


class PPO(Agent):
    """PPO (Schulman et al. 2017); settings: :class:`upslope.config.PPOConfig`."""

    algorithm = "ppo"


AGENTS: dict[str, type[Agent]] = {
    agent.algorithm: agent for agent in (REINFORCE, VPG, A2C, NPG, TRPO, PPO)
}


def load(
    path: str | os.PathLike[str],
    env: EnvLike | None = None,
    *,
    policy: FeaturesFactory | None = None,
    **settings: Any,
) -> Agent:
    """Make an agent from a model file; nothing in the file is executed or imported.

    The agent can learn on, on its own environment or another one (fine-tuning): weights and running
    statistics are those of the file, the optimiser begins anew.

    Args:
        path: what ``agent.save`` wrote.
        env: an environment of the same spaces; by default the recorded one, if it is an id that
            Gymnasium already has registered. Another one is made without the recorded
            ``env_kwargs`` and ``max_episode_steps``.
        policy: the features factory, for a model that was made with one.
        settings: override recorded settings, e.g. ``device="cpu"`` or ``n_envs=1``.

    Raises:
        ModelFileError: damaged, foreign, from a newer version, or not fitting ``env``.
        ConfigError: if ``env`` must be given, or a setting is wrong.
    """
    loaded = load_model(path, policy)
    config = loaded.config({})
    if env is not None and not isinstance(env, str):
        config = config.for_other_environments()
    own = dict(vars(config))
    if not loaded.is_own(env):
        own = {name: value for name, value in own.items() if name not in OF_ENVIRONMENT}
    agent = object.__new__(AGENTS[config.algorithm])
    agent._features, agent.run_dir = policy, None
    before, config = config, type(config).from_settings(own | settings)
    for name in OF_POLICY:
        if getattr(config, name) != getattr(before, name):
            raise ConfigError(
                f"{name} belongs to the weights of {os.fspath(path)}, which were made with "
                f"{getattr(before, name)!r}: leave it out"
            )
    if loaded.policy.reward_normalizer is not None:
        loaded.policy.reward_normalizer.gamma = config.gamma
    agent._begin(loaded.source(env), config, loaded.policy)
    if env is not None:
        _ = agent.training
    return agent
