"""Tensors of the kinds that models are made of: which travel, their shape, and their values as f32.

torch and NumPy are used where the values are theirs and never imported otherwise: whoever has a tensor of theirs has imported them.
Without them everything with the buffer protocol (`array.array`, `memoryview`), lists of numbers and numbers can be tensors.
"""

from __future__ import annotations

import ctypes
import math
import struct
import sys
from array import array
from contextlib import contextmanager
from typing import Any, Iterator, List, Tuple, Union

from ._errors import ModelError

Shape = Tuple[int, ...]

_REAL = ("f", "d", "e")
_WHOLE = ("b", "B", "h", "H", "i", "I", "l", "L", "q", "Q", "?", "n", "N", "c")


def _torch(value: object) -> Any:
    torch = sys.modules.get("torch")
    return torch if torch is not None and isinstance(value, getattr(torch, "Tensor", ())) else None


def _numpy() -> Any:
    return sys.modules.get("numpy")


def _is_numpy(value: object) -> bool:
    """Whether NumPy holds the value, or can without losing its type: arrays of JAX and others say so by `__array__`."""
    numpy = _numpy()
    return numpy is not None and (isinstance(value, (numpy.ndarray, numpy.generic)) or hasattr(value, "__array__"))


def _cast(view: Any, code: str, shape: Shape = ()) -> Any:
    """A view of bytes as elements of a type that is only known here; in one dimension, or of a shape."""
    return view.cast(code, shape) if shape else view.cast(code)


def _format(view: memoryview) -> str:
    return view.format.lstrip("@=<" if sys.byteorder == "little" else "@=>")


def travels(name: str, value: Any) -> bool:
    """Whether a value of a model is a floating-point tensor with at least one element, which travels.

    Integer and boolean tensors, empty ones, and what is not a tensor stay. Raises `ModelError` for complex numbers.
    """
    if _torch(value):
        if value.is_complex():
            raise _complex(name)
        return bool(value.is_floating_point()) and value.numel() > 0
    if isinstance(value, float):
        return True
    if _is_numpy(value):
        found = _numpy().asarray(value)
        if found.dtype.kind == "c":
            raise _complex(name)
        # Types beside NumPy's own, such as bfloat16 of JAX, have kind V and a name that tells.
        real = found.dtype.kind == "f" or found.dtype.name.startswith(("bfloat", "float"))
        return bool(real) and found.size > 0
    if isinstance(value, list):
        if any(isinstance(one, (list, tuple)) for one in value):
            raise ModelError(f"tensor `{name}` is a list of lists; make it a NumPy array, or a list of numbers")
        return (
            bool(value)
            and all(isinstance(one, (int, float)) for one in value)
            and any(isinstance(one, float) for one in value)
        )
    try:
        view = memoryview(value)
    except TypeError:
        return False
    if _format(view) not in _REAL + _WHOLE:
        raise ModelError(
            f"tensor `{name}` has elements of the type `{view.format}`, which is not known here; use f32 or f64"
        )
    return _format(view) in _REAL and view.nbytes > 0


def is_tensor(value: Any) -> bool:
    """Whether a value is a tensor of any type, so that it is worth remembering."""
    if _torch(value) or _is_numpy(value) or isinstance(value, (int, float, list)):
        return True
    try:
        memoryview(value)
    except TypeError:
        return False
    return True


def shape_of(value: Any) -> Shape:
    """The shape of a tensor that travels."""
    if isinstance(value, float):
        return ()
    if isinstance(value, list):
        return (len(value),)
    if _torch(value) or hasattr(value, "shape"):
        return tuple(int(size) for size in value.shape)
    return tuple(memoryview(value).shape or ())


def size_of(shape: Shape) -> int:
    """The number of elements of a shape."""
    return math.prod(shape)


def to_f32(name: str, value: Any) -> memoryview:
    """The values of a tensor as bytes: f32, little endian, row-major. A view where they are so already, else a copy.

    The view is good as long as the tensor is not changed. Raises `ModelError` where a value is not finite or beyond f32.
    """
    torch = _torch(value)
    if torch is not None:
        flat = value.detach().to("cpu", torch.float32).contiguous()
        # One pass, which passes NaN on: the least and the greatest value are finite if and only if all are.
        least, greatest = torch.aminmax(flat)
        if not math.isfinite(least.item()) or not math.isfinite(greatest.item()):
            raise _not_finite(name, flat.reshape(-1).tolist())
        return _Memory(flat).view()
    if _is_numpy(value):
        numpy = _numpy()
        with numpy.errstate(over="ignore"):
            found = numpy.ascontiguousarray(value, dtype="<f4")
        if not bool(numpy.isfinite(found).all()):
            raise _not_finite(name, found.reshape(-1).tolist())
        return memoryview(found.reshape(-1)).cast("B")
    view = None if isinstance(value, (float, list)) else memoryview(value)
    if view is not None and _format(view) == "f" and view.c_contiguous:
        flat_view = view.cast("B").cast("f")
    else:
        elements = [value] if isinstance(value, float) else value if view is None else _elements(view)
        flat_view = memoryview(array("f", elements))
    # f64 holds every sum of f32 values, so the sum is finite if and only if each of them is.
    if not math.isfinite(sum(flat_view)):
        raise _not_finite(name, flat_view.tolist())
    return flat_view.cast("B")


class _Memory:
    """The memory of a torch tensor on the CPU as bytes, without NumPy."""

    def __init__(self, tensor: Any) -> None:
        kind = ctypes.c_char * (tensor.numel() * 4)
        self._memory = kind.from_address(tensor.data_ptr())
        # The memory lives as long as the tensor, and this object as long as the view.
        self._memory._tensor = tensor

    def view(self) -> memoryview:
        return memoryview(self._memory)


def from_f32(values: memoryview, shape: Shape, like: Any, writable: bool) -> Any:
    """A tensor of the kind of `like` whose f32 values are the given bytes.

    torch: a view of f32 (whoever loads it casts). NumPy: a view, or a copy in the type of `like` where that is not f32.
    Others: their own kind. `writable` asks for a value that shares nothing with `values`.
    """
    torch = _torch(like)
    if torch is not None:
        tensor = torch.frombuffer(values, dtype=torch.float32).reshape(shape)
        return tensor.clone() if writable else tensor
    numbers = values.cast("f")
    if isinstance(like, float):
        return numbers[0]
    if isinstance(like, list):
        return numbers.tolist()
    if _is_numpy(like):
        numpy = _numpy()
        dtype = numpy.asarray(like).dtype
        found = numpy.frombuffer(values, dtype="<f4").reshape(shape)
        if isinstance(like, numpy.generic):
            return dtype.type(found[()])
        return found.astype(dtype, copy=writable)
    view = memoryview(like)
    code = _format(view)
    copy = bytearray(view.nbytes)
    target = _cast(memoryview(copy), code) if code != "e" else None
    if target is None:
        _pack_halves(memoryview(copy), numbers)
    else:
        target[:] = memoryview(array(code, numbers))
    return array(code, bytes(copy)) if isinstance(like, array) else _cast(memoryview(copy), code, view.shape or (1,))


def assign(values: memoryview, shape: Shape, target: Any) -> bool:
    """Write values into a tensor where it is, cast to its type. False where it cannot be written, so that it must be replaced."""
    torch = _torch(target)
    if torch is not None:
        with torch.no_grad():
            target.copy_(torch.frombuffer(values, dtype=torch.float32).reshape(shape))
        return True
    if isinstance(target, float):
        return False
    if isinstance(target, list):
        target[:] = values.cast("f").tolist()
        return True
    if _is_numpy(target):
        numpy = _numpy()
        if not isinstance(target, numpy.ndarray) or not target.flags.writeable:
            return False
        target[...] = numpy.frombuffer(values, dtype="<f4").reshape(shape)
        return True
    view = memoryview(target)
    if view.readonly or not view.c_contiguous:
        return False
    code = _format(view)
    if code == "e":
        _pack_halves(view.cast("B"), values.cast("f"))
    elif code == "f":
        view.cast("B")[:] = values
    else:
        _cast(view.cast("B"), code)[:] = memoryview(array(code, values.cast("f")))
    return True


def copy_of(value: Any) -> Any:
    """A copy that later changes of the value do not reach."""
    if _torch(value):
        return value.detach().clone()
    if isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, list):
        return list(value)
    if _is_numpy(value):
        return _numpy().array(value)
    if isinstance(value, array):
        return value[:]
    view = memoryview(value)
    return _cast(memoryview(bytearray(view.tobytes())), _format(view), view.shape or (1,))


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch work in the calling thread alone.

    To copy and compare is bound by memory, and a team of threads on a busy machine waits for its slowest: 140 ms instead of 1 for a megabyte.
    """
    torch = sys.modules.get("torch")
    threads = torch.get_num_threads() if torch is not None and hasattr(torch, "get_num_threads") else 1
    if torch is None or threads == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def alias_of(value: Any) -> Union[Tuple[Any, ...], None]:
    """What two torch tensors over the same memory have in common; None for other kinds."""
    if not _torch(value) or value.device.type == "meta":
        return None
    return (str(value.device), value.data_ptr(), tuple(value.shape), tuple(value.stride()), str(value.dtype))


def _elements(view: memoryview) -> List[float]:
    if _format(view) == "e":
        return list(struct.unpack(f"<{view.nbytes // 2}e", view.tobytes()))
    return list(_cast(memoryview(view.tobytes()), _format(view)))


def _pack_halves(target: memoryview, numbers: Any) -> None:
    target[:] = struct.pack(f"<{len(numbers)}e", *numbers)


def _complex(name: str) -> ModelError:
    return ModelError(
        f'tensor `{name}` is complex; keep it with the site by `personal=["{name}"]`, or split it into two real ones'
    )


def _not_finite(name: str, values: List[Any]) -> ModelError:
    wrong = [index for index, value in enumerate(values) if not math.isfinite(value)]
    where = f"element {wrong[0]} is {values[wrong[0]]}" if wrong else "their sum is beyond f64"
    return ModelError(
        f"tensor `{name}` has {len(wrong)} of {len(values)} values that are not finite in f32 ({where}, counted row by row); "
        "lower the learning rate or clip gradients"
    )
