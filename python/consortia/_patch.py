"""Trainers of Hugging Face and Lightning as learners: `patch` lets their own loop work on the federation's tasks.

Neither package is imported here; a trainer is known by what it has.
"""

from __future__ import annotations

import math
import random
import sys
from typing import Any, Callable, Dict, List, Optional, Tuple

from ._errors import Error, TaskError
from ._learner import tasks
from ._models import Personal
from ._task import Task

Before = Callable[[Task], None]


def patch(
    trainer: Any, personal: Personal = (), *, trainable_only: Optional[bool] = None, before: Optional[Before] = None
) -> None:
    """Make a trainer a learner: its `train()` (Hugging Face) or `fit(...)` (Lightning) then works on the federation's tasks until there are none.

    trainer: a `transformers.Trainer` or a `lightning.Trainer`, or what has the same methods.
    personal: as for `tasks`.
    trainable_only: as for `tasks`. By default true where the model has adapters of PEFT, so that these alone travel.
    before: called with each task before it is worked on, with the global values in the model: a simulation chooses the client's records here, a script may change
    settings of the trainer.

    In each task to train the trainer passes `task.epochs` times over its training records, with new optimizers, its seed set to
    `task.seed` and its learning rate times `task.learning_rate_scale`; the size of batches is the trainer's own. The loss is the mean over the training.
    In each task to evaluate it evaluates on its own evaluation records, and sends `loss` and, of what it measured, `accuracy`
    and the metrics that the plan declares (`eval_` and `val_` before their names are left out).
    An exception declines its task, with the traceback in the site's log, and the next task follows.

    Raises `Error` for an object that is neither; what `train()` and `fit()` raise is said at `tasks`.
    """
    if hasattr(trainer, "fit") and hasattr(trainer, "validate") and hasattr(trainer, "fit_loop"):
        _patch_lightning(trainer, personal, trainable_only, before)
    elif (
        hasattr(trainer, "train")
        and hasattr(trainer, "evaluate")
        and hasattr(trainer, "args")
        and hasattr(trainer, "model")
    ):
        _patch_hugging_face(trainer, personal, trainable_only, before)
    else:
        raise Error(
            f"{type(trainer).__qualname__} is not a trainer that is known here; use `for task in consortia.tasks(model)` around its calls"
        )


def _has_adapters(model: Any, trainable_only: Optional[bool]) -> bool:
    return hasattr(model, "peft_config") if trainable_only is None else trainable_only


def _seed_all(seed: int) -> None:
    random.seed(seed)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(seed % (1 << 32))
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(seed)


def _refuse_term(task: Task) -> None:
    """A trainer's objective is its own: nothing here can add FedProx's term."""
    if task.proximal_mu > 0:
        raise TaskError(
            "the plan's strategy is fedprox, and the objective of a patched trainer has no proximal term; ask for a plan with another strategy, or write the loop over `consortia.tasks(model)`"
        )


def _chosen(task: Task, found: Dict[str, Any], prefix: str) -> Tuple[float, Dict[str, float]]:
    """Loss, and the other metrics that may be sent, of what a trainer measured."""
    plain = {name[len(prefix) :] if name.startswith(prefix) else name: value for name, value in found.items()}
    if "loss" not in plain:
        raise TaskError(
            f"the trainer measured {sorted(found) or 'nothing'} and no `{prefix}loss`; log it in the step that evaluates"
        )
    others = {name: float(plain[name]) for name in ("accuracy", *task.metrics) if name in plain}
    return float(plain["loss"]), others


def _length(records: Any, what: str) -> int:
    try:
        return len(records)
    except TypeError:
        raise TaskError(
            f"{what} do not say how many they are; give them a length, which is this site's weight"
        ) from None


# -- Hugging Face ---------------------------------------------------------------------------------------------------------------------


def _patch_hugging_face(
    trainer: Any, personal: Personal, trainable_only: Optional[bool], before: Optional[Before]
) -> None:
    original = trainer.train
    arguments = trainer.args
    rate = arguments.learning_rate
    own_optimizer = trainer.optimizer is not None
    current: List[Task] = []
    base = getattr(sys.modules.get("transformers"), "TrainerCallback", object)

    class Stop(base):  # type: ignore[misc,valid-type]
        """Ends a training whose result is no longer wanted."""

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if current and current[-1].stopped():
                control.should_training_stop = True

    if hasattr(trainer, "add_callback"):
        trainer.add_callback(Stop())

    def one(task: Task, *given: Any, **named: Any) -> Any:
        if task.kind == "evaluate":
            if trainer.eval_dataset is None:
                task.done(examples=0, loss=0.0)
                return None
            loss, others = _chosen(task, trainer.evaluate(), "eval_")
            task.done(examples=_length(trainer.eval_dataset, "the evaluation records"), loss=loss, **others)
            return None
        _refuse_term(task)
        arguments.num_train_epochs = task.epochs
        arguments.learning_rate = rate * task.learning_rate_scale
        arguments.seed = task.seed % (1 << 32)
        _seed_all(task.seed)
        if not own_optimizer:
            # A trainer keeps them between calls; the next client must not continue with this one's momentum.
            trainer.optimizer = trainer.lr_scheduler = None
        output = original(*given, **named)
        if not task.stopped():
            task.done(examples=_length(trainer.train_dataset, "the training records"), loss=output.training_loss)
        return output

    def train(*given: Any, **named: Any) -> Any:
        """Work on the federation's tasks; returns what the last training returned."""
        output = None
        for task in tasks(trainer.model, personal, trainable_only=_has_adapters(trainer.model, trainable_only)):
            current[:] = [task]
            with task:
                if before is not None:
                    before(task)
                output = one(task, *given, **named) or output
        return output

    trainer.train = train


# -- Lightning ------------------------------------------------------------------------------------------------------------------------


def _lightning_callback(trainer: Any) -> Any:
    """The class of callbacks of the package that the trainer is of."""
    package = type(trainer).__module__.split(".")[0]
    for name in (f"{package}.pytorch", package):
        found = getattr(sys.modules.get(name), "Callback", None)
        if found is not None:
            return found
    return object


def _patch_lightning(
    trainer: Any, personal: Personal, trainable_only: Optional[bool], before: Optional[Before]
) -> None:
    original = trainer.fit
    current: List[Task] = []
    losses: List[float] = []

    class Follow(_lightning_callback(trainer)):  # type: ignore[misc]
        """Scales the learning rate, gathers the loss, and ends a training whose result is no longer wanted."""

        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            scale = current[-1].learning_rate_scale
            for optimizer in trainer.optimizers:
                for group in optimizer.param_groups:
                    for name in ("lr", "initial_lr"):
                        if name in group:
                            group[name] *= scale
            for config in getattr(trainer, "lr_scheduler_configs", ()):
                if hasattr(config.scheduler, "base_lrs"):
                    config.scheduler.base_lrs = [rate * scale for rate in config.scheduler.base_lrs]

        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
            if loss is not None:
                losses.append(float(loss))
            if current[-1].stopped():
                trainer.should_stop = True

    trainer.callbacks.append(Follow())

    def one(task: Task, model: Any, train: Any, val: Any, datamodule: Any, named: Dict[str, Any]) -> None:
        if task.kind == "evaluate":
            found: Dict[str, Any] = {}
            for one in trainer.validate(
                model, val if datamodule is None else None, verbose=False, datamodule=datamodule
            ):
                found.update(one)
            loss, others = _chosen(task, found, "val_")
            batches = getattr(trainer, "num_val_batches", None)
            examples = _records(trainer.val_dataloaders, "the validation records", batches)
            task.done(examples=examples, loss=loss, **others)
            return
        _refuse_term(task)
        losses.clear()
        _seed_all(task.seed)
        # Counters of epochs go on over calls, so the end of this one is counted from here.
        trainer.fit_loop.max_epochs = trainer.current_epoch + task.epochs
        trainer.should_stop = False
        original(model, train, val, datamodule, **named)
        if task.stopped():
            return
        if not losses:
            raise TaskError("the training had no batch, or `training_step` returned no loss")
        examples = _records(trainer.train_dataloader, "the training records", trainer.num_training_batches)
        task.done(examples=examples, loss=math.fsum(losses) / len(losses))

    def fit(
        model: Any, train_dataloaders: Any = None, val_dataloaders: Any = None, datamodule: Any = None, **named: Any
    ) -> None:
        """Work on the federation's tasks."""
        for task in tasks(model, personal, trainable_only=_has_adapters(model, trainable_only)):
            current[:] = [task]
            with task:
                if before is not None:
                    before(task)
                one(task, model, train_dataloaders, val_dataloaders, datamodule, named)

    trainer.fit = fit


def _records(loaders: Any, what: str, batches: Any = None) -> int:
    """How many records loaders give in a pass: those that their samplers choose, in as many batches as the trainer takes of each.

    batches: of each loader, or of the only one; `inf` or None for all.
    """
    several: List[Any] = list(loaders) if isinstance(loaders, (list, tuple)) else [loaders]
    limits: List[Any] = list(batches) if isinstance(batches, (list, tuple)) else [batches]
    limits += [None] * (len(several) - len(limits))
    return sum(_of_loader(loader, what, limit) for loader, limit in zip(several, limits))


def _of_loader(loader: Any, what: str, batches: Any) -> int:
    sampler = getattr(loader, "sampler", None)
    try:
        count = len(sampler)  # type: ignore[arg-type]
    except TypeError:
        count = _length(getattr(loader, "dataset", None), what)
    size = getattr(loader, "batch_size", None)
    if size:
        if getattr(loader, "drop_last", False):
            count -= count % size
        if isinstance(batches, int):
            count = min(count, batches * size)
    return count
