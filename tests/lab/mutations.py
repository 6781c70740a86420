"""Faults that policy-gradient code is known for, each a changed line of what ships.

``injected`` puts one in: the source of the function is read, the line is changed (it must be there
just as often as stated), and the function so made stands in for the shipped one wherever that is
bound, until the block ends.
"""

from __future__ import annotations
import __future__

import importlib
import inspect
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

TABLE, ALSO, BESIDES = "table", "also inject", "besides"


@dataclass(frozen=True)
class Fault:
    """One changed line.

    ``place`` is ``module:function`` or ``module:Class.method`` inside ``upslope``; ``old`` stands
    in its source ``times`` times. ``caught_by`` names checks as ``layer: check``; ``source`` says
    which list of known faults it is from.
    """

    name: str
    source: str
    place: str
    old: str
    new: str
    caught_by: tuple[str, ...]
    times: int = 1


@contextmanager
def injected(fault: Fault) -> Iterator[None]:
    """Let the shipped code have the fault while the block runs."""
    module_name, _, path = fault.place.partition(":")
    module = importlib.import_module(f"upslope.{module_name}")
    owner, _, name = path.rpartition(".")
    home = getattr(module, owner) if owner else module
    original = vars(home)[name]
    changed = _changed(fault, original, vars(module), name)
    for holder, key in [(home, name), *_bindings(original)]:
        setattr(holder, key, changed)
    try:
        yield
    finally:  # a page may have been imported in between
        for holder, key in [(home, name), *_bindings(changed)]:
            setattr(holder, key, original)


def _changed(fault: Fault, original: Any, namespace: dict[str, Any], name: str) -> Any:
    """The function made from the changed source, in the namespace of its module."""
    source = textwrap.dedent(inspect.getsource(original))
    found = source.count(fault.old)
    if found != fault.times:
        raise LookupError(
            f"the fault {fault.name!r} changes {fault.old!r} in {fault.place}, which is there "
            f"{found} times, not {fault.times}: bring the fault up to date"
        )
    flags = __future__.annotations.compiler_flag
    code = compile(source.replace(fault.old, fault.new), f"<{fault.name}>", "exec", flags, True)
    made: dict[str, Any] = {}
    exec(code, namespace, made)
    return made[name]


def _bindings(function: Callable[..., Any]) -> list[tuple[Any, str]]:
    """Every module of the library that knows the function, and by which name."""
    return [
        (module, key)
        for module_name, module in list(sys.modules.items())
        if module_name.partition(".")[0] == "upslope"
        for key, value in list(vars(module).items())
        if value is function
    ]


FAULTS = (
    Fault(
        "sign",
        TABLE,
        "theory.objectives:policy_gradient_loss",
        "return -(log_prob",
        "return (log_prob",
        ("same data: gradients", "enumerated: streams", "sampled: clipped actions"),
    ),
    Fault(
        "reward shifted",
        TABLE,
        "algorithms.common:scaled_rewards",
        "rewards = rollout.rewards\n",
        "rewards = rollout.rewards.roll(1, 0)\n",
        ("same data: advantages", "enumerated: rollouts"),
    ),
    Fault(
        "done mask dropped",
        TABLE,
        "theory.returns:reward_to_go",
        "goes_on = 1 - done.to(rewards.dtype)",
        "goes_on = torch.ones_like(rewards)",
        ("same data: returns", "enumerated: batches of REINFORCE"),
    ),
    Fault(
        "truncation as termination",
        TABLE,
        "algorithms.vpg:Learner.weigh",
        "rollout.terminated,",
        "rollout.done,",
        ("same data: advantages", "enumerated: rollouts"),
    ),
    Fault(
        "termination as truncation",
        TABLE,
        "theory.returns:td_errors",
        "gamma * (1 - _numbers(terminated, rewards)) * next_values",
        "gamma * next_values",
        ("same data: advantages", "enumerated: rollouts"),
    ),
    Fault(
        "action-seeing baseline",
        TABLE,
        "algorithms.reinforce:Learner._baseline",
        "return evaluated.values",
        "return evaluated.next_values",
        ("same data: returns", "enumerated: batches of REINFORCE", "sampled: sentinel"),
    ),
    Fault(
        "gamma missing",
        TABLE,
        "theory.returns:td_errors",
        "rewards + gamma * (1",
        "rewards + (1",
        ("same data: advantages", "enumerated: rollouts"),
    ),
    Fault(
        "gamma twice",
        TABLE,
        "theory.returns:td_errors",
        "rewards + gamma * (1",
        "rewards + gamma**2 * (1",
        ("same data: advantages", "enumerated: rollouts"),
    ),
    Fault(
        "reset row counted",
        TABLE,
        "envs.episodes:Environments.step",
        "valid = self._valid if active is None else active & self._valid",
        "valid = self._every if active is None else active",
        ("same data: advantages", "sampled: sentinel"),
    ),
    Fault(
        "log-probability of the clipped action",
        TABLE,
        "rollout:collect",
        "recorder.end_row(t, actions, row, finished)",
        "recorder.end_row(t, actions.clip(*((-1, 1) if actions.dtype.kind == 'f' else (0, 9))), "
        "row, finished)",
        ("same data: sampled actions", "sampled: clipped actions"),
    ),
    Fault(
        "one version old",
        TABLE,
        "training:Training._iterate",
        "rollout = self._collect()",
        "rollout, self.ahead = getattr(self, 'ahead', None) or self._collect(), self._collect()",
        ("ratio: version", "ratio: ratio"),
    ),
    Fault(
        "normaliser moved",
        TABLE,
        "training:Training._iterate",
        "evaluated = evaluate_rollout(self.policy, rollout)",
        "evaluated = self._move_normalizers(rollout) and evaluate_rollout(self.policy, rollout)",
        ("ratio: version", "ratio: ratio"),
    ),
    Fault(
        "wrong normalisation axis",
        TABLE,
        "theory.returns:standardize",
        "y.sum() if",
        "y.sum(0) if",
        ("same data: standardised",),
    ),
    Fault(
        "length-biased batch",
        TABLE,
        "algorithms.reinforce:Learner.collect",
        "return collect(envs, self.policy, n_episodes=self.config.batch_episodes)",
        "envs.restart(); r = collect(envs, self.policy, n_steps=25); "
        "whole = torch.isin(r.episode, torch.tensor([e.number for e in r.episodes])); "
        "return type(r)(**{**vars(r), 'valid': whole})",
        ("sampled: two lengths",),
    ),
    Fault(
        "lambda trace across episodes",
        TABLE,
        "theory.returns:gae",
        "gamma * gae_lambda * (1 - _numbers(done, rewards))",
        "gamma * gae_lambda * (1 - 0 * _numbers(done, rewards))",
        ("same data: advantages", "enumerated: streams", "sampled: sentinel"),
    ),
    Fault(
        "mean over steps",
        ALSO,
        "algorithms.reinforce:Learner.loss",
        'batch["weights"], valid, episodes)',
        'batch["weights"], valid, valid.sum())',
        ("same data: gradients", "enumerated: batches of REINFORCE", "sampled: two lengths"),
    ),
    Fault(
        "index of gamma^t not reset",
        ALSO,
        "recorder:Recorder.begin_row",
        'arrays["episode_step"][t] = envs.episode_step',
        'arrays["episode_step"][t] = t',
        ("same data: estimators", "sampled: sentinel"),
    ),
    Fault(
        "V of the reset observation at truncation",
        ALSO,
        "rollout:_evaluated",
        "if len(rollout.final_rows):",
        "if False:",
        ("same data: advantages", "enumerated: rollouts"),
    ),
    Fault(
        "bootstrap lost at the rollout's end",
        ALSO,
        "rollout:_evaluated",
        "values[successor].view(steps, n_envs)",
        "(values * (torch.arange(len(values)) < n_rows))[successor].view(steps, n_envs)",
        ("same data: advantages", "enumerated: rollouts"),
    ),
    Fault(
        "leave-one-out and mean mixed up",
        ALSO,
        "theory.returns:batch_baseline",
        "if leave_out:",
        "if not leave_out:",
        ("same data: returns", "enumerated: batches of REINFORCE"),
    ),
    Fault(
        "std over invalid rows",
        ALSO,
        "theory.returns:standardize",
        "total(centred.square() * weight)",
        "total(centred.square())",
        ("same data: standardised", "enumerated: standardised batches"),
    ),
    Fault(
        "Fisher matrix under the wrong weights",
        ALSO,
        "theory.trust_region:mean_kl",
        "masked_mean(old.kl(new), valid)",
        "masked_mean(old.kl(new), torch.ones_like(valid))",
        ("same data: natural step", "enumerated: natural step"),
    ),
    Fault(
        "damping forgotten",
        ALSO,
        "theory.trust_region:fisher_matvec",
        "return product + damping * v",
        "return product",
        ("same data: natural step", "enumerated: natural step"),
    ),
    Fault(
        "KL direction swapped",
        ALSO,
        "theory.trust_region:mean_kl",
        "old.kl(new)",
        "new.kl(old)",
        ("same data: natural step", "enumerated: natural step"),
    ),
    Fault(
        "truncation recorded as termination",
        BESIDES,
        "recorder:Recorder.end_row",
        'arrays["terminated"][t] = row.terminated',
        'arrays["terminated"][t] = row.terminated | row.truncated',
        ("same data: advantages",),
    ),
    Fault(
        "gamma missing from the reward-to-go",
        BESIDES,
        "theory.returns:reward_to_go",
        "gamma * goes_on)",
        "goes_on)",
        ("same data: returns", "enumerated: batches of REINFORCE"),
    ),
    Fault(
        "valid forgotten in the loss",
        BESIDES,
        "theory.objectives:policy_gradient_loss",
        "weight.detach() * valid)",
        "weight.detach())",
        ("same data: gradients", "enumerated: rollouts"),
    ),
    Fault(
        "the lab's Fisher matrix under uniform weights",
        BESIDES,
        "lab.exact:fisher",
        "w, pi, table, table",
        "torch.full_like(w, 1 / len(w)), pi, table, table",
        ("enumerated: Fisher matrix",),
    ),
    Fault(
        "one stream of action noise for all episodes",
        BESIDES,
        "rollout:EpisodeNoise.row",
        "max(number, 0)",
        "0",
        ("same data: sampled actions", "sampled: counts"),
    ),
    Fault(
        "episode seeds that repeat",
        BESIDES,
        "envs.episodes:Environments._episode_seed",
        'self.seeds.integer("episode", number)',
        'self.seeds.integer("episode", number % 8)',
        ("same data: sampled actions", "sampled: counts"),
    ),
    Fault(
        "actions sampled at another temperature",
        BESIDES,
        "policies.actions:CategoricalActions.sample",
        "scores = outputs + noise",
        "scores = outputs + 0.9 * noise",
        ("sampled: counts",),
    ),
)
