"""What answers without torch: help, versions, lists of environments."""

from __future__ import annotations

import dataclasses
import re
import resource
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

import upslope
from upslope.config import CONFIGS

COMMANDS = ["", "train", "eval", "play", "doctor", "lab", "envs"]
LAB = ["lab estimators", "lab gradient", "lab ladder"]


def processor_seconds(code: str) -> tuple[float, str]:
    """What a fresh interpreter needs for ``code``, of the processor, and what it prints."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.stderr == ""
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, done.stdout


class TestHelp:
    @pytest.mark.parametrize("command", [*COMMANDS, *LAB])
    def test_is_instant_and_needs_no_torch(self, command: str) -> None:
        arguments = [*command.split(), "--help"]
        code = (
            "import sys\n"
            "from upslope.cli.main import main\n"
            f"assert main({arguments}) == 0\n"
            "heavy = {'torch', 'gymnasium', 'numpy', 'scipy', 'rich'} & set(sys.modules)\n"
            "assert not heavy, heavy\n"
        )
        seconds, text = min(processor_seconds(code) for _ in range(2))
        assert seconds < 0.5
        assert f"upslope {command}".strip() in text

    def test_names_every_command(self, upslope_command: Callable[..., Any]) -> None:
        for arguments in ([], ["--help"], ["-h"]):
            text = upslope_command(*arguments).out
            assert all(f"  {command} " in text for command in COMMANDS if command)

    @pytest.mark.parametrize("algorithm", CONFIGS)
    def test_has_every_setting_with_default_and_group(
        self, upslope_command: Callable[..., Any], algorithm: str
    ) -> None:
        text = upslope_command("train", "--algo", algorithm, "--help").out
        flat = re.sub(r"\s+", " ", text)
        for declared in dataclasses.fields(CONFIGS[algorithm]):
            assert f"--{declared.name.replace('_', '-')}" in text
            if declared.name != "preset":
                assert re.sub(r"\s+", " ", declared.metadata["doc"]) in flat
            if declared.metadata["kind"] == "float" and declared.default is not None:
                assert f"(default: {declared.default})" in flat
        for title in (
            "run:",
            "environment:",
            "network:",
            "normalisation:",
            f"{algorithm} settings:",
        ):
            assert f"\n{title}\n" in text
        assert max(map(len, text.splitlines())) <= 110

    def test_each_algorithm_shows_its_own(self, upslope_command: Callable[..., Any]) -> None:
        ppo = upslope_command("train", "--help").out
        reinforce = upslope_command("train", "--help", "--algo=reinforce").out
        assert "--clip-range" in ppo
        assert "--clip-range" not in reinforce
        assert "--batch-episodes" in reinforce
        assert "--batch-episodes" not in ppo

    def test_debug_is_offered_everywhere(self, upslope_command: Callable[..., Any]) -> None:
        for command in COMMANDS[1:]:
            assert "--debug" in upslope_command(command, "--help").out


class TestVersion:
    @pytest.mark.parametrize(
        "arguments", [["--version"], ["train", "--version"], ["eval", "--version"]]
    )
    def test_is_printed(self, upslope_command: Callable[..., Any], arguments: list[str]) -> None:
        assert upslope_command(*arguments).out == f"upslope {upslope.__version__}\n"

    def test_of_the_module(self) -> None:
        command = [sys.executable, "-m", "upslope", "--version"]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert done.stdout == f"upslope {upslope.__version__}\n"

    def test_of_the_installed_command(self) -> None:
        command = [str(sys.executable).replace("python", "upslope").replace("upslope3", "upslope")]
        done = subprocess.run(
            [re.sub(r"upslope[\d.]*$", "upslope", command[0]), "--version"],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert done.stdout == f"upslope {upslope.__version__}\n"


class TestEnvs:
    def test_lists_what_contains_the_word(self, upslope_command: Callable[..., Any]) -> None:
        lines = upslope_command("envs", "cartpole").out.splitlines()
        assert [line.split()[0] for line in lines if "CartPole" in line.split()[0]]
        assert all("cartpole" in line.split()[0].lower() for line in lines)
        found = next(line for line in lines if line.startswith("CartPole-v1 "))
        assert "500 steps" in found
        assert "475" in found

    def test_lists_all(self, upslope_command: Callable[..., Any]) -> None:
        names = [line.split()[0] for line in upslope_command("envs").out.splitlines()]
        assert {"CartPole-v1", "Pendulum-v1", "HalfCheetah-v5", "LunarLander-v3"} <= set(names)
        assert len(names) == len(set(names))

    def test_into_a_pipe_that_closes(self) -> None:
        process = subprocess.Popen(
            [sys.executable, "-m", "upslope", "envs"],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert process.stdout is not None
        process.stdout.close()
        assert process.wait() == 0
        assert process.stderr is not None
        assert process.stderr.read() == ""
        process.stderr.close()


class TestLibrary:
    def test_import_needs_no_torch(self) -> None:
        code = "import upslope, sys; print('torch' in sys.modules, upslope.__version__)"
        assert processor_seconds(code)[1] == f"False {upslope.__version__}\n"
