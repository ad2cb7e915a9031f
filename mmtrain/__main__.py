"""``python -m mmtrain``: the same as the command."""

import sys

from mmtrain.cli import main

if __name__ == "__main__":
    sys.exit(main())
