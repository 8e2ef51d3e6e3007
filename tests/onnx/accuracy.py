"""What a stranger does with an exported model: reads a table, takes the columns that the file names, and predicts.

    accuracy.py MODEL.onnx TABLE.csv

Prints the share of rows with `split` equal to `test` whose most probable class is their label. Knows nothing of the plan.
"""

import csv
import json
import sys

import numpy
import onnxruntime

session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
told = session.get_modelmeta().custom_metadata_map
with open(sys.argv[2], newline="") as table:
    rows = [row for row in csv.DictReader(table) if row["split"] == "test"]
x = numpy.array([[float(row[column]) for column in json.loads(told["columns"])] for row in rows], dtype="float64")
classes = numpy.array(json.loads(told["classes"]))
(probabilities,) = session.run(["probabilities"], {"input": x})
assert numpy.allclose(probabilities.sum(axis=1), 1, atol=1e-5)
labels = numpy.array([row[told["label"]] for row in rows])
print((classes[probabilities.argmax(axis=1)] == labels).mean())
