"""The Python of every page runs, prints what the page says, and its command lines exist."""

from __future__ import annotations

import contextlib
import io
import re
import shlex
import sys
import warnings
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest
import torch
from docs_fences import commands, fences

from upslope.cli.lab import COMMANDS as LAB_COMMANDS
from upslope.cli.main import COMMANDS
from upslope.cli.parser import settings_given
from upslope.cli.train import parser as train_parser
from upslope.config import CONFIGS
from upslope.errors import ConfigError

ROOT = Path(__file__).parent.parent.parent
PAGES = sorted(
    str(path.relative_to(ROOT))
    for path in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]
)
WITH_PYTHON = [
    page for page in PAGES if any(f.language == "python" for f in fences((ROOT / page).read_text()))
]
TARGETS = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)


def run_page(page: str, name: str, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Run a page's Python in one namespace and return what differs from the page."""
    module = ModuleType("a_page")
    monkeypatch.setitem(sys.modules, "a_page", module)
    differences, printed = [], None
    for fence in fences(page):
        if fence.language == "python":
            code = compile("\n" * (fence.line - 1) + fence.text, name, "exec")
            with contextlib.redirect_stdout(io.StringIO()) as stdout:
                exec(code, module.__dict__)
            printed = stdout.getvalue()
        elif fence.language == "text" and fence.follows_directly and printed is not None:
            said, shown = tidy(fence.text), tidy(printed)
            if said != shown:
                differences.append(
                    f"{name}:{fence.line} says\n{said}\nbut this is printed:\n{shown}"
                )
            printed = None
    return differences


def tidy(text: str) -> str:
    return "\n".join(line.rstrip() for line in text.strip("\n").splitlines())


def fault_of(command: str) -> str | None:
    """Say what is wrong with a command line, if anything."""
    words = shlex.split(command, comments=True)
    if not words or words[0] not in ("upslope", "make", "python"):
        return None
    if words[0] == "make":
        wanted = [word for word in words[1:] if "=" not in word]
        return next((f"no target {word}" for word in wanted if word not in TARGETS), None)
    if words[0] == "python":
        file = words[1]
        return None if file.startswith("-") or (ROOT / file).is_file() else f"no file {file}"
    name, *arguments = words[1:] or [""]
    if name not in COMMANDS:
        return f"no command {name!r}"
    algorithm = arguments[arguments.index("--algo") + 1] if "--algo" in arguments else "ppo"
    if algorithm not in CONFIGS:
        return f"no algorithm {algorithm!r}"
    if name == "lab":
        command, *arguments = arguments or [""]
        if command not in LAB_COMMANDS:
            return f"no command {command!r} of the lab"
        name = f"lab_{command}"
    module = import_module(f"upslope.cli.{name.replace('-', '_')}")
    try:
        parser = train_parser(algorithm) if name == "train" else module.parser()
        with contextlib.redirect_stdout(io.StringIO()):
            asked = parser.parse(arguments)
        if name == "train":
            CONFIGS[algorithm].from_settings(settings_given(asked, CONFIGS[algorithm]))
    except ConfigError as error:
        return str(error)
    except SystemExit:  # --help
        return None
    return None


@pytest.mark.parametrize("page", WITH_PYTHON)
def test_python_runs_and_prints_what_the_page_says(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with torch.random.fork_rng(), warnings.catch_warnings():
        differences = run_page((ROOT / page).read_text(encoding="utf-8"), page, monkeypatch)
    assert not differences, "\n\n".join(differences)


@pytest.mark.parametrize("page", PAGES)
def test_command_lines_exist(page: str) -> None:
    lines = commands((ROOT / page).read_text(encoding="utf-8"))
    faults = {line: fault_of(line) for line in lines}
    assert not {line: fault for line, fault in faults.items() if fault}


def test_readme_has_both() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert "README.md" in WITH_PYTHON
    assert any(line.startswith("upslope train") for line in commands(text))


def test_output_is_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    page = "```python\nx = 1\nprint(x)\n```\n\n```text\n{}\n```\n\n```python\nprint(x + 1)\n```\n"
    assert run_page(page.format("1"), "p", monkeypatch) == []
    (difference,) = run_page(page.format("2"), "p", monkeypatch)
    assert difference == "p:7 says\n2\nbut this is printed:\n1"


def test_a_text_fence_after_prose_is_not_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    page = "```python\nprint(1)\n```\n\nFor example:\n\n```text\n2\n```\n"
    assert run_page(page, "p", monkeypatch) == []


def test_an_error_names_the_line_of_the_page(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ZeroDivisionError) as caught:
        run_page("Text.\n\n```python\nx = 0\n1 / x\n```\n", "p.md", monkeypatch)
    last = caught.traceback[-1]
    assert (str(last.path).rpartition("/")[2], last.lineno + 1) == ("p.md", 5)


@pytest.mark.parametrize(
    ("command", "fault"),
    [
        ("upslope train CartPole-v1 --algo trpo --target-kl 0.02  # a comment", None),
        ("upslope train --help", None),
        ("upslope eval runs/... --episodes 5", None),
        ("pip install .", None),
        ("make PYTHON=python3.12 test", None),
        ("upslope exprt runs/... --format onnx", "no command 'exprt'"),
        ("upslope export runs/... --formt onnx", "did you mean '--format'"),
        ("upslope train CartPole-v1 --gama 0.9", "did you mean '--gamma'"),
        ("upslope train CartPole-v1 --clip-range 0.1 --algo a2c", "does not know '--clip-range'"),
        ("upslope train CartPole-v1 --gamma 2", "gamma=2"),
        ("upslope train CartPole-v1 --algo sac", "no algorithm 'sac'"),
        ("make nothing", "no target nothing"),
        ("python bench/nowhere.py", "no file bench/nowhere.py"),
    ],
)
def test_command_lines_are_checked(command: str, fault: str | None) -> None:
    found = fault_of(command)
    assert (found is None) if fault is None else (fault in str(found)), found


def test_commands_are_found() -> None:
    page = "```sh\nupslope train X \\\n  --seed 1\n\n$ make test\n```\n\n```\nnot this\n```\n"
    assert commands(page) == ["upslope train X --seed 1", "make test"]


def test_an_open_fence_is_an_error() -> None:
    with pytest.raises(ValueError, match="line 2 is never closed"):
        fences("text\n```python\nx\n")
