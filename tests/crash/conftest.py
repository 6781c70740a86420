"""What the crash tests share: the suites of bench/crash, and a process that forks saves."""

from __future__ import annotations

import functools
import json
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest

HERE = Path(__file__).parent
BENCH = HERE.parents[1] / "bench" / "crash"
sys.path.insert(0, str(HERE))


class Saved(NamedTuple):
    """How a save ended: the exit code, -9 for a kill, and the sentence of its error."""

    code: int
    said: str


class Saver:
    """Has ``saving.py`` save in a child of its own, under strace where asked."""

    def __init__(self, scratch: Path) -> None:
        self._scratch, self._count = scratch, 0
        self._server = subprocess.Popen(
            [sys.executable, str(HERE / "saving.py")], stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def fork(self, do: str, folder: Path, go: Path, **more: object) -> int:
        """Fork a child that waits for ``go``; return its id."""
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        asked = {"do": do, "folder": str(folder), "go": str(go), **more}
        self._server.stdin.write(json.dumps(asked) + "\n")
        self._server.stdin.flush()
        return int(self._server.stdout.readline())

    def save(self, do: str, folder: Path, inject: str = "", **more: object) -> Saved:
        """Save number 2, with what strace is to ``inject``."""
        assert self._server.stdout is not None
        self._count += 1
        go = self._scratch / f"go-{self._count}"
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as heard:
            heard.bind(f"{go}.socket")
            heard.settimeout(0.001)
            child = self.fork(do, folder, go, **more)
            strace = _attach(child, inject) if inject else None
            go.touch()
            code = int(self._server.stdout.readline())
            if strace is not None:
                strace.communicate(timeout=30)
            said = heard.recv(65536).decode() if code > 0 else ""
        return Saved(code, said)

    def close(self) -> None:
        """End the process."""
        self._server.communicate(timeout=30)


def _attach(child: int, inject: str) -> subprocess.Popen[str]:
    call = inject.partition(":")[0]
    strace = subprocess.Popen(
        ["strace", "-f", "-p", str(child), "-e", f"trace={call}", "-e", f"inject={inject}"],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert strace.stderr is not None
    first = strace.stderr.readline()
    if "attached" not in first:
        strace.communicate()
        pytest.skip(f"strace cannot attach here: {first.strip()}")
    return strace


@pytest.fixture(scope="module")
def saver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Saver]:
    made = Saver(tmp_path_factory.mktemp("saver"))
    yield made
    made.close()


@pytest.fixture
def strace() -> None:
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")


@pytest.fixture(scope="session")
def suites() -> Iterator[ModuleType]:
    """The module ``kill`` of bench/crash, beside which ``signals`` and ``disturbed`` import."""
    with pytest.MonkeyPatch.context() as patched:
        patched.syspath_prepend(str(BENCH))
        import kill  # type: ignore[import-not-found]

        yield kill


@pytest.fixture(scope="session")
def known(suites: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    """``known(setting)``: its undisturbed run, which is made once."""

    @functools.cache
    def make(setting: str) -> Any:
        return suites.reference(tmp_path_factory.mktemp("undisturbed") / "here", setting)

    return make
