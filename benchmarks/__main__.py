"""``python -m benchmarks [section ...]``."""

import sys

from .sections import main

sys.exit(main())
