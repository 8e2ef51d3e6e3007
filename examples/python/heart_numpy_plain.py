"""Logistic regression in NumPy on the patients of a hospital."""

import csv
import sys

import numpy as np

FEATURES = "age sex trestbps chol fbs thalach exang oldpeak cp_2 cp_3 cp_4 restecg_1 restecg_2".split()
# Agreed by all hospitals, so that a value means the same everywhere: about the mean and the deviation of patients of cardiology.
CENTRE = np.array([54, 0.5, 130, 220, 0.2, 140, 0.4, 0.9, 0.2, 0.2, 0.5, 0.2, 0.2])
SPREAD = np.array([9, 0.5, 18, 100, 0.4, 25, 0.5, 1.1, 0.4, 0.4, 0.5, 0.4, 0.4])


def read(path):
    """The rows of each hospital in a table: {"train": (x, y), "test": (x, y)}, by name."""
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    hospitals = []
    for site in sorted({row["site"] for row in rows}):
        parts = {}
        for part in ("train", "test"):
            chosen = [row for row in rows if row["site"] == site and row["split"] == part]
            x = np.array([[float(row[name]) for name in FEATURES] for row in chosen])
            parts[part] = ((x - CENTRE) / SPREAD, np.array([int(row["label"]) for row in chosen]))
        hospitals.append(parts)
    return hospitals


def probabilities(model, x):
    return 1 / (1 + np.exp(-(x @ model["weight"] + model["bias"])))


def train(model, hospital, epochs, seed, rate=0.05):
    x, y = hospital["train"]
    order = np.random.default_rng(seed)
    for _ in range(epochs):
        for batch in np.array_split(order.permutation(len(y)), max(len(y) // 16, 1)):
            error = probabilities(model, x[batch]) - y[batch]
            model["weight"] -= rate * x[batch].T @ error / len(batch)
            model["bias"] -= rate * error.mean()
    return measure(model, x, y)


def test(model, hospital):
    return measure(model, *hospital["test"])


def measure(model, x, y):
    found = probabilities(model, x)
    loss = -np.log(np.where(y == 1, found, 1 - found).clip(1e-7)).mean()
    return {"examples": len(y), "loss": loss, "accuracy": ((found > 0.5) == y).mean()}


hospitals = read(sys.argv[1])
model = {"weight": np.zeros(len(FEATURES)), "bias": np.zeros(1)}

hospital = hospitals[0]
print(train(model, hospital, epochs=20, seed=1))
print(test(model, hospital))
