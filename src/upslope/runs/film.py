"""Frames into an mp4 by ffmpeg, which is there whole or not at all."""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path
from typing import Any, Self

import numpy as np

from upslope.errors import ConfigError
from upslope.runs.durable import TEMPORARY_SUFFIX


class Film:
    """An mp4, filmed beside its place and renamed at the end of the block, whatever ends it.

    Args:
        path: the file; its folder is made, what is there is replaced in one step. Without any frame
            nothing is written.

    Raises:
        ConfigError: before the first frame where nothing can be written, or an extra is missing.
    """

    fps = 30  # frames a second

    def __init__(self, path: Path) -> None:
        try:
            import imageio_ffmpeg
        except ImportError:
            raise ConfigError(
                "a video needs imageio-ffmpeg: run pip install 'upslope[video]'"
            ) from None
        self._ffmpeg, self._path = imageio_ffmpeg, path
        name = f".{secrets.token_hex(8)}{TEMPORARY_SUFFIX}{path.suffix}"
        self._temporary = path.absolute().with_name(name)  # a leading "-" is no option of ffmpeg's
        self._writer: Any = None
        self._shape: tuple[int, ...] = ()

    def __enter__(self) -> Self:
        try:
            if self._path.is_dir():
                raise IsADirectoryError(None, "it is a directory")
            self._temporary.parent.mkdir(parents=True, exist_ok=True)
            self._temporary.touch()
        except OSError as error:
            raise self._unwritable(error.strerror) from None
        return self

    def __exit__(self, *_: object) -> None:
        try:
            if self._writer is not None:
                self._writer.close()
                self._check()
                os.replace(self._temporary, self._path)
        finally:
            with contextlib.suppress(OSError):
                self._temporary.unlink(missing_ok=True)

    def add(self, frame: Any) -> None:
        """Add a frame ``[height, width, 3]`` of bytes, of the size of the first."""
        is_picture = getattr(frame, "ndim", 0) == 3 and frame.shape[2] == 3
        if not is_picture or frame.dtype != np.uint8:
            raise ConfigError(
                "this environment's render gives no picture (bytes of [height, width, 3]): "
                "it cannot be filmed"
            )
        if self._writer is None:
            self._shape = frame.shape
            self._writer = self._ffmpeg.write_frames(
                str(self._temporary), (frame.shape[1], frame.shape[0]),
                fps=self.fps, macro_block_size=2, ffmpeg_log_level="quiet",
            )  # fmt: skip
            self._writer.send(None)
        if frame.shape != self._shape:
            raise ConfigError(
                f"this environment's pictures change their size from {self._shape[:2]} to "
                f"{frame.shape[:2]}: they cannot be one film"
            )
        try:
            self._writer.send(frame.tobytes())
        except OSError:  # ffmpeg is gone
            self._writer = None
            raise self._unwritable("ffmpeg stopped, as it does where the disk is full") from None

    def _check(self) -> None:
        """Have ffmpeg read what it left: the head comes last, and a full disk goes unsaid."""
        try:
            self._ffmpeg.count_frames_and_secs(str(self._temporary))
        except RuntimeError:
            said = "ffmpeg left no film, as it does where the disk is full"
            raise self._unwritable(said) from None

    def _unwritable(self, reason: str | None) -> ConfigError:
        return ConfigError(f"cannot write {self._path}: {reason}; give another --video")
