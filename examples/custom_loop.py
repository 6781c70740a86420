"""A training loop of your own from three parts: collect, theory and policies.

It is A2C-like: one plain gradient step a rollout, GAE weights, a critic beside the actor.
"""

import torch

import upslope
from upslope.theory import diagnostics, objectives, returns


def train(iterations: int = 300, seed: int = 0) -> list[float]:
    """Train on CartPole and return the average return of each iteration that finished episodes."""
    envs = upslope.make_vec_env("CartPole-v1", n_envs=16, seed=seed)
    policy = upslope.ActorCritic(envs.observation_space, envs.action_space, seed=seed)
    optimizer = torch.optim.Adam(policy.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.01, iterations)
    averages = []
    for iteration in range(iterations):
        # 1. Data from the current policy: [T, B] rows, running episodes go on.
        rollout = upslope.collect(envs, policy, n_steps=32)

        # 2. What this policy says about them, without gradient; stale data would be refused here.
        evaluated = upslope.evaluate_rollout(policy, rollout)

        # 3. Rewards -> weights. Truncation bootstraps from the true last observation.
        advantages = returns.gae(
            rollout.rewards.float(),
            evaluated.values,
            evaluated.next_values,
            rollout.terminated,
            rollout.boundary,
            gamma=0.98,
            gae_lambda=0.95,
        )
        targets = advantages + evaluated.values

        # 4. Weights -> one scalar whose gradient is the policy gradient (plus the critic's).
        inputs, actions = evaluated.inputs.flatten(0, 1), rollout.actions.flatten(0, 1)
        new = policy.evaluate_actions(inputs, actions)
        valid = rollout.valid.flatten()
        weights = returns.standardize(advantages.flatten(), valid)
        actor = objectives.policy_gradient_loss(new.log_prob, weights, valid, valid.sum())
        critic = objectives.value_loss(new.value, targets.flatten(), valid)
        optimizer.zero_grad()
        (actor + 0.5 * critic - 0.01 * objectives.entropy_bonus(new.entropy, valid)).backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 0.5)
        optimizer.step()
        schedule.step()
        # 5. Progress is the average return, never the loss.
        if rollout.episodes:
            averages.append(sum(e.ret for e in rollout.episodes) / len(rollout.episodes))
        if iteration % 50 == 49:
            fit = diagnostics.explained_variance(evaluated.values, targets, rollout.valid)
            print(f"{iteration + 1:4}: return {averages[-1]:6.1f}, value fit {float(fit):.2f}")
    return averages


if __name__ == "__main__":
    train()
