"""`python -m salmask` is the command `salmask`."""

import sys

from salmask.cli.main import main

sys.exit(main())
