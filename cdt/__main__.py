"""``python -m cdt``."""

import sys
from pathlib import Path

# `python -m` puts the current directory first, where a file may have the name of a module. The command `cdt` does not.
if not sys.flags.safe_path and sys.path[0] != str(Path(__file__).parents[1]):
    del sys.path[0]

from cdt.cli.command import main

sys.exit(main())
