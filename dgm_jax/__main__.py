"""python -m dgm_jax is dgm."""

import sys

from dgm_jax.cli import main

sys.exit(main())
