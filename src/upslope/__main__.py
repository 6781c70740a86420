"""``python -m upslope``."""

import sys

from upslope.cli.main import main

sys.exit(main())
