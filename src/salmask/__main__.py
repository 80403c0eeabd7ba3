"""`python -m salmask` is the command `salmask`."""

import sys

from salmask.cli import main

sys.exit(main())
