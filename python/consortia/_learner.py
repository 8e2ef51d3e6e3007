"""The learner: a loop over the tasks that an agent, or a simulation, gives to this script."""

from __future__ import annotations

import atexit
import copy
import math
import os
import sys
import time
from types import TracebackType
from typing import Any, Callable, Dict, Iterator, List, Optional, Sequence, Tuple, Type

from . import _channel, _safetensors
from ._channel import Channel, Closed, Header
from ._distributed import Ranks
from ._errors import ModelError, ProtocolError, TaskError
from ._models import Model, Parameters, Personal, parameters_of
from ._task import STOPPED, Answers, Client, Task, details_of, say
from ._version import __version__

START_VARIABLE = "CONSORTIA_SAVE_INITIAL"
# Other ranks wait in a collective, which torch ends after minutes; so often rank 0 tells them to wait on.
_WAIT_SECONDS = 30.0
# How long the traceback of an exception that leaves the loop is waited for.
_LEFT_SECONDS = 1.0


class Tasks:
    """The tasks, one after another, until the agent ends the run of this script. Made by `tasks`."""

    def __init__(self, learner: Answers) -> None:
        self._learner = learner

    def __iter__(self) -> Iterator[Task]:
        learner = self._learner
        while True:
            task = learner.next_task()
            if task is None:
                return
            try:
                yield task
            except GeneratorExit:
                # The loop was left by `break`, `return` or an exception, whose traceback may still come.
                learner.left(task)
                raise


class _Follower(Answers):
    """A rank that does not speak with the agent: it trains along."""

    def next_task(self) -> Optional[Task]:
        self._end_open()
        while True:
            fields = self._ranks.broadcast(None)
            if fields is None:
                return None
            if fields:
                break
        task = Task(self, **fields)
        self._open = task
        buffer = self._body_buffer()
        self._ranks.broadcast_bytes(buffer)
        self._parameters.load(memoryview(buffer))
        return task

    def stopped(self, task: Task) -> bool:
        task._stopped = self._ranks.broadcast(None)
        return task._stopped

    def done(self, task: Task, examples: Any, metrics: Dict[str, Any]) -> None:
        self.expect_open(task, "done")
        self.expect_term(task)
        if self._close(task):
            self._ranks.settle(None)

    def fail(self, task: Task, error: str, details: Optional[str]) -> None:
        if self._close(task):
            if error != STOPPED:
                say(f"task {task._title()} was not done: {error}" + (f"\n{details}" if details else ""))
            self._ranks.settle(error)


class _Learner(Answers):
    """The learner's half of the channel."""

    def __init__(
        self,
        channel: Channel,
        parameters: Parameters,
        initialise: Optional[Callable[[Client, int], None]],
        ranks: Ranks,
    ) -> None:
        super().__init__(parameters, ranks)
        self._channel = channel
        self._initialise = initialise
        self._last_id = 0
        self._is_prepared = False
        self._config: Dict[str, Any] = {}
        self._metrics: List[str] = []
        self._left: Optional[Tuple[Task, float]] = None
        # What the personal tensors were when the script started: the first values of every client.
        self._first = [bytes(part) for part in parameters.body(personal_only=True)]
        channel.on_beat = self._answer_left

    # -- from the agent ---------------------------------------------------------------------------------------------------------------

    def next_task(self) -> Optional[Task]:
        """Wait for a task. Requests that the script need not see are answered on the way."""
        self._end_open()
        while True:
            if self._ranks.many:
                while not self._channel.has_input(_WAIT_SECONDS):
                    self._ranks.broadcast({})
            try:
                header, length = self._channel.receive_header()
            except Closed:
                if not self._channel.closed:
                    say("the agent closed the connection without `end`; this learner ends")
                self._end()
                return None
            kind = header["type"]
            if kind == "end":
                self._end()
                return None
            if kind in ("train", "evaluate"):
                task = self._begin(kind, header, length)
                if task is not None:
                    return task
            elif kind == "prepare":
                self._prepare(header, length)
            elif kind == "initialise":
                self._begin_initialise(header, length)
            else:
                self._notice(header, length)

    def _end(self) -> None:
        self._channel.close()
        self._ranks.broadcast(None)

    def _notice(self, header: Header, length: int) -> None:
        """What may come at any time and asks for nothing now."""
        self._channel.skip_body(length)
        kind = header["type"]
        if kind == "rejected":
            say(f"the agent did not take the answer to request {header.get('id')}: {header.get('reason')}")
        elif kind == "stop" and self._open is not None and header.get("id") == self._open._id:
            self._open._stopped = True

    def stopped(self, task: Task) -> bool:
        self._expect_here()
        if task is self._open and not task._stopped:
            try:
                while not task._stopped and self._channel.has_input():
                    header, length = self._channel.receive_header()
                    if header["type"] == "end":
                        self._channel.close()
                        task._stopped = True
                    elif header["type"] in ("train", "evaluate", "prepare", "initialise"):
                        raise self._broken(f"the request `{header['type']}` while another one is open")
                    else:
                        self._notice(header, length)
            except Closed:
                self._channel.close()
                task._stopped = True
        task._stopped = bool(self._ranks.broadcast(task._stopped))
        return task._stopped

    def _number(self, header: Header, name: str, least: int) -> int:
        value = header.get(name)
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value < _channel.NUMBER_MAX:
            raise self._broken(
                f"`{header['type']}` with `{name}` = {value!r}; a whole number of at least {least} is needed"
            )
        return value

    def _request(self, header: Header, length: int, expected: int) -> int:
        number = self._number(header, "id", 0)
        if number <= self._last_id and self._last_id:
            raise self._broken(f"the request {number} after {self._last_id}; ids must rise")
        # Before anything is reserved for it: a length is only believed where it is the model's.
        if length != expected:
            raise self._broken(
                f"`{header['type']}` with a body of {length} bytes; the tensors of this learner have {expected}"
            )
        if header["type"] != "prepare" and not self._is_prepared:
            raise self._broken(f"`{header['type']}` before `prepare`")
        self._last_id = number
        return number

    def _client(self, header: Header) -> Client:
        found = header.get("client")
        if not isinstance(found, dict) or not isinstance(found.get("name"), str):
            raise self._broken(f"`{header['type']}` without a client that has a name")
        within = {**found, "type": header["type"]}
        client = Client(found["name"], self._number(within, "index", 0), self._number(within, "clients", 1))
        if client.index >= client.clients:
            raise self._broken(f"client {client.index} of {client.clients}; they are counted from 0")
        return client

    def _prepare(self, header: Header, length: int) -> None:
        number = self._request(header, length, 0)
        config, names = header.get("config", {}), header.get("metrics", [])
        if not isinstance(config, dict) or not isinstance(names, list):
            raise self._broken("`prepare` with a `config` that is not an object or `metrics` that are not a list")
        self._is_prepared, self._config, self._metrics = True, config, [str(name) for name in names]
        self._explain_layout(header.get("tensors"))
        tensors = [
            {"name": spec.name, "shape": list(spec.shape), "personal": spec.personal} for spec in self._parameters.specs
        ]
        self._answer({"type": "result", "id": number, "tensors": tensors})

    def _explain_layout(self, wanted: Any) -> None:
        """Say on stderr where the plan's tensors are not this model's. The agent judges; this text is for whoever reads the script's output."""
        if not isinstance(wanted, list):
            raise self._broken("`prepare` without a list of tensors")
        try:
            plan = {str(one["name"]): tuple(int(size) for size in one["shape"]) for one in wanted}
        except (KeyError, TypeError, ValueError):
            raise self._broken("`prepare` with a tensor that lacks name or shape") from None
        ours = {spec.name: spec.shape for spec in self._parameters.specs if not spec.personal}
        different = [
            f"`{name}` is {list(ours[name])} here and {list(plan[name])} in the plan"
            for name in ours
            if plan.get(name, ours[name]) != ours[name]
        ]
        different += [f"`{name}` {list(ours[name])} is here alone" for name in ours if name not in plan]
        different += [f"`{name}` {list(plan[name])} is in the plan alone" for name in plan if name not in ours]
        if different:
            more = f"; and {len(different) - 20} more" if len(different) > 20 else ""
            say(
                "the model of this script is not the plan's, so its tasks will be declined: "
                + "; ".join(different[:20])
                + more
                + ". Write the plan's start file again with `consortia.save_initial(model, path, personal=...)`, with the same `personal`"
            )

    def _begin_initialise(self, header: Header, length: int) -> None:
        number = self._request(header, length, 0)
        client, seed = self._client(header), self._number(header, "seed", 0)
        body = [memoryview(part) for part in self._first]
        if self._initialise is not None:
            try:
                self._initialise(client, seed)
                body = self._parameters.body(personal_only=True)
            except Exception as error:
                self._answer_failed(number, f"initialise: {type(error).__name__}: {error}", details_of(error))
                return
        self._answer({"type": "result", "id": number}, body)

    def _begin(self, kind: str, header: Header, length: int) -> Optional[Task]:
        number = self._request(header, length, self._bytes)
        client = self._client(header)
        fields: Dict[str, Any] = {}
        if kind == "train":
            fields = {
                name: self._number(header, name, least)
                for name, least in (("round", 1), ("seed", 0), ("epochs", 1), ("batch_size", 0))
            }
            fields["learning_rate_scale"] = self._factor(header, "learning_rate_scale", None)
            fields["proximal_mu"] = self._factor(header, "proximal_mu", 0.0)
        buffer = self._body_buffer()
        self._channel.receive_body(memoryview(buffer))
        given: Dict[str, Any] = {
            "kind": kind,
            "number": number,
            "client": client,
            "fields": fields,
        }
        given.update(config=copy.deepcopy(self._config), metrics=tuple(self._metrics))
        task = Task(self, **given)
        self._open, self._left = task, None
        self._answer({"type": "accepted", "id": number})
        self._ranks.broadcast(given)
        self._ranks.broadcast_bytes(buffer)
        try:
            self._parameters.load(memoryview(buffer))
        except Exception as error:
            if self._ranks.many:
                raise
            self._fail_now(
                task, f"the values could not be put into the model: {type(error).__name__}: {error}", details_of(error)
            )
            return None
        return task

    def _factor(self, header: Header, name: str, default: Optional[float]) -> float:
        value = header.get(name, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not (math.isfinite(value) and value >= 0):
            raise self._broken(f"`train` with `{name}` = {value!r}; a number of at least 0 is needed")
        return float(value)

    # -- to the agent -----------------------------------------------------------------------------------------------------------------

    def expect_open(self, task: Task, verb: str) -> None:
        self._expect_here()
        super().expect_open(task, verb)

    def _expect_here(self) -> None:
        if not self._channel.is_owner:
            raise TaskError(
                "this process was forked from the learner, and only the learner itself speaks to the agent; answer tasks in the main process"
            )

    def done(self, task: Task, examples: Any, metrics: Dict[str, Any]) -> None:
        self.expect_open(task, "done")
        self.expect_term(task)
        examples, numbers = (
            _examples(examples, 1 if task.kind == "train" else 0),
            {name: _metric(name, value) for name, value in metrics.items()},
        )
        unknown = sorted(set(numbers) - {"loss", "accuracy"} - set(self._metrics))
        if unknown:
            raise TaskError(
                f"the plan does not declare the metric `{unknown[0]}`; it declares {self._metrics or 'none beside loss and accuracy'}. Add it to `metrics` under [learner] of the plan, or leave it out"
            )
        if not 0 <= numbers.get("accuracy", 0.0) <= 1:
            raise TaskError(f"the metric `accuracy` is {numbers['accuracy']}; it is a share from 0 to 1")
        error: Optional[str] = None
        body: List[memoryview] = []
        infinite = [name for name, value in numbers.items() if not math.isfinite(value)]
        if task._stopped:
            error = STOPPED
        elif infinite:
            error = f"the metric `{infinite[0]}` is {numbers[infinite[0]]}, which is not finite, so nothing was sent"
        elif task.kind == "train":
            try:
                body = self._parameters.body()
            except ModelError as problem:
                error = str(problem)
        error = self._ranks.settle(error)
        if error is not None:
            self._fail_now(task, error, None)
        elif self._close(task):
            answer: Header = {"type": "result", "id": task._id, "examples": examples, "metrics": numbers}
            if task._proximal_mu > 0:
                answer["proximal_mu"] = task._proximal_mu
            self._answer(answer, body)

    def fail(self, task: Task, error: str, details: Optional[str]) -> None:
        self._fail_now(task, self._ranks.settle(error) or error, details)

    def _fail_now(self, task: Task, error: str, details: Optional[str], said: bool = False) -> None:
        """Answer `failed`. Safe from every thread; whoever comes first answers."""
        if not self._close(task):
            return
        # First the agent: printing waits where nobody reads.
        self._answer_failed(task._id, error, details)
        if not said and not task._stopped:
            say(f"task {task._title()} was not done: {error}" + (f"\n{details}" if details else ""))

    def _answer_failed(self, number: int, error: str, details: Optional[str]) -> None:
        answer: Header = {"type": "failed", "id": number, "error": " ".join(error.split())[:1000] or "no reason given"}
        if details:
            # The end of a traceback tells more than its beginning.
            answer["details"] = details.encode(errors="replace")[-_channel.DETAILS_MAX :].decode(errors="ignore")
        self._answer(answer)

    def _answer(self, header: Header, body: Sequence[memoryview] = ()) -> None:
        try:
            self._channel.send(header, body)
        except OSError:
            # The agent has gone. The loop finds that out when it waits for the next task, and ends.
            pass

    def left(self, task: Task) -> None:
        if task._open:
            self._left = (task, time.monotonic())

    def _answer_left(self) -> None:
        """On every beat: a task that nobody will answer any more must not stay open."""
        if self._left is not None and time.monotonic() - self._left[1] > _LEFT_SECONDS:
            self._fail_now(self._left[0], "the script left its loop over the tasks without `task.done(...)`", None)
            self._left = None

    def report_uncaught(self, error: BaseException) -> None:
        """The script is about to end by an exception: its open task gets the traceback."""
        task = self._open
        if task is not None and self._channel.is_owner:
            # Python itself prints the traceback.
            self._fail_now(task, f"{type(error).__name__}: {error}", details_of(error), said=True)

    def report_exit(self) -> None:
        """The script ends."""
        if not self._channel.is_owner:
            return
        if self._open is not None:
            self._fail_now(self._open, "the script ended without `task.done(...)`", None)
        self._channel.close()

    def _broken(self, what: str) -> ProtocolError:
        return self._channel._broken(what)


def tasks(
    model: Model,
    personal: Personal = (),
    *,
    trainable_only: bool = False,
    initialise: Optional[Callable[[Client, int], None]] = None,
) -> Tasks:
    """Connect to the agent that started this script, and return its tasks, to be looped over.

    model: what is trained: a `torch.nn.Module` (or another object with `state_dict` and `load_state_dict`), a dict from names to
    arrays, a list of arrays, or a pair of functions `(get, set)` where `get()` returns such a dict or list and `set(values)` takes
    one of the same form. Floating-point tensors of every width travel as f32 and come back in their own type; integer and
    boolean ones stay and begin each task with the values that they had here. Arrays are written in place where they can be; those
    that cannot be written (JAX's) are replaced by NumPy arrays in the dict or list.
    personal: tensors whose names begin with one of these prefixes stay at the site, which keeps their values between tasks,
    client by client (of a list of arrays: their places).
    trainable_only: of a torch module, parameters with `requires_grad=False` do not travel; every site has them already.
    initialise: called as `initialise(client, seed)` before the first task of each client where tensors are personal, to put their first values
    into the model. Without it every client begins with those that the model has now.

    Raises `NotLaunched` where nobody started the script as a learner, `ModelError` for a model that cannot take part, and
    `Refused` where the agent refuses. The loop raises `ProtocolError` where the agent breaks the rules of the channel.

    With CONSORTIA_SAVE_INITIAL=PATH in the environment, and no agent, the first values are written to that file as `save_initial` does, and there are no tasks:
    `CONSORTIA_SAVE_INITIAL=start.safetensors python train.py` makes what the plan starts from.

    An exception that the body of the loop does not catch ends the script, as everywhere in Python; the task is declined with its traceback in the site's
    log, and a site starts the script again for the next task. `with task:` around the body goes on without a start.
    """
    if _State.learner is not None:
        again = "has been ended by the agent" if _State.learner._channel.closed else "loops over its tasks already"
        raise TaskError(f"this process {again}; call `consortia.tasks()` once in a script")
    parameters = parameters_of(model, personal, trainable_only)
    ranks = Ranks()
    start = os.environ.get(START_VARIABLE)
    if start and not os.environ.get(_channel.VARIABLE):
        return Tasks(_Starter(parameters, ranks, start))
    if not ranks.speaks:
        return Tasks(_Follower(parameters, ranks))
    channel = _channel.connect(f"consortia-python {__version__}")
    learner = _State.learner = _Learner(channel, parameters, initialise, ranks)
    before = sys.excepthook

    def report(kind: Type[BaseException], error: BaseException, trace: Optional[TracebackType]) -> None:
        learner.report_uncaught(error)
        before(kind, error, trace)

    sys.excepthook = report
    atexit.register(learner.report_exit)
    return Tasks(learner)


class _Starter(Answers):
    """No tasks: it writes the values that the model has now, from which a run begins."""

    def __init__(self, parameters: Parameters, ranks: Ranks, path: str) -> None:
        super().__init__(parameters, ranks)
        self._path = path

    def next_task(self) -> Optional[Task]:
        if self._ranks.speaks:
            _safetensors.save_parameters(self._parameters, self._path)
            say(f"wrote {self._path}, from which a run begins; there are no tasks")
        return None


class _State:
    """The learner of this process: the connection is inherited once, so there is one."""

    learner: Optional[_Learner] = None


def _examples(value: Any, least: int) -> int:
    try:
        number = value.__index__()
    except AttributeError:
        raise TaskError(f"`examples` is {value!r}; it is a whole number, such as `len(loader.dataset)`") from None
    if isinstance(value, bool) or not least <= number < _channel.NUMBER_MAX:
        raise TaskError(
            f"`examples` is {value!r}; it is the number of records that were used, at least {least} here. "
            "Without records to train on call `task.decline(reason)`"
        )
    return int(number)


def _metric(name: str, value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError):
        raise TaskError(f"the metric `{name}` is {type(value).__name__} and not a number") from None
