"""Models of every form, as tensors of f32."""

from __future__ import annotations

import json
import struct
from array import array
from pathlib import Path
from typing import Any, Dict, List

import pytest
from agent import floats, unfloats

import consortia
from consortia import _models, _safetensors, _values
from consortia._models import parameters_of


def body(parameters: _models.Parameters) -> bytes:
    return b"".join(bytes(part) for part in parameters.body())


def test_a_dict_of_buffers_is_written_in_place() -> None:
    w, n = array("d", [1, 2]), array("i", [5])
    model: Dict[str, Any] = {"w": w, "n": n, "v": array("f", [3])}
    parameters = parameters_of(model)
    assert [(one.name, one.shape) for one in parameters.specs] == [("w", (2,)), ("v", (1,))]
    assert unfloats(body(parameters)) == [1, 2, 3]
    n[0] = 6
    parameters.load(memoryview(bytearray(floats(7, 8, 9))))
    assert list(w) == [7, 8] and model["w"] is w
    assert model["n"][0] == 5, "an integer tensor begins each task with what it was"


def test_a_view_of_several_dimensions_keeps_its_shape() -> None:
    grid = memoryview(bytearray(floats(*range(6)))).cast("f", (2, 3))
    parameters = parameters_of({"grid": grid})
    assert parameters.specs[0].shape == (2, 3)
    parameters.load(memoryview(bytearray(floats(*range(6, 12)))))
    assert grid.tolist() == [[6, 7, 8], [9, 10, 11]]


def test_a_list_is_named_by_place_and_kept_by_place() -> None:
    model: List[Any] = [array("f", [1]), 2.0] + [array("f", [float(i)]) for i in range(9)]
    parameters = parameters_of(model, personal=[1])
    assert [one.name for one in parameters.specs if one.personal] == ["1"]
    parameters.load(memoryview(bytearray(floats(*range(11)))))
    assert model[1] == 1.0 and list(model[10]) == [10]
    with pytest.raises(consortia.ModelError, match="arrays of this list are 0 to 10"):
        parameters_of(model, personal=[11])


def test_a_pair_of_functions_gets_values_that_it_may_keep() -> None:
    state = {"w": [1.0, 2.0], "steps": 3}
    given: List[Any] = []
    parameters = parameters_of((lambda: state, given.append))
    assert parameters.keeps_values
    parameters.load(memoryview(bytearray(floats(5, 6))))
    assert given == [{"w": [5, 6], "steps": 3}]
    listed = parameters_of((lambda: ([1.0], 2.0), given.append))
    listed.load(memoryview(bytearray(floats(8, 9))))
    assert given[1] == [[8], 9]


@pytest.mark.parametrize(
    "model, personal, said",
    [
        ({"n": 3}, (), "no floating-point tensor"),
        ({"w": 3.0}, ["w"], "every tensor is personal"),
        ({"w": 3.0}, ["head"], "no tensor's name begins with `head`"),
        ({"w": 3.0}, [""], "no tensor's name begins with ``"),
        ({3: 3.0}, (), "named 3"),
        ({"w": [[1.0]]}, (), "a list of lists"),
        (object(), (), "is not a model that is known here"),
        ((lambda: 3, print), (), "must return a dict or a list"),
    ],
)
def test_a_model_that_cannot_take_part_is_said(model: Any, personal: Any, said: str) -> None:
    with pytest.raises(consortia.ModelError, match=said):
        parameters_of(model, personal)


@pytest.mark.parametrize("value, where", [([1.0, 1e300], "element 1 is inf"), ([float("nan")], "element 0 is nan")])
def test_values_beyond_f32_are_named(value: Any, where: str) -> None:
    with pytest.raises(consortia.ModelError, match=where):
        _values.to_f32("w", array("f", [float("nan")]) if value[0] != 1.0 else array("d", value))


def test_a_file_keeps_bits_and_order(tmp_path: Path) -> None:
    path = tmp_path / "start.safetensors"
    model = {"z": array("f", [1e-45, -0.0, 3.4028235e38]), "a": 0.1, "n": 4, "head": [7.0]}
    consortia.save_initial(model, path, personal=["head"])
    raw = path.read_bytes()
    length = struct.unpack("<Q", raw[:8])[0]
    assert (8 + length) % 8 == 0
    assert raw[8 : 8 + length].rstrip() == (
        b'{"z":{"dtype":"F32","shape":[3],"data_offsets":[0,12]},"a":{"dtype":"F32","shape":[],"data_offsets":[12,16]}}'
    )
    assert raw[8 + length :] == struct.pack("<4f", 1e-45, -0.0, 3.4028235e38, 0.1)
    other: Dict[str, Any] = {"z": array("f", [0, 0, 0]), "a": 0.0, "n": 9, "head": [1.0]}
    consortia.load_into(other, path, personal=["head"])
    assert bytes(other["z"]) == bytes(model["z"])  # type: ignore[arg-type]
    assert struct.pack("<f", other["a"]) == struct.pack("<f", 0.1)
    assert other["n"] == 9 and other["head"] == [1.0]
    assert list(tmp_path.iterdir()) == [path]
    assert list(consortia.tensors(path)) == ["z", "a"]


def test_a_file_of_another_model_is_refused_whole(tmp_path: Path) -> None:
    path = tmp_path / "start.safetensors"
    consortia.save_initial({"w": [1.0, 2.0], "v": 1.0}, path)
    model = {"w": [0.0], "u": 3.0}
    with pytest.raises(
        consortia.ModelError,
        match=r"`w` is \[1\] in the model and \[2\] in the file; the model has no `v` \[\]; .*no `u`",
    ):
        consortia.load_into(model, path)
    assert model == {"w": [0.0], "u": 3.0}


def test_a_file_of_the_program_lists_its_tensors_beside_what_else_it_keeps(tmp_path: Path) -> None:
    layout = r'["b","a"]'
    notes = {"layout": layout, "model_sha256": "00"}
    header: Dict[str, Any] = {"__metadata__": notes}
    header["standardise.mean"] = {"dtype": "F64", "shape": [1], "data_offsets": [0, 8]}
    header.update(
        {name: {"dtype": "F32", "shape": [], "data_offsets": [at, at + 4]} for name, at in (("a", 8), ("b", 12))}
    )
    text = json.dumps(header).encode()
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text + struct.pack("<d", 3) + floats(1, 2))
    assert [(spec.name, unfloats(bytes(part))) for spec, part in _safetensors.read(path)] == [("b", [2]), ("a", [1])]
    for wrong in (layout.replace("a", "c"), "[", 3):
        text = json.dumps({**header, "__metadata__": {"layout": wrong}}).encode()
        path.write_bytes(struct.pack("<Q", len(text)) + text + struct.pack("<d", 3) + floats(1, 2))
        with pytest.raises(consortia.ModelError):
            _safetensors.read(path)


HEADER = b'{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x00" * 8,
        b"\xff" * 16,
        struct.pack("<Q", 3) + b"{}x",
        struct.pack("<Q", 2) + b"[]",
        struct.pack("<Q", len(HEADER)) + HEADER + b"abc",
        struct.pack("<Q", len(HEADER)) + HEADER.replace(b"[0,4]", b"[4,0]") + b"abcd",
        struct.pack("<Q", len(HEADER)) + HEADER.replace(b"[1]", b"[2]") + b"abcd",
        struct.pack("<Q", len(HEADER)) + HEADER.replace(b"[0,4]", b"[0,\t]") + b"abcd",
        struct.pack("<Q", len(HEADER)) + HEADER.replace(b"F32", b"F16") + b"abcd",
        struct.pack("<Q", 8) + b'{"w": 3}',
    ],
)
def test_what_is_no_file_of_a_model_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(consortia.ModelError, match="give a safetensors file"):
        _safetensors.read(path)


# -- NumPy ----------------------------------------------------------------------------------------------------------------------------


def test_numpy_arrays_keep_their_types_and_places() -> None:
    np = pytest.importorskip("numpy")
    w = np.arange(6, dtype=np.float64).reshape(2, 3)
    model = {
        "w": w,
        "h": np.float16([0.5]),
        "n": np.array([3]),
        "flag": np.array(True),
        "s": np.float32(2),
        "e": np.zeros((0, 3)),
    }
    parameters = parameters_of(model)
    assert [(one.name, one.shape) for one in parameters.specs] == [("w", (2, 3)), ("h", (1,)), ("s", ())]
    model["n"][0] = 4
    parameters.load(memoryview(bytearray(floats(*range(10, 18)))))
    assert model["w"] is w and w.dtype == np.float64 and w[1, 2] == 15
    assert model["h"].dtype == np.float16 and model["s"].dtype == np.float32 and model["s"] == 17
    assert model["n"][0] == 3
    with pytest.raises(consortia.ModelError, match="is complex"):
        parameters_of({"c": np.zeros(2, complex)})


def test_numpy_arrays_are_sent_without_a_copy_where_they_can_be() -> None:
    np = pytest.importorskip("numpy")
    w = np.ones((2, 2), np.float32)
    part = parameters_of({"w": w}).body()[0]
    w[0, 0] = 5
    assert unfloats(bytes(part)) == [5, 1, 1, 1]
    assert unfloats(body(parameters_of({"w": np.asfortranarray(np.float32([[1, 2], [3, 4]]))}))) == [1, 2, 3, 4]


def test_read_only_arrays_are_replaced() -> None:
    np = pytest.importorskip("numpy")
    w = np.ones(2, np.float32)
    w.flags.writeable = False
    model = {"w": w}
    buffer = bytearray(floats(3, 4))
    parameters_of(model).load(memoryview(buffer))
    assert list(model["w"]) == [3, 4] and list(w) == [1, 1]
    buffer[:] = floats(8, 9)
    assert list(model["w"]) == [3, 4], "it shares nothing with the buffer"


# -- torch ----------------------------------------------------------------------------------------------------------------------------


def test_a_module_gives_and_takes_its_floating_tensors() -> None:
    torch = pytest.importorskip("torch")
    module = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    parameters = parameters_of(module, personal=["1.running"])
    assert [(one.name, one.personal) for one in parameters.specs] == [
        ("0.weight", False), ("0.bias", False), ("1.weight", False), ("1.bias", False), ("1.running_mean", True), ("1.running_var", True),
    ]  # fmt: skip
    weight = module[0].weight
    module[1].num_batches_tracked += 3
    parameters.load(memoryview(bytearray(floats(*range(14)))))
    assert module[0].weight is weight and weight.tolist() == [[0, 1], [2, 3]]
    assert module[1].running_var.tolist() == [12, 13]
    assert int(module[1].num_batches_tracked) == 0, "an integer buffer begins each task with what it was"
    assert unfloats(body(parameters)) == list(range(14))
    weight.data[0, 1] = float("nan")
    with pytest.raises(
        consortia.ModelError, match=r"`0.weight` has 1 of 4 values that are not finite in f32 \(element 1"
    ):
        parameters.body()


@pytest.mark.parametrize("name", ["bfloat16", "float16", "float64"])
def test_other_floating_types_travel_as_f32_and_come_back(name: str) -> None:
    torch = pytest.importorskip("torch")
    module = torch.nn.Linear(2, 1, bias=False).to(getattr(torch, name))
    parameters = parameters_of(module)
    parameters.load(memoryview(bytearray(floats(0.5, -2))))
    assert module.weight.dtype == getattr(torch, name)
    assert unfloats(body(parameters)) == [0.5, -2]


def test_shared_weights_travel_once() -> None:
    torch = pytest.importorskip("torch")
    module = torch.nn.ModuleDict({"a": torch.nn.Linear(2, 2, bias=False), "b": torch.nn.Linear(2, 2, bias=False)})
    module["b"].weight = module["a"].weight
    parameters = parameters_of(module)
    assert [one.name for one in parameters.specs] == ["a.weight"]
    parameters.load(memoryview(bytearray(floats(1, 2, 3, 4))))
    assert module["b"].weight is module["a"].weight and module["b"].weight.tolist() == [[1, 2], [3, 4]]


def test_frozen_parameters_stay_where_that_is_asked(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    module = torch.nn.Sequential(torch.nn.Linear(1, 1, bias=False), torch.nn.Linear(1, 1, bias=False))
    module[0].weight.requires_grad_(False)
    frozen = module[0].weight.item()
    parameters = parameters_of(module, trainable_only=True)
    assert [one.name for one in parameters.specs] == ["1.weight"]
    parameters.load(memoryview(bytearray(floats(9))))
    assert module[0].weight.item() == frozen and module[1].weight.item() == 9
    consortia.save_initial(module, tmp_path / "s", trainable_only=True)
    assert list(consortia.tensors(tmp_path / "s")) == ["1.weight"]


def test_a_module_is_sent_without_a_copy_and_without_numpy() -> None:
    torch = pytest.importorskip("torch")
    module = torch.nn.Linear(2, 1, bias=False)
    part = parameters_of(module).body()[0]
    module.weight.data[0, 0] = 77
    assert unfloats(bytes(part))[0] == 77


def test_a_file_brings_a_module_back(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    one, two = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
    consortia.save_initial(one, tmp_path / "s")
    consortia.load_into(two, tmp_path / "s")
    assert torch.equal(one.weight, two.weight) and torch.equal(one.bias, two.bias)
