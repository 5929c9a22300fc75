"""``python -m cdt``."""

import sys

from cdt.cli.command import main

sys.exit(main())
