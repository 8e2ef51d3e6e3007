"""Federated learning with the program Consortia: take part with a Python script, simulate a federation, speak to its server.

A training script becomes a learner by a loop over its tasks:

    import consortia

    for task in consortia.tasks(model):        # the global values are in `model` when the body runs
        if task.kind == "train":
            loss = train(model, epochs=task.epochs)
            task.done(examples=len(train_set), loss=loss)
        else:
            loss, accuracy = test(model)
            task.done(examples=len(test_set), loss=loss, accuracy=accuracy)

The same file is started by `consortia simulate` and by a site. Nothing here needs another package; NumPy and torch are used where a
model is made of them.
"""

from ._binary import binary
from ._errors import (
    BinaryNotFound,
    CommandFailed,
    Error,
    ModelError,
    NotLaunched,
    ProtocolError,
    Refused,
    RequestFailed,
    RunFailed,
    TaskError,
)
from ._federation import Federation, Run
from ._learner import Tasks, tasks
from ._patch import patch
from ._safetensors import load_into, save_initial, tensors
from ._simulate import Result, simulate
from ._task import Client, Task
from ._version import __version__

__all__ = [
    "BinaryNotFound",
    "Client",
    "CommandFailed",
    "Error",
    "Federation",
    "ModelError",
    "NotLaunched",
    "ProtocolError",
    "Refused",
    "RequestFailed",
    "Result",
    "Run",
    "RunFailed",
    "Task",
    "TaskError",
    "Tasks",
    "__version__",
    "binary",
    "load_into",
    "patch",
    "save_initial",
    "simulate",
    "tasks",
    "tensors",
]
