"""``python -m pyro_equivariance``."""

import sys

from .cli import main

sys.exit(main())
