"""Start-up: what is imported, when, and what the garbage collector makes of it."""

from __future__ import annotations

import gc
import io
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import upslope
from upslope import agent
from upslope.imports import imports_of_a_command, without_collections
from upslope.runs import live
from upslope.runs.live import LiveProgress
from upslope.training import Event

HEAVY = {
    "torch._dynamo", "torch._inductor", "torch.optim.adam", "sympy", "scipy", "matplotlib",
    "tensorboard", "envpool", "rich", "pygame", "mujoco", "onnx", "pandas", "IPython",
}  # fmt: skip
SHORT = ["-n", "256", "--n-envs", "8", "--n-steps", "16", "--preset", "none", "--quiet"]


def printed(code: str, cwd: Path | None = None) -> str:
    """What a fresh interpreter prints for ``code``; anything on standard error fails."""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def imported_beside_torch_and_gymnasium(code: str, cwd: Path) -> set[str]:
    """Which of ``HEAVY`` the code imports, that ``import torch, gymnasium`` does not."""
    counted = (
        "import sys, torch, gymnasium\nbefore = set(sys.modules)\n"
        f"{code}\n"
        "print(*(set(sys.modules) - before))\n"
    )
    return HEAVY & set(printed(counted, cwd).split())


class TestImports:
    def test_of_the_package_are_next_to_nothing(self) -> None:
        code = "import sys; import upslope; print(*{m.partition('.')[0] for m in sys.modules})"
        modules = set(printed(code).split())
        assert not modules & {"torch", "numpy", "gymnasium", "scipy", "email", "importlib_metadata"}

    def test_of_the_interface_add_little_to_torch_and_gymnasium(self) -> None:
        code = (
            "import time, torch, gymnasium\nstart = time.process_time()\n"
            "import upslope; upslope.PPO\nprint(time.process_time() - start)\n"
        )
        assert min(float(printed(code)) for _ in range(4)) < 0.15, "seconds of the processor"

    def test_of_a_training_run_from_python(self, tmp_path: Path) -> None:
        code = (
            "import upslope\n"
            "upslope.PPO('CartPole-v1', n_envs=8, n_steps=16, n_epochs=2, seed=0).learn(256)"
        )
        assert imported_beside_torch_and_gymnasium(code, tmp_path) == set()

    @pytest.mark.parametrize("algorithm", ["ppo", "a2c", "vpg", "npg", "trpo"])
    def test_of_a_training_run_from_the_command_line(self, algorithm: str, tmp_path: Path) -> None:
        arguments = ["train", "CartPole-v1", "--algo", algorithm, "--episodes", "0", *SHORT]
        code = f"from upslope.cli.main import main\nassert main({arguments}) == 0"
        used = {"tensorboard"}  # where its extra is installed, a run writes its events
        assert imported_beside_torch_and_gymnasium(code, tmp_path) <= used

    def test_are_seen_by_this_test(self, tmp_path: Path) -> None:
        code = "import torch._dynamo, scipy"
        assert {"torch._dynamo", "scipy"} <= imported_beside_torch_and_gymnasium(code, tmp_path)


class TestTheCollector:
    def test_rests_in_the_block_and_goes_on(self) -> None:
        assert gc.isenabled()
        with without_collections():
            assert not gc.isenabled()
        assert gc.isenabled()
        with pytest.raises(ImportError), without_collections():
            raise ImportError
        assert gc.isenabled()

    def test_stays_off_where_it_was(self) -> None:
        gc.disable()
        try:
            with without_collections(), without_collections():
                pass
            assert not gc.isenabled()
        finally:
            gc.enable()

    def test_rests_while_a_name_is_imported(self, monkeypatch: pytest.MonkeyPatch) -> None:
        seen = []

        def watched(name: str) -> ModuleType:
            seen.append((name, gc.isenabled()))
            return sys.modules[name]

        monkeypatch.setattr(upslope, "import_module", watched)
        assert upslope.PPO is agent.PPO
        assert seen == [("upslope.agent", False)]
        assert gc.isenabled()

    def test_keeps_its_hands_off_a_callers_objects(self) -> None:
        """This process has torch already: it is not a command's own."""
        before = gc.get_freeze_count()
        with imports_of_a_command():
            pass
        assert gc.get_freeze_count() == before

    def test_does_not_search_modules_in_a_commands_own_process(self, tmp_path: Path) -> None:
        arguments = ["train", "CartPole-v1", "--episodes", "0", *SHORT]
        code = (
            "import gc\nfrom upslope.cli.main import main\n"
            f"assert main({arguments}) == 0\n"
            "import torch\n"
            "seen = any(thing is torch.nn.Linear for thing in gc.get_objects())\n"
            "print(gc.isenabled(), seen)\n"
        )
        assert printed(code, tmp_path).split() == ["True", "False"]


class Terminal(io.StringIO):
    """A stream that looks like a terminal, and may be closed from the other side."""

    is_gone = False

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        if self.is_gone:
            raise OSError(5, "Input/output error")
        return super().write(text)


class Pipe(Terminal):
    """A stream that is no terminal."""

    def isatty(self) -> bool:
        return False


def event(iteration: int) -> Event:
    metrics = {
        "rollout/ep_rew_mean": float(iteration), "rollout/episodes": 200.0, "time/fps": 1e4,
    }  # fmt: skip
    return Event(iteration, iteration * 40, 1_000_000, metrics, (), None)


class TestTheLiveDisplay:
    @pytest.fixture(autouse=True)
    def a_terminal(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("TERM", "xterm")

    def test_draws_the_first_and_the_last_of_many_fast_iterations(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(live, "REDRAWN_AFTER", 3600.0)
        stream = Terminal()
        with LiveProgress(None, 1_000_000, stream) as display:  # type: ignore[arg-type]
            display._drawn_at = -3600.0
            for iteration in range(7, 5007):
                display(event(iteration))
        drawn = [n for n in range(7, 5007) if f"{n:,}.0 over 100 episodes" in stream.getvalue()]
        assert drawn == [7, 5006]

    @pytest.mark.parametrize("kind", [Terminal, Pipe])
    def test_of_a_reader_that_goes_away_stops_nothing(
        self, kind: type[Terminal], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(live, "REDRAWN_AFTER", 0.0)
        monkeypatch.setattr(live, "LINES_PER_RUN", 1_000_000)
        stream, out = kind(), sys.stdout
        with LiveProgress(None, 1_000_000, stream) as display:  # type: ignore[arg-type]
            assert display(event(1))
            stream.is_gone = True
            assert display(event(2))
            assert display(event(3))
        assert sys.stdout is out
