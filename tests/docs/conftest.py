"""The helpers that build the site are modules beside it."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent.parent / "docs/site"))
