"""`python -m consortia ...` is the command `consortia ...`."""

from __future__ import annotations

import os
import sys

from ._binary import binary
from ._errors import BinaryNotFound


def main() -> None:
    """Become the command. Exits with 2 where it is not installed."""
    try:
        program = binary()
    except BinaryNotFound as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    sys.stdout.flush()
    os.execv(program, [program, *sys.argv[1:]])


if __name__ == "__main__":
    main()
