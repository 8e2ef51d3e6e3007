"""Models as named tensors: what a script trains, seen from the federation.

Everything here turns one of the accepted forms (a module, a dict, a list, a pair of functions) into an ordered list of floating-point
tensors that can be read and replaced.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from dataclasses import dataclass
from typing import Any, Callable, Dict, Iterable, List, Mapping, Sequence, Set, Tuple, Union

from . import _values
from ._errors import ModelError

Model = Any
"""A `torch.nn.Module` or another object with `state_dict` and `load_state_dict`; a dict from names to arrays; a list of arrays;
or a pair of functions `(get, set)`, where `get()` returns such a dict or list and `set(values)` takes one of the same form."""

Personal = Union[str, Sequence[Union[str, int]]]


@dataclass(frozen=True)
class Spec:
    """A tensor: its name, its shape, and whether its values stay at the site."""

    name: str
    shape: Tuple[int, ...]
    personal: bool = False

    @property
    def bytes(self) -> int:
        """The length of its values as f32."""
        return 4 * _values.size_of(self.shape)


class Parameters:
    """The floating-point tensors of a model, in its own order.

    `specs` are found once, when it is made. Raises `ModelError` for a model that cannot take part.
    """

    # Whether the script may keep what it was given: then no buffer is used for two tasks.
    keeps_values = False

    def __init__(self, personal: Personal = (), frozen: Iterable[str] = ()) -> None:
        state = self.read()
        self._aliases = _aliases(state)
        skipped = self._aliases | set(frozen)
        names = [name for name, value in state.items() if name not in skipped and _values.travels(name, value)]
        if not names:
            raise ModelError("the model has no floating-point tensor, so nothing can be trained together")
        chosen = self.personal_names(list(state), personal)
        self.specs = [Spec(name, _values.shape_of(state[name]), name in chosen) for name in names]
        if all(spec.personal for spec in self.specs):
            raise ModelError("every tensor is personal, so nothing is trained together; name fewer in `personal`")
        # Counters and masks begin every task with what they were: neither a restart nor the client before leaves a trace.
        moving = set(names) | self._aliases | set(frozen)
        self._fixed = {
            name: _values.copy_of(value)
            for name, value in state.items()
            if name not in moving and _values.is_tensor(value)
        }

    def read(self) -> Dict[str, Any]:
        """Everything that the model holds, by name; the values are its own and not copies."""
        raise NotImplementedError

    def write(self, values: Mapping[str, memoryview], fixed: Mapping[str, Any]) -> None:
        """Replace tensors by name: `values` as f32 bytes, and `fixed`, tensors that do not travel, as they are."""
        raise NotImplementedError

    def personal_names(self, names: List[str], personal: Personal) -> Set[str]:
        """The names that begin with one of the given prefixes. Raises `ModelError` for a prefix that no name has."""
        prefixes = [personal] if isinstance(personal, str) else [str(prefix) for prefix in personal]
        for prefix in prefixes:
            if not prefix or not any(name.startswith(prefix) for name in names):
                raise ModelError(
                    f"no tensor's name begins with `{prefix}` of `personal`; the names are {_listed(names)}"
                )
        return {name for name in names if name.startswith(tuple(prefixes))} if prefixes else set()

    def load(self, body: memoryview) -> None:
        """Replace the values of all tensors by those of a body: f32, little endian, in the order of `specs`."""
        values, at = {}, 0
        for spec in self.specs:
            values[spec.name] = body[at : at + spec.bytes]
            at += spec.bytes
        with _values.one_thread():
            self.write(values, self._fixed)

    def replace(self, values: Mapping[str, memoryview]) -> None:
        """Replace the values of some tensors by name, as f32 bytes; the others, and those that do not travel, stay as they are."""
        self.write(values, {})

    def body(self, personal_only: bool = False) -> List[memoryview]:
        """The values of all tensors, or of the personal ones alone, as f32 bytes, in the order of `specs`.

        They may be views into the model. Raises `ModelError` for values that are not finite and for tensors that have changed their shape or
        have gone.
        """
        with _values.one_thread():
            return self._body(personal_only)

    def _body(self, personal_only: bool) -> List[memoryview]:
        state = self.read()
        parts = []
        for spec in self.specs:
            if personal_only and not spec.personal:
                continue
            if spec.name not in state:
                raise ModelError(
                    f"tensor `{spec.name}` is no longer in the model; a model keeps its tensors as long as it takes part"
                )
            shape = _values.shape_of(state[spec.name])
            if shape != spec.shape:
                raise ModelError(
                    f"tensor `{spec.name}` has the shape {list(shape)} and had {list(spec.shape)} at the start; keep shapes as they are"
                )
            parts.append(_values.to_f32(spec.name, state[spec.name]))
        return parts


class _StateDict(Parameters):
    """A `torch.nn.Module`, or anything that gives and takes its state by name."""

    def __init__(self, model: Any, personal: Personal, trainable_only: bool) -> None:
        self._model = model
        frozen: List[str] = []
        if trainable_only:
            frozen = [name for name, value in model.named_parameters(remove_duplicate=False) if not value.requires_grad]
        super().__init__(personal, frozen)

    def read(self) -> Dict[str, Any]:
        return dict(self._model.state_dict())

    def write(self, values: Mapping[str, memoryview], fixed: Mapping[str, Any]) -> None:
        state = self._model.state_dict()
        for spec in self.specs:
            if spec.name in values:
                state[spec.name] = _values.from_f32(values[spec.name], spec.shape, state[spec.name], writable=False)
        state.update(fixed)
        # A second name for the same memory would undo what the first one loads.
        for name in self._aliases:
            state.pop(name, None)
        if self._aliases:
            self._model.load_state_dict(state, strict=False)
        else:
            self._model.load_state_dict(state)


class _Mapping(Parameters):
    """A dict of arrays, written in place."""

    def __init__(self, model: MutableMapping[str, Any], personal: Personal) -> None:
        self._model = model
        super().__init__(personal)

    def read(self) -> Dict[str, Any]:
        return _by_name(self._model)

    def write(self, values: Mapping[str, memoryview], fixed: Mapping[str, Any]) -> None:
        for spec in self.specs:
            if spec.name not in values:
                continue
            old = self._model[spec.name]
            if not _values.assign(values[spec.name], spec.shape, old):
                self._model[spec.name] = _values.from_f32(values[spec.name], spec.shape, old, writable=True)
        for name, value in fixed.items():
            self._model[name] = _values.copy_of(value)


class _List(Parameters):
    """A list of arrays, written in place; its names are their places."""

    def __init__(self, model: List[Any], personal: Personal) -> None:
        self._model = model
        super().__init__(personal)

    def read(self) -> Dict[str, Any]:
        return _by_name(self._model)

    def personal_names(self, names: List[str], personal: Personal) -> Set[str]:
        return _places(names, personal)

    def write(self, values: Mapping[str, memoryview], fixed: Mapping[str, Any]) -> None:
        for spec in self.specs:
            if spec.name not in values:
                continue
            at = int(spec.name)
            if not _values.assign(values[spec.name], spec.shape, self._model[at]):
                self._model[at] = _values.from_f32(values[spec.name], spec.shape, self._model[at], writable=True)
        for name, value in fixed.items():
            self._model[int(name)] = _values.copy_of(value)


class _Functions(Parameters):
    """A pair of functions that read and replace all values at once."""

    keeps_values = True

    def __init__(self, get: Callable[[], Any], set: Callable[[Any], None], personal: Personal) -> None:
        self._get, self._set = get, set
        super().__init__(personal)

    def read(self) -> Dict[str, Any]:
        found = self._get()
        if not isinstance(found, (Mapping, list, tuple)):
            raise ModelError(
                f"the first function of the model returned {_kind(found)}; it must return a dict or a list of arrays"
            )
        self._named = isinstance(found, Mapping)
        return _by_name(found)

    def personal_names(self, names: List[str], personal: Personal) -> Set[str]:
        return super().personal_names(names, personal) if self._named else _places(names, personal)

    def write(self, values: Mapping[str, memoryview], fixed: Mapping[str, Any]) -> None:
        state = self.read()
        for spec in self.specs:
            if spec.name in values:
                state[spec.name] = _values.from_f32(values[spec.name], spec.shape, state[spec.name], writable=False)
        for name, value in fixed.items():
            state[name] = _values.copy_of(value)
        self._set(state if self._named else list(state.values()))


def parameters_of(model: Model, personal: Personal = (), trainable_only: bool = False) -> Parameters:
    """The tensors of a model of any accepted form. Raises `ModelError` for others."""
    if trainable_only and not hasattr(model, "named_parameters"):
        raise ModelError("`trainable_only` needs a torch module, whose parameters say whether they are trained")
    if hasattr(model, "state_dict") and hasattr(model, "load_state_dict"):
        return _StateDict(model, personal, trainable_only)
    if isinstance(model, MutableMapping):
        return _Mapping(model, personal)
    if isinstance(model, tuple) and len(model) == 2 and callable(model[0]) and callable(model[1]):
        return _Functions(model[0], model[1], personal)
    if isinstance(model, list):
        return _List(model, personal)
    raise ModelError(
        f"{_kind(model)} is not a model that is known here; give a torch module, a dict or a list of arrays, or a pair of functions (get, set)"
    )


def _by_name(found: Any) -> Dict[str, Any]:
    if isinstance(found, Mapping):
        for name in found:
            if not isinstance(name, str) or not name:
                raise ModelError(f"the model has a tensor named {name!r}; names are texts that are not empty")
        return dict(found)
    return {str(at): value for at, value in enumerate(found)}


def _places(names: List[str], personal: Personal) -> Set[str]:
    chosen = {personal} if isinstance(personal, str) else {str(place) for place in personal}
    for place in sorted(chosen - set(names)):
        raise ModelError(f"`personal` names the array `{place}`; the arrays of this list are 0 to {len(names) - 1}")
    return chosen


def _aliases(state: Mapping[str, Any]) -> Set[str]:
    """Second and further names of the same memory, such as weights that two layers share."""
    seen: Set[Tuple[Any, ...]] = set()
    found = set()
    for name, value in state.items():
        key = _values.alias_of(value)
        if key is None or not _values.travels(name, value):
            continue
        if key in seen:
            found.add(name)
        seen.add(key)
    return found


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(f"`{name}`" for name in names[:20])
    return shown + (f" and {len(names) - 20} more" if len(names) > 20 else "")


def _kind(value: object) -> str:
    return f"an object of the type `{type(value).__module__}.{type(value).__qualname__}`"
