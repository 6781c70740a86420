"""The policy gradient in plain PyTorch: g = E[ sum_t grad log pi(a_t|s_t) R(tau) ], on CartPole."""

import gymnasium as gym
import torch
from torch.distributions import Categorical


def train(batches: int = 60, steps_per_batch: int = 3000, seed: int = 0) -> list[float]:
    torch.manual_seed(seed)
    env = gym.make("CartPole-v1")
    policy = torch.nn.Sequential(torch.nn.Linear(4, 32), torch.nn.Tanh(), torch.nn.Linear(32, 2))
    optimizer = torch.optim.Adam(policy.parameters(), lr=1e-2)
    means = []
    for batch in range(batches):
        observations, actions, weights, returns = [], [], [], []
        while len(actions) < steps_per_batch:  # always finish the episode: cutting it would bias
            obs, _ = env.reset(seed=seed if not batch + len(actions) else None)
            rewards, terminated, truncated = [], False, False
            while not (terminated or truncated):
                with torch.no_grad():
                    action = Categorical(logits=policy(torch.as_tensor(obs))).sample()
                observations.append(torch.as_tensor(obs))
                actions.append(action)
                obs, reward, terminated, truncated, _ = env.step(action.item())
                rewards.append(float(reward))
            returns.append(sum(rewards))
            weights += [sum(rewards)] * len(rewards)  # R(tau) at every step of the episode
        distribution = Categorical(logits=policy(torch.stack(observations)))
        log_prob = distribution.log_prob(torch.stack(actions))
        pseudo_loss = -(log_prob * torch.tensor(weights)).mean()  # no loss: watch the returns
        optimizer.zero_grad()
        pseudo_loss.backward()
        optimizer.step()
        means.append(sum(returns) / len(returns))
        print(f"batch {batch:2}: average return {means[-1]:6.1f} over {len(returns)} episodes")
    return means


if __name__ == "__main__":
    train()
