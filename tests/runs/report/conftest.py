"""One short real run that the tests of the page share."""

from __future__ import annotations

from pathlib import Path

import pytest
from report_runs import SMALL, train, write_evaluation


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of CartPole PPO with an evaluation; tests do not change it."""
    path = tmp_path_factory.mktemp("reported") / "run"
    agent = train(path, "PPO", "CartPole-v1", 4_096, **SMALL)
    write_evaluation(path, agent, episodes=5)
    return path
