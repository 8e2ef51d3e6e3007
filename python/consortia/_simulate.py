"""Simulations from Python: the command `consortia simulate`, with a script or a function as its learner."""

from __future__ import annotations

import csv
import inspect
import json
import os
import sys
import tempfile
from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence, Union

from . import _channel
from ._binary import run_json
from ._errors import Error
from ._models import Model, Personal
from ._safetensors import Path, load_into

Learner = Union[str, "os.PathLike[str]", Sequence[str], Callable[[], object]]
Value = Union[None, bool, int, float, str]
Row = Dict[str, Value]


class Result:
    """What a simulation left behind.

    folder: the results folder, as an absolute path.
    rounds: the number of rounds that were done.
    model_sha256: the SHA-256 of the last model's parameters, in hexadecimal digits. Two equal ones are equal models, bit for bit.
    loss, accuracy: of the last model on the clients' test records, None where nobody measured.
    summary: everything that the command printed, as its JSON names it.
    """

    def __init__(self, summary: Mapping[str, Any], cwd: Optional[str] = None) -> None:
        self.summary = dict(summary)
        self.folder = os.path.abspath(os.path.join(cwd or ".", summary["results"]))
        self.rounds = int(summary["rounds"])
        self.model_sha256: str = summary["model_sha256"]
        self.loss: Optional[float] = summary.get("loss")
        self.accuracy: Optional[float] = summary.get("accuracy")

    def __repr__(self) -> str:
        return f"<consortia.Result {self.rounds} rounds, loss {self.loss}, accuracy {self.accuracy}, in {self.folder}>"

    @property
    def report(self) -> str:
        """The path of the report, one page of HTML."""
        return os.path.join(self.folder, "report.html")

    @property
    def model(self) -> str:
        """The path of the last model, `model.safetensors`."""
        return os.path.join(self.folder, "model.safetensors")

    @property
    def metrics(self) -> List[Row]:
        """A dict for each round, with the columns of `metrics.csv`; None where nothing was measured."""
        with open(os.path.join(self.folder, "metrics.csv"), newline="", encoding="utf-8") as file:
            return [{name: _value(text) for name, text in row.items()} for row in csv.DictReader(file)]

    def frame(self) -> Any:
        """The metrics as a `pandas.DataFrame` with `round` as its index. Raises `Error` where pandas is not installed."""
        return frame_of(self.metrics)

    def load_into(self, model: Model, personal: Personal = (), *, trainable_only: bool = False) -> None:
        """Put the last model into one of Python's, as `consortia.load_into` does."""
        load_into(model, self.model, personal, trainable_only=trainable_only)


def simulate(
    plan: Path,
    learner: Optional[Learner] = None,
    rounds: Optional[int] = None,
    out: Optional[Path] = None,
    *,
    seed: Optional[int] = None,
    arguments: Sequence[str] = (),
    processes: Optional[int] = None,
    settings: Mapping[str, Any] = {},
    show: bool = True,
) -> Result:
    """Run a federation of virtual clients on this machine, and return what it came to.

    plan: a federation file with a `[simulation]` table.
    learner: what trains: the path of a script that loops over `consortia.tasks(model)`, run by this Python; a function without arguments
    that does; or a command as a list of words. By default what the plan names under `[simulation.learner]`, or its built-in model.
    A function runs in processes of its own: it is found by its module and name, so what it uses must be there when its module is imported.
    One that is defined in a notebook or within another function needs the package `cloudpickle`.
    arguments: of a script, such as the path of its records: a whole path, because a learner works in a folder of its own.
    rounds, seed: instead of the plan's.
    out: the folder in which the results folder is made; `runs` by default.
    processes: how many processes of the learner share the clients; the plan's by default.
    settings: further settings of the plan, such as `{"training.epochs": 2}`.
    show: whether to copy the progress to stderr.

    Raises `CommandFailed` where the command fails, with its words; `BinaryNotFound` where it is not installed; `Error` for a function that
    another process cannot find.
    """
    if os.environ.get(_channel.VARIABLE):
        raise Error(
            'this process is a learner itself; call `consortia.simulate` under `if __name__ == "__main__":`, so that importing the script does not simulate'
        )
    words = ["simulate", os.fspath(plan)]
    changed: Dict[str, Any] = dict(settings)
    if rounds is not None:
        changed["rounds"] = rounds
    if processes is not None:
        changed["simulation.learner.processes"] = processes
    with tempfile.TemporaryDirectory(prefix="consortia-") as scratch:
        if learner is not None:
            changed["simulation.learner.command"] = _command(learner, arguments, scratch)
            # A learner's environment is clean, and what is imported here should be found there.
            if os.environ.get("PYTHONPATH") and "simulation.learner.environment" not in changed:
                changed["simulation.learner.environment.PYTHONPATH"] = _whole(os.environ["PYTHONPATH"])
        for key, value in changed.items():
            words += ["--set", f"{key}={toml_value(value)}"]
        if seed is not None:
            words += ["--seed", str(seed)]
        words += ["--out", os.fspath(out) if out is not None else "runs"]
        return Result(run_json(words, show))


def _whole(paths: str) -> str:
    """A search path whose relative folders are whole ones: a learner works in another folder."""
    return os.pathsep.join(os.path.abspath(path) for path in paths.split(os.pathsep))


def _command(learner: Learner, arguments: Sequence[str], scratch: str) -> List[str]:
    if arguments and not isinstance(learner, (str, os.PathLike)):
        raise Error("`arguments` are those of a script; a command has its own, and a function has none")
    if isinstance(learner, (str, os.PathLike)):
        path = os.path.abspath(os.fspath(learner))
        if not os.path.isfile(path):
            raise Error(
                f"there is no script `{path}`; `learner` is the path of a script, a function, or a command as a list of words"
            )
        # Unbuffered, so that what the script prints is seen when it prints it.
        return [sys.executable, "-u", path, *map(str, arguments)]
    if callable(learner):
        where = {"path": [os.path.abspath(entry) for entry in sys.path], **_place(learner, scratch)}
        launcher = os.path.join(os.path.dirname(os.path.abspath(__file__)), "_launch.py")
        return [sys.executable, "-u", launcher, json.dumps(where)]
    return [str(word) for word in learner]


def _place(function: Callable[[], object], scratch: str) -> Dict[str, str]:
    """Where another process finds a function."""
    name, module = getattr(function, "__qualname__", "<locals>"), getattr(function, "__module__", None)
    if inspect.isfunction(function) and "<" not in name and module:
        if module != "__main__":
            return {"module": module, "name": name}
        file = getattr(sys.modules["__main__"], "__file__", None)
        if file and os.path.isfile(file):
            return {"file": os.path.abspath(file), "name": name}
    try:
        import cloudpickle  # type: ignore[import-not-found,import-untyped,unused-ignore]
    except ImportError:
        raise Error(
            f"the function `{name}` cannot be found by another process, as it is not at the top of a file; "
            "move it there, or install `cloudpickle`"
        ) from None
    path = os.path.join(scratch, "learner.pickle")
    with open(path, "wb") as file:
        cloudpickle.dump(function, file)
    return {"pickle": path}


def toml_value(value: Any) -> str:
    """A value in the words of TOML. Raises `Error` for what TOML does not have."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, (str, os.PathLike)):
        return json.dumps(os.fspath(value), ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{toml_value(str(key))} = {toml_value(one)}" for key, one in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(toml_value(one) for one in value) + "]"
    raise Error(f"{value!r} has no form in TOML; settings are numbers, texts, truth values, lists and dicts")


def frame_of(rows: Sequence[Mapping[str, Any]]) -> Any:
    """Rows as a `pandas.DataFrame` with `round` as its index. Raises `Error` where pandas is not installed."""
    try:
        import pandas  # type: ignore[import-not-found,import-untyped,unused-ignore]
    except ImportError:
        raise Error("pandas is not installed; `.metrics` has the same numbers as a list of dicts") from None
    frame = pandas.DataFrame(list(rows))
    return frame.set_index("round") if "round" in frame else frame


def _value(text: Optional[str]) -> Value:
    if not text:
        return None
    if text in ("true", "false"):
        return text == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return text
