"""Look at an environment before anything is learned from it: what is measured, and what it means.

A finding is something that keeps policies from learning or numbers from meaning what they say, with
the evidence and the flag to use. What merely describes the environment is a fact.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from upslope.envs.find import EnvLike, find_environment
from upslope.envs.guard import EPISODE, FAULT, MIGRATE, GuardedEnv
from upslope.envs.masks import flat_mask, sample_allowed
from upslope.errors import ConfigError
from upslope.seeding import SeedTree
from upslope.spaces import MASK_KEY, choice_sizes, mask_size, outside, paths
from upslope.trees import map_tree, stack

LARGE_REWARD, SMALL_REWARD = 1e3, 1e-3  # mean size of rewards that are not 0
LARGE_OBSERVATION = 100.0  # size of a number, beyond which a fresh network is saturated
ENOUGH_EPISODES = 30  # of equal return, before the return is said never to vary
LONG = 1000  # steps without an end, before an environment without a limit is said to have none
PROBE = 60  # steps of a replay
SLOW = 50.0  # steps a second, below which processes pay
MEND = "mend the environment"


@dataclass(frozen=True)
class Finding:
    """What is wrong, what shows it, and what to do: a flag, or where to mend."""

    name: str
    evidence: str
    flag: str


@dataclass(frozen=True)
class Diagnosis:
    """A verdict in words, the findings it rests on, and facts that are no findings."""

    verdict: str
    findings: tuple[Finding, ...]
    facts: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Return the object that ``upslope doctor --json`` prints."""
        return {
            "verdict": self.verdict,
            "findings": [vars(finding) for finding in self.findings],
            "facts": dict(self.facts),
        }


@dataclass
class Walk:
    """What one policy saw: every step, and every finished episode."""

    observations: list[Any] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)  # of its episode, for each observation
    rewards: list[float] = field(default_factory=list)
    returns: list[float] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    truncated: list[bool] = field(default_factory=list)
    fault: str | None = None
    stuck: int | None = None  # step at which nothing was allowed
    seconds: float = 0.0


Policy = Callable[[GuardedEnv, NDArray[np.bool_] | None, np.random.Generator], Any]


def diagnose(
    env: EnvLike,
    *,
    seed: int = 0,
    env_kwargs: Mapping[str, Any] | None = None,
    max_episode_steps: int | None = None,
    steps: int = 2000,
    seconds: float = 20.0,
) -> Diagnosis:
    """Step an environment under simple policies and say what stands in the way of learning.

    Args:
        env: an id, a ``gymnasium.Env``, or a factory; its fresh instances are stepped.
        seed: of episodes and of random actions.
        env_kwargs, max_episode_steps: as for the agents.
        steps: of the random policy; the others take a quarter each.
        seconds: after which no further step is taken.

    Raises:
        UnknownEnvironmentError, ConfigError: if it cannot be made.
    """
    source = find_environment(env)
    if isinstance(source.instance, gym.vector.VectorEnv):
        raise ConfigError("the doctor looks at single environments: give an id, Env or factory")
    source = source.prepared(None, True)

    def make() -> gym.Env[Any, Any]:
        return source.plain_env(env_kwargs or {}, max_episode_steps)

    first = make()
    unread = _unread(first.observation_space)
    guarded = GuardedEnv(make, [path[-1] for path, _ in unread if isinstance(path[-1], str)])
    first.close()
    visit = _Visit(guarded, seed, time.perf_counter() + seconds)
    policies: dict[str, Policy] = {"random": _random, "zero": _zero, "constant": _Constant()}
    walks = {
        name: visit.walk(policy, steps if name == "random" else steps // 4)
        for name, policy in policies.items()
    }
    limit = max_episode_steps or source.max_episode_steps
    findings = [*_of_spaces(guarded, unread), *_of_contract(walks["random"])]
    if walks["random"].rewards and not findings_stop(findings):
        findings += _of_numbers(guarded, walks["random"])
        findings += _of_episodes(walks, limit)
        findings += _of_replays(guarded, visit)
    facts = _facts(walks, guarded)
    if facts.get("steps_per_second", SLOW) < SLOW:
        rate = facts["steps_per_second"]
        findings.append(Finding("slow", f"{rate:.0f} steps a second", "--vec async"))
    guarded.close()
    return Diagnosis(_verdict(findings, walks["random"]), tuple(findings), facts)


def findings_stop(findings: list[Finding]) -> bool:
    """Whether the contract is broken, so that what follows would only repeat it."""
    return any(finding.name in ("environment raises", "contract broken") for finding in findings)


class _Visit:
    """Steps one guarded environment until the time is up."""

    def __init__(self, env: GuardedEnv, seed: int, deadline: float) -> None:
        self.env, self.seeds, self.deadline = env, SeedTree(seed), deadline

    def walk(self, policy: Policy, steps: int, episode: int | None = None) -> Walk:
        """Take ``steps`` steps, in one numbered episode alone if that is given."""
        seen, env, rng = Walk(), self.env, self.seeds.generator("doctor")
        started, number = time.perf_counter(), -1 if episode is None else episode - 1
        over, total, length = True, 0.0, 0
        obs: Any = None
        info: dict[str, Any] = {}
        while len(seen.rewards) < steps and time.perf_counter() < self.deadline:
            if over:
                if episode is not None and number == episode:
                    break
                number, total, length = number + 1, 0.0, 0
                obs, info = env.reset(seed=self.seeds.integer("episode", number))
                if FAULT in info:
                    seen.fault = info[FAULT]
                    break
                self._see(seen, obs, 0)
            mask = _mask(env, obs, info)
            if mask is not None and not _all_possible(mask, env.action_space):
                seen.stuck = length
                break
            obs, reward, terminated, truncated, info = env.step(policy(env, mask, rng))
            if FAULT in info:
                seen.fault = info[FAULT]
                break
            length, total, over = length + 1, total + reward, terminated or truncated
            seen.rewards.append(float(reward))
            self._see(seen, obs, length)
            if over:
                seen.returns.append(total)
                seen.lengths.append(length)
                seen.truncated.append(truncated and not terminated)
        seen.seconds = time.perf_counter() - started
        return seen

    def _see(self, seen: Walk, obs: Any, step: int) -> None:
        kept = {path: _leaf(obs, path) for path in paths(self.env.observation_space)}
        seen.observations.append(map_tree(np.array, kept))
        seen.steps.append(step)


def _random(env: GuardedEnv, mask: Any, rng: np.random.Generator) -> Any:
    return sample_allowed(env.action_space, mask, rng)


def _zero(env: GuardedEnv, mask: Any, rng: np.random.Generator) -> Any:
    """Zero where numbers are wanted, the first choice elsewhere, as far as it is allowed."""
    if mask is not None:
        return sample_allowed(env.action_space, mask, rng)
    return _nearest_zero(env.action_space)


def _nearest_zero(space: gym.Space[Any]) -> Any:
    if isinstance(space, spaces.Box):
        return np.clip(np.zeros(space.shape, space.dtype), space.low, space.high)
    if isinstance(space, spaces.Discrete):
        return space.start
    if isinstance(space, spaces.MultiDiscrete):
        return space.start.astype(space.dtype)
    if isinstance(space, spaces.MultiBinary):
        return np.zeros(space.shape, space.dtype)
    if isinstance(space, spaces.Dict):
        return {key: _nearest_zero(space[key]) for key in space}
    if isinstance(space, spaces.Tuple):
        return tuple(_nearest_zero(part) for part in space)
    return space.sample()


class _Constant:
    """One random action, over and over, as far as it is allowed."""

    def __init__(self) -> None:
        self._action: Any = None

    def __call__(self, env: GuardedEnv, mask: Any, rng: np.random.Generator) -> Any:
        if mask is not None or self._action is None:
            self._action = sample_allowed(env.action_space, mask, rng)
        return self._action


def _of_spaces(env: GuardedEnv, unread: list[tuple[Any, gym.Space[Any]]]) -> list[Finding]:
    found = []
    for path, space in unread:
        where = "/".join(map(str, path)) or "the observation"
        flag = f"--ignore-obs {path[-1]}" if path and isinstance(path[-1], str) else MEND
        found.append(Finding("unreadable part", f"{where} is {space}", flag))
    for box in (part for part in _parts(env.action_space) if isinstance(part, spaces.Box)):
        if (box.low >= box.high).any():
            n = int((box.low >= box.high).sum())
            what = f"{n} of {box.low.size} action components have bounds of no width: {box}"
            found.append(Finding("bounds of zero width", what, MEND))
    sizes = choice_sizes(env.action_space)
    if sizes and max(sizes) == 1 and mask_size(env.action_space) == len(sizes):
        found.append(Finding("only one action", f"the action space is {env.action_space}", MEND))
    return found


def _of_contract(walk: Walk) -> list[Finding]:
    """What the guard reported, or that an episode allowed nothing."""
    if walk.stuck is not None:
        what = f"the action mask was all false at step {walk.stuck} of an episode that went on"
        return [Finding("no action allowed", what, MEND)]
    if walk.fault is None:
        return []
    sentence = walk.fault.replace(EPISODE, "an episode")
    if sentence.startswith("raised") and MIGRATE not in sentence:
        what = f"it {sentence}, after {len(walk.rewards)} steps"
        return [Finding("environment raises", what, "--on-env-error restart:3")]
    return [Finding("contract broken", f"it {sentence}", MEND)]


def _of_numbers(env: GuardedEnv, walk: Walk) -> list[Finding]:
    found = []
    rewards = np.array(walk.rewards)
    if not np.isfinite(rewards).all():
        at = int(np.argmax(~np.isfinite(rewards)))
        found.append(Finding("non-finite reward", f"{rewards[at]} at step {at}", MEND))
        rewards = rewards[np.isfinite(rewards)]
    size = np.abs(rewards[rewards != 0])
    if size.size == 0:
        what = f"all {len(rewards)} rewards of a random policy are 0"
        found.append(Finding("no reward", what, "shape the reward, or start nearer the goal"))
    elif not SMALL_REWARD <= size.mean() <= LARGE_REWARD:
        what = f"rewards that are not 0 are {size.mean():.3g} in size on average"
        found.append(Finding("reward scale", what, "--norm-reward"))
    whole = _stacked(walk)
    broken = [path for path, x in whole.items() if x.dtype.kind == "f" and not np.isfinite(x).all()]
    if broken:
        what = f"{_named(broken[0])} held NaN or infinity within {len(walk.rewards)} steps"
        return [*found, Finding("non-finite observation", what, MEND)]
    for path, part in _boxes(env.observation_space):
        said = outside(part, whole[path], _named(path))
        if said is not None:
            found.append(Finding("observation outside its space", said, MEND))
    large = [
        (float(np.abs(whole[path]).max()), path)
        for path, part in _boxes(env.observation_space)
        if part.dtype != np.uint8
    ]
    if large and max(large)[0] > LARGE_OBSERVATION:
        what = f"{_named(max(large)[1])} reached {max(large)[0]:.3g}"
        found.append(Finding("observation scale", what, "--norm-obs"))
    if all((x == x[:1]).all() for path, x in whole.items() if path[-1:] != (MASK_KEY,)):
        what = f"all {len(walk.observations)} observations are equal"
        found.append(Finding("constant observation", what, MEND))
    return found


def _of_episodes(walks: Mapping[str, Walk], limit: int | None) -> list[Finding]:
    random = walks["random"]
    if not random.lengths and limit is None and len(random.rewards) >= LONG:
        what = f"no episode ended in {len(random.rewards)} steps, and there is no time limit"
        return [Finding("no end", what, "--max-episode-steps 1000")]
    short = random.lengths.count(1)
    if short > 0.5 * max(len(random.lengths), 1):
        what = f"{short} of {len(random.lengths)} episodes ended on their first step"
        pairs = zip(random.lengths, random.returns, strict=True)
        if len({ret for length, ret in pairs if length == 1}) == 1:  # else it is a game of one move
            return [Finding("episodes of one step", what, MEND)]
    returns = [r for walk in walks.values() for r in walk.returns]
    if len(returns) >= ENOUGH_EPISODES and len(set(returns)) == 1 and returns[0] != 0:
        what = f"all {len(returns)} episodes under three policies returned {returns[0]:g}"
        return [Finding("return never varies", what, MEND)]
    return []


def _of_replays(env: GuardedEnv, visit: _Visit) -> list[Finding]:
    """Replay episodes: the same actions must give the same, other actions something else."""

    def replay(episode: int, salt: int) -> Walk:
        actions = np.random.default_rng(salt)

        def act(env: GuardedEnv, mask: Any, _: np.random.Generator) -> Any:
            return sample_allowed(env.action_space, mask, actions)

        return visit.walk(act, PROBE, episode)

    found: list[Finding] = []
    differs = False
    for episode in range(3):
        first, again, other = replay(episode, 1), replay(episode, 1), replay(episode, 2)
        if min(len(first.rewards), len(again.rewards)) == 0:
            return found
        if not found and not _alike(first, again):
            what = "the same seed and actions gave another trajectory the second time"
            flag = f"{MEND}: draw from self.np_random, seeded by super().reset(seed=seed)"
            found.append(Finding("not deterministic", what, flag))
        differs |= not _alike(first, other)
    if not differs and not found and not _has_one_action(env.action_space):
        what = f"over three episodes of up to {PROBE} steps, other actions changed nothing"
        found.append(Finding("action does not matter", what, MEND))
    return found


def _alike(one: Walk, other: Walk) -> bool:
    if one.rewards != other.rewards or one.lengths != other.lengths:
        return False
    pairs = zip(_stacked(one).items(), _stacked(other).items(), strict=True)
    return all(
        x.shape == y.shape and np.array_equal(x, y)
        for (path, x), (_, y) in pairs
        if path[-1:] != (MASK_KEY,)
    )


def _facts(walks: Mapping[str, Walk], env: GuardedEnv) -> dict[str, Any]:
    random = walks["random"]
    facts: dict[str, Any] = {
        "observation_space": " ".join(str(env.observation_space).split()),
        "action_space": " ".join(str(env.action_space).split()),
        "steps": len(random.rewards),
    }
    if not random.rewards:
        return facts
    rate = len(random.rewards) / max(random.seconds, 1e-9)
    rewards = np.array(random.rewards)
    facts |= {
        "steps_per_second": round(rate, 1),
        "suggested_n_envs": 8 if rate < 2000 else 16,
        "share_of_rewards_not_0": float(np.mean(rewards != 0)),
        "episodes": len(random.lengths),
        "returns": {
            name: float(np.mean(walk.returns)) for name, walk in walks.items() if walk.returns
        },
    }
    if random.lengths:
        facts["mean_length"] = float(np.mean(random.lengths))
        facts["share_of_truncations"] = float(np.mean(random.truncated))
    if any(random.truncated):
        facts["time_limit_is_observable"] = _tells_time(random)
    return facts


def _tells_time(walk: Walk) -> bool:
    """Whether some number of the observation is a straight line in the step of the episode."""
    t = np.array(walk.steps, dtype=float)
    for x in _stacked(walk).values():
        columns = x.reshape(len(x), -1).astype(float)[:, :64]
        moving = columns[:, columns.std(0) > 1e-12]
        for column in moving.T:
            if abs(np.corrcoef(t, column)[0, 1]) > 0.9999:
                return True
    return False


def _verdict(findings: list[Finding], walk: Walk) -> str:
    if not findings:
        return f"Sound: nothing found in {len(walk.rewards)} steps that stands in the way."
    names = ", ".join(finding.name for finding in findings)
    plural = "things stand" if len(findings) > 1 else "thing stands"
    return f"{len(findings)} {plural} in the way ({names}); first: {findings[0].flag}."


def _mask(env: GuardedEnv, obs: Any, info: dict[str, Any]) -> NDArray[np.bool_] | None:
    space = env.observation_space
    if isinstance(space, spaces.Dict) and MASK_KEY in space.spaces and mask_size(env.action_space):
        return flat_mask(obs[MASK_KEY], env.action_space)
    return info.get(MASK_KEY) if mask_size(env.action_space) else None


def _all_possible(mask: NDArray[np.bool_], space: gym.Space[Any]) -> bool:
    first = np.cumsum([0, *choice_sizes(space)])[:-1]
    return bool(np.logical_or.reduceat(mask.astype(bool), first).all())


def _has_one_action(space: gym.Space[Any]) -> bool:
    boxes = [part for part in _parts(space) if isinstance(part, spaces.Box)]
    fixed = all((box.low >= box.high).all() for box in boxes)
    return fixed and all(size == 1 for size in choice_sizes(space))


def _unread(space: gym.Space[Any]) -> list[tuple[Any, gym.Space[Any]]]:
    """Parts of an observation space that no network here reads, with their paths."""
    kinds = (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)
    return [
        (path, part)
        for path, part in ((path, _leaf(space, path)) for path in paths(space))
        if not isinstance(part, kinds)
    ]


def _boxes(space: gym.Space[Any]) -> list[tuple[Any, spaces.Box]]:
    pairs = ((path, _leaf(space, path)) for path in paths(space))
    return [(path, part) for path, part in pairs if isinstance(part, spaces.Box)]


def _parts(space: gym.Space[Any]) -> list[gym.Space[Any]]:
    return [_leaf(space, path) for path in paths(space)]


def _leaf(tree: Any, path: Any) -> Any:
    for step in path:
        tree = tree[step]
    return tree


def _stacked(walk: Walk) -> dict[Any, NDArray[Any]]:
    whole: dict[Any, NDArray[Any]] = stack(walk.observations)
    return whole


def _named(path: Any) -> str:
    return "observation" + (f" part {'/'.join(map(str, path))!r}" if path else "")
