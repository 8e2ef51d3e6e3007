"""A task as the script sees it, and what it needs of the learner behind it."""

from __future__ import annotations

import sys
import threading
import traceback
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Dict, Mapping, Optional, Tuple, Type

from ._distributed import Ranks
from ._errors import TaskError
from ._models import Parameters

STOPPED = "stopped, as the agent asked"


@dataclass(frozen=True)
class Client:
    """Whom a task is for.

    name: the site's name, or the virtual client's.
    index: 0 to `clients - 1`; in a simulation it tells whose records are meant.
    clients: how many clients this learner may serve; 1 at a site.
    """

    name: str
    index: int
    clients: int


class Task:
    """One request to train or to evaluate. The global values are in the model when the body of the loop sees it.

    kind: "train" or "evaluate".
    client: whom it is for.
    config: the plan's `[learner.config]`, the same for all tasks of a run.
    metrics: the names of the metrics beside loss and accuracy that the plan declares.

    Of a task to train (else 0, and 1.0 for the factor):

    round: the round, from 1.
    seed: from which all randomness of this task should be taken; 0 to 2^53 - 1.
    epochs: how often to pass over the records; at least 1.
    batch_size: records in a batch; 0 for all of them at once.
    learning_rate_scale: the factor by which the plan's schedule changes the learning rate in this round.
    proximal_mu: the weight of FedProx's term, above 0 where the plan's strategy is FedProx, else 0. The objective is then the loss plus
    `proximal_mu / 2 * |w - w_global|^2` (Li et al. 2020); `done()` refuses the result of a script that has not read it.

    Used by `with task:`, the exceptions of the body are reported to the site's log and the loop goes on with the next task.
    """

    def __init__(
        self,
        learner: Answers,
        kind: str,
        number: int,
        client: Client,
        config: Dict[str, Any],
        metrics: Tuple[str, ...],
        fields: Mapping[str, Any],
    ) -> None:
        self._learner = learner
        self._id = number
        self._open = True
        self._stopped = False
        self.kind = kind
        self.client = client
        self.config = config
        self.metrics = metrics
        self.round: int = fields.get("round", 0)
        self.seed: int = fields.get("seed", 0)
        self.epochs: int = fields.get("epochs", 0)
        self.batch_size: int = fields.get("batch_size", 0)
        self.learning_rate_scale: float = fields.get("learning_rate_scale", 1.0)
        self._proximal_mu: float = fields.get("proximal_mu", 0.0)
        self._has_read_mu = False

    @property
    def proximal_mu(self) -> float:
        """The weight of FedProx's term, see the class."""
        self._has_read_mu = True
        return self._proximal_mu

    def __repr__(self) -> str:
        return f"<consortia.Task {self._title()}>"

    def _title(self) -> str:
        of = f"round {self.round}, " if self.kind == "train" else ""
        return f"{self._id} ({self.kind}, {of}client {self.client.name})"

    def stopped(self) -> bool:
        """Whether the result of this task is no longer wanted: the round is over, or the site stops.

        It never waits. A long training asks it now and then, and leaves its loop when it is true; `done()` is not needed then. Under
        torch.distributed every process must ask equally often, and all are answered alike.
        """
        return self._learner.stopped(self)

    def done(self, *, examples: int, loss: float, **metrics: float) -> None:
        """Send the result: of a training the values that are in the model now, and what was measured.

        examples: the number of records that were used: at least 1 of a training, whose weight it is where the plan weighs by examples; 0 of an evaluation where there
        are no test records, whose loss counts for nothing.
        loss: the mean loss over them.
        metrics: `accuracy`, a share from 0 to 1, and what the plan declares.

        Where a metric or a value of the model is not finite, nothing leaves: the task is declined, and the site's log names what it is.
        Raises `TaskError` where the task was answered before or a metric is unknown or no number.
        """
        self._learner.done(self, examples, {"loss": loss, **metrics})

    def decline(self, reason: str) -> None:
        """Answer that this task cannot be done.

        The reason goes to the site's own log and never to the server. Raises `TaskError` where the task was answered before.
        """
        self._learner.expect_open(self, "decline")
        self._learner.fail(self, reason, None)

    def __enter__(self) -> Task:
        return self

    def __exit__(
        self, kind: Optional[Type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> bool:
        if error is None or not isinstance(error, Exception):
            return False
        if self._open:
            self._learner.fail(self, f"{type(error).__name__}: {error}", details_of(error))
        else:
            say(f"task {self._title()} was answered, and then the script raised {details_of(error)}")
        return True


class Answers:
    """What a task needs of the learner that gave it, whichever rank that is."""

    def __init__(self, parameters: Parameters, ranks: Ranks) -> None:
        self._parameters = parameters
        self._ranks = ranks
        self._bytes = sum(spec.bytes for spec in parameters.specs)
        self._buffer = bytearray(0 if parameters.keeps_values else self._bytes)
        self._open: Optional[Task] = None
        self._answering = threading.Lock()

    def next_task(self) -> Optional[Task]:
        """Wait for a task; None when there will be no other."""
        raise NotImplementedError

    def stopped(self, task: Task) -> bool:
        """Whether the result is no longer wanted."""
        raise NotImplementedError

    def done(self, task: Task, examples: Any, metrics: Dict[str, Any]) -> None:
        """Answer with a result."""
        raise NotImplementedError

    def fail(self, task: Task, error: str, details: Optional[str]) -> None:
        """Answer that it was not done."""
        raise NotImplementedError

    def left(self, task: Task) -> None:
        """The loop was left."""

    def expect_term(self, task: Task) -> None:
        """Raise `TaskError` where FedProx's term was not added: a result without it would pass for FedProx's."""
        if task._proximal_mu > 0 and not task._has_read_mu:
            raise TaskError(
                f"the plan's strategy is fedprox: add `task.proximal_mu / 2 * |w - w_global|^2` to the loss (mu is {task._proximal_mu}), "
                "or ask for a plan with another strategy"
            )

    def expect_open(self, task: Task, verb: str) -> None:
        """Raise `TaskError` where a task has been answered."""
        if not task._open:
            raise TaskError(
                f"task {task._title()} has been answered; answer each task once, by `done()` or `decline()`"
            )

    def _body_buffer(self) -> bytearray:
        return bytearray(self._bytes) if self._parameters.keeps_values else self._buffer

    def _end_open(self) -> None:
        """The body of the loop is over: a task that it left open is one that it forgot, or one that was stopped."""
        task = self._open
        if task is not None:
            forgotten = (
                f"the script went on without `task.done(examples=..., loss=...)`; call it once for each task, also for those to {task.kind}, "
                "or `task.decline(reason)`"
            )
            self.fail(task, STOPPED if task._stopped else forgotten, None)

    def _close(self, task: Task) -> bool:
        """Take the right to answer a task, which one thread gets."""
        with self._answering:
            was_open, task._open = task._open, False
            if self._open is task:
                self._open = None
            return was_open


def details_of(error: BaseException) -> str:
    return "".join(traceback.format_exception(type(error), error, error.__traceback__))


def say(text: str) -> None:
    """A line for the site's log: what a learner prints goes there."""
    print(f"consortia: {text}", file=sys.stderr, flush=True)
