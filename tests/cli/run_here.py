"""The command line, run as a script by the tests in processes that ``torchrun`` would start."""

from __future__ import annotations

import sys

from interpretune.cli.main import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
