"""Files of models: safetensors with f32 values, written and read without another package.

Values are kept bit for bit. Other types of values are refused by name and not converted.
"""

from __future__ import annotations

import json
import os
import struct
from typing import Any, Callable, Dict, List, Mapping, Sequence, Tuple, Union

from . import _values
from ._errors import ModelError
from ._models import Model, Parameters, Personal, Spec, parameters_of

Path = Union[str, "os.PathLike[str]"]

_LENGTH = struct.Struct("<Q")
_HEADER_MAX = 100_000_000


def write(path: Path, specs: Sequence[Spec], body: Sequence[memoryview]) -> None:
    """Write tensors, in order; a file of that name is replaced once the new one is whole."""
    header: Dict[str, Any] = {}
    at = 0
    for spec in specs:
        if spec.name == "__metadata__":
            raise ModelError("a tensor cannot be named `__metadata__` in a safetensors file")
        header[spec.name] = {"dtype": "F32", "shape": list(spec.shape), "data_offsets": [at, at + spec.bytes]}
        at += spec.bytes
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    # Values begin at a multiple of 8 bytes, as the format recommends.
    text += b" " * (-len(text) % 8)
    part = f"{os.fspath(path)}.{os.getpid()}.part"
    try:
        with open(part, "wb") as file:
            file.write(_LENGTH.pack(len(text)))
            file.write(text)
            for values in body:
                file.write(values)
        os.replace(part, path)
    finally:
        if os.path.exists(part):
            os.remove(part)


def read(path: Path) -> List[Tuple[Spec, memoryview]]:
    """The tensors of a file in the order that it tells, else of their values. Raises `ModelError` for a file that is not safetensors of f32."""

    def wrong(what: str) -> ModelError:
        return ModelError(
            f"{os.fspath(path)}: {what}; give a safetensors file such as `save_initial` or a run's results hold"
        )

    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        prefix = file.read(_LENGTH.size)
        length = _LENGTH.unpack(prefix)[0] if len(prefix) == _LENGTH.size else 0
        if not 2 <= length <= min(size - _LENGTH.size, _HEADER_MAX):
            raise wrong("not a safetensors file")
        try:
            header = json.loads(file.read(length).decode())
        except (UnicodeDecodeError, ValueError, RecursionError):
            raise wrong("a header that is not JSON") from None
        values = bytearray(size - _LENGTH.size - length)
        if file.readinto(values) != len(values):
            raise wrong("cut short while it was read")
    if not isinstance(header, dict):
        raise wrong("a header that is not an object")
    order = _order(header, wrong)
    found = []
    for name, entry in header.items():
        if name not in order:
            continue
        try:
            dtype, shape, (start, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
            fits = all(type(number) is int and number >= 0 for number in (*shape, start, end)) and start <= end <= len(
                values
            )
        except (KeyError, TypeError, ValueError):
            raise wrong(f"tensor `{name}` without type, shape and place") from None
        if dtype != "F32":
            raise wrong(f"tensor `{name}` has values of the type {dtype}, and F32 is needed")
        if not fits or end - start != 4 * _values.size_of(shape):
            raise wrong(f"tensor `{name}` of the shape {list(shape)} does not have its values in the file")
        found.append((start, Spec(name, shape), memoryview(values)[start:end]))
    if len(found) < len(order):
        raise wrong("fewer tensors than it lists")
    found.sort(key=lambda one: (order[one[1].name], one[0]))
    return [(spec, part) for _, spec, part in found]


def _order(header: Mapping[str, Any], wrong: Callable[[str], ModelError]) -> Dict[str, int]:
    """The model's tensors with their places. What the program writes lists them, beside what else it keeps; others' files hold nothing else."""
    notes = header.get("__metadata__")
    if not isinstance(notes, dict) or "layout" not in notes:
        return {name: 0 for name in header if name != "__metadata__"}
    try:
        return {str(name): place for place, name in enumerate(json.loads(notes["layout"]))}
    except (TypeError, ValueError):
        raise wrong("a list of tensors that is not JSON") from None


def save_initial(model: Model, path: Path, personal: Personal = (), *, trainable_only: bool = False) -> None:
    """Write the values with which a run of an external model begins, for `model = { external = { start = ... } }` of a plan.

    model, personal, trainable_only: as for `tasks`, and the same in the script that trains. Personal tensors are not written.
    path: the file; one of that name is replaced. Tensors are f32, in the model's order.

    Raises `ModelError` for a model that cannot take part and for values that are not finite, and `OSError` where the file cannot be written.
    """
    save_parameters(parameters_of(model, personal, trainable_only), path)


def save_parameters(parameters: Parameters, path: Path) -> None:
    """Write the tensors that travel."""
    chosen = [(spec, values) for spec, values in zip(parameters.specs, parameters.body()) if not spec.personal]
    write(path, [spec for spec, _ in chosen], [values for _, values in chosen])


def load_into(model: Model, path: Path, personal: Personal = (), *, trainable_only: bool = False) -> None:
    """Put the values of a file into a model: a run's `model.safetensors`, or a start file.

    model, personal, trainable_only: as for `tasks`. Tensors that the file lacks must be personal, and keep their values.

    Raises `ModelError` where the file's tensors are not the model's; the text names both, and the model is unchanged then.
    """
    parameters = parameters_of(model, personal, trainable_only)
    ours = {spec.name: spec for spec in parameters.specs}
    values: Dict[str, memoryview] = {}
    faults = []
    for spec, part in read(path):
        if spec.name not in ours:
            faults.append(f"the model has no `{spec.name}` {list(spec.shape)}")
        elif ours[spec.name].shape != spec.shape:
            faults.append(
                f"`{spec.name}` is {list(ours[spec.name].shape)} in the model and {list(spec.shape)} in the file"
            )
        else:
            values[spec.name] = part
    faults += [
        f"the file has no `{name}` {list(spec.shape)}"
        for name, spec in ours.items()
        if name not in values and not spec.personal
    ]
    if faults:
        more = f"; and {len(faults) - 20} more" if len(faults) > 20 else ""
        raise ModelError(
            f"{os.fspath(path)} does not fit the model: "
            + "; ".join(faults[:20])
            + more
            + ". Name what stays at sites in `personal`"
        )
    parameters.replace(values)


def tensors(path: Path) -> Mapping[str, Any]:
    """The tensors of a file by name: NumPy arrays where NumPy is installed, else memoryviews of f32 of the same shapes."""
    try:
        import numpy
    except ImportError:
        return {spec.name: part.cast("f", spec.shape) if spec.shape else part.cast("f") for spec, part in read(path)}
    return {spec.name: numpy.frombuffer(part, dtype="<f4").reshape(spec.shape) for spec, part in read(path)}
