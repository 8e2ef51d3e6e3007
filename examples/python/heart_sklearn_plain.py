"""Logistic regression by scikit-learn on the patients of a hospital."""

import csv
import sys

import numpy as np
from sklearn.linear_model import SGDClassifier
from sklearn.metrics import log_loss

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


def train(model, hospital, epochs, seed, rate=0.02):
    x, y = hospital["train"]
    model.set_params(random_state=seed % 2**32, eta0=rate)
    for _ in range(epochs):
        model.partial_fit(x, y, classes=[0, 1])
    return measure(model, x, y)


def test(model, hospital):
    return measure(model, *hospital["test"])


def measure(model, x, y):
    found = model.predict_proba(x)
    return {"examples": len(y), "loss": log_loss(y, found, labels=[0, 1]), "accuracy": (found.argmax(axis=1) == y).mean()}


def get():
    return {"coef": model.coef_, "intercept": model.intercept_}


def put(values):
    model.coef_, model.intercept_ = values["coef"], values["intercept"]


hospitals = read(sys.argv[1])
model = SGDClassifier(loss="log_loss", learning_rate="constant", alpha=1e-3)
model.partial_fit(np.zeros((2, len(FEATURES))), [0, 1], classes=[0, 1])
put({"coef": np.zeros((1, len(FEATURES))), "intercept": np.zeros(1)})

hospital = hospitals[0]
print(train(model, hospital, epochs=20, seed=1))
print(test(model, hospital))
