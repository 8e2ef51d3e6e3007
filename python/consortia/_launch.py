"""Start a function as a learner: what `simulate` names as the command where its learner is a function.

It is run as a file, with one argument: JSON that says where the function is. It is not a part of the interface.
"""

from __future__ import annotations

import functools
import importlib
import json
import os
import pickle
import runpy
import sys
from typing import Any, Callable, Dict, cast


def _function(where: Dict[str, Any]) -> Callable[[], object]:
    if "pickle" in where:
        with open(where["pickle"], "rb") as file:
            return cast(Callable[[], object], pickle.load(file))
    if "file" in where:
        names = runpy.run_path(where["file"], run_name="__consortia__")
        head, _, rest = where["name"].partition(".")
        return cast(Callable[[], object], functools.reduce(getattr, rest.split(".") if rest else [], names[head]))
    module = importlib.import_module(where["module"])
    return cast(Callable[[], object], functools.reduce(getattr, where["name"].split("."), module))


def main() -> None:
    """Call the function of the only argument."""
    where = json.loads(sys.argv[1])
    # This file's own folder was put there by Python; the caller's paths take its place.
    sys.path[:] = where["path"]
    package = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    if package not in sys.path:
        sys.path.append(package)
    sys.argv = [where.get("file", where.get("module", "learner"))]
    _function(where)()


if __name__ == "__main__":
    main()
