"""`python -m lcbench` is `lcbench`."""

import sys

from lcbench.cli import main

sys.exit(main())
