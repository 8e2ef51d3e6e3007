"""Runs ONNX files with ONNX Runtime and says how far their outputs are from those in a manifest.

    compare.py FOLDER

FOLDER/cases.json lists cases: a file, batches of inputs with the outputs that are expected, inputs that must be refused, and the
metadata that the file must have. Numbers are files of little-endian float32. Prints one JSON object: the worst distance of each case, in tolerances: 1 is
1e-5 + 1e-5 * |expected|. Judges nothing.
"""

import json
import pathlib
import sys

import numpy
import onnxruntime


def numbers(folder, described):
    return numpy.fromfile(folder / described["file"], dtype="<f4").reshape(described["shape"])


def fed(folder, described, entry):
    """The numbers in the type that goes in: f64 where the graph fills or standardises."""
    return numbers(folder, described).astype({"tensor(double)": "<f8", "tensor(float)": "<f4"}[entry.type])


def distance(found, expected):
    if found.shape != expected.shape or not numpy.isfinite(found).all():
        return sys.float_info.max
    return float((numpy.abs(found - expected) / (1e-5 + 1e-5 * numpy.abs(expected))).max())


def worst(folder, case):
    session = onnxruntime.InferenceSession(str(folder / case["model"]), providers=["CPUExecutionProvider"])
    told = session.get_modelmeta().custom_metadata_map
    for key, value in case["metadata"].items():
        assert told.get(key) == value, f"{case['name']}: metadata {key} is {told.get(key)}, not {value}"
    (entry,) = session.get_inputs()
    assert entry.name == "input" and entry.shape[0] == "batch", f"{case['name']}: {entry}"
    names = [output.name for output in session.get_outputs()]
    assert names == case["outputs"], f"{case['name']}: outputs {names}"
    for refused in case["refused"]:
        try:
            session.run(None, {"input": fed(folder, refused, entry)})
        except Exception:
            continue
        raise AssertionError(f"{case['name']}: {refused} was not refused")
    found = 0.0
    for batch in case["batches"]:
        results = session.run(None, {"input": fed(folder, batch["input"], entry)})
        for result, expected in zip(results, batch["expected"], strict=True):
            found = max(found, distance(result, numbers(folder, expected)))
    return found


def main():
    folder = pathlib.Path(sys.argv[1])
    cases = json.loads((folder / "cases.json").read_text())
    print(json.dumps({case["name"]: worst(folder, case) for case in cases}))


if __name__ == "__main__":
    main()
