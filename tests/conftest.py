"""What all tests share: one thread per process, and hypothesis without a clock."""

from __future__ import annotations

import os

import torch
from hypothesis import settings

torch.set_num_threads(1)

# A busy machine is no failure, and continuous integration tries the same examples every time.
settings.register_profile("cdt", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("cdt")
