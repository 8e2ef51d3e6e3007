"""A learner that trains nothing, with one tensor of as many values as its argument says: what `consortia bench learner` measures.

It is run as `python -m consortia._idle COUNT`, and is not a part of the interface.
"""

from __future__ import annotations

import sys
from array import array
from typing import Any, Dict

from . import tasks


def main() -> None:
    """Give back the values of every task."""
    count = int(sys.argv[1])
    try:
        import numpy
    except ImportError:
        model: Dict[str, Any] = {"vector": array("f", bytes(4 * count))}
    else:
        model = {"vector": numpy.zeros(count, dtype="float32")}
    for task in tasks(model):
        task.done(examples=10, loss=0.0)


if __name__ == "__main__":
    main()
