"""``python -m upslope`` and ``upslope``: signals are heard before anything else is imported."""

import os
import signal
import sys


def run() -> int:
    """Run the command line of this process and return its exit code."""
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as in a shell's background job
            signal.signal(number, _leave)
    from upslope.cli.main import main

    return main()


def _leave(number: int, frame: object) -> None:
    """Nothing has begun that would have to be ended."""
    os._exit(128 + number)


if __name__ == "__main__":
    sys.exit(run())
