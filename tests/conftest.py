import signal
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent / "helpers"))
torch.set_num_threads(1)

if (
    signal.getsignal(signal.SIGINT) is signal.SIG_IGN
):  # a background job of a shell without job control
    signal.signal(signal.SIGINT, signal.default_int_handler)
