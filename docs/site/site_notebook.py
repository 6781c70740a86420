"""The quickstart notebook as a page: run while the site is built, so that no output is stale."""

from __future__ import annotations

import base64
import os
import re
import tempfile
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from traitlets.config import Config

_ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


def executed(path: Path, seconds: int = 120) -> Any:
    """Return the notebook with its outputs, run from top to bottom in its own folder.

    Raises:
        nbclient.exceptions.CellExecutionError: if a cell raises.
    """
    notebook = unexecuted(path)
    # Some packages set another backend for the whole process, and a kernel inherits it.
    inline = {"MPLBACKEND": "module://matplotlib_inline.backend_inline"}
    with tempfile.TemporaryDirectory() as sockets:  # no port is opened
        NotebookClient(
            notebook,
            timeout=seconds,
            kernel_name="python3",
            resources={"metadata": {"path": str(path.parent)}},
            config=Config({"KernelManager": {"transport": "ipc", "ip": f"{sockets}/kernel"}}),
        ).execute(env=os.environ | inline)
    return notebook


def unexecuted(path: Path) -> Any:
    """Return the notebook as it is stored: without outputs."""
    return nbformat.read(path, as_version=4)


def to_page(notebook: Any, name: str) -> tuple[str, dict[str, bytes]]:
    """Return a notebook as Markdown, and the pictures that it refers to, by file name."""
    parts: list[str] = []
    pictures: dict[str, bytes] = {}
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            parts.append(cell.source)
        elif cell.cell_type == "code":
            parts.append(f"```python\n{cell.source}\n```")
            parts += [_output(output, name, pictures) for output in cell.outputs]
    return "\n\n".join(part for part in parts if part) + "\n", pictures


def _output(output: Any, name: str, pictures: dict[str, bytes]) -> str:
    if output.output_type == "stream":
        return "" if output.name == "stderr" else _fenced(output.text)
    data = output.get("data", {})
    if "image/png" in data:
        file = f"{name}-{len(pictures) + 1}.png"
        pictures[file] = base64.b64decode(data["image/png"])
        return f"![What the cell above draws]({file})"
    return _fenced(data.get("text/plain", ""))


def _fenced(text: str) -> str:
    return f"```text\n{_ANSI.sub('', text).rstrip()}\n```" if text.strip() else ""
