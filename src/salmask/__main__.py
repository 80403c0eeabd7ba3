"""`python -m salmask` is the command `salmask`."""

import sys

try:
    from salmask.cli.main import main
except KeyboardInterrupt:  # Ctrl-C before there is a command
    sys.exit(130)

if __name__ == "__main__":
    sys.exit(main())
