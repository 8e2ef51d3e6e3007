"""Logistic regression by Lightning on the patients of a hospital."""

import csv
import sys

import numpy as np
import pytorch_lightning as lightning
import torch
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset
import consortia

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


class Records(lightning.LightningDataModule):
    """The rows of the hospital that `index` chooses."""

    def __init__(self, path):
        super().__init__()
        self.hospitals, self.index = read(path), 0

    def loader(self, part):
        x, y = self.hospitals[self.index][part]
        return DataLoader(TensorDataset(torch.tensor(x).float(), torch.tensor(y)), batch_size=16, shuffle=part == "train")

    def train_dataloader(self):
        return self.loader("train")

    def val_dataloader(self):
        return self.loader("test")


class Model(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.dense = torch.nn.Linear(len(FEATURES), 2)

    def training_step(self, batch, index):
        return functional.cross_entropy(self.dense(batch[0]), batch[1])

    def validation_step(self, batch, index):
        found = self.dense(batch[0])
        self.log("val_loss", functional.cross_entropy(found, batch[1]), batch_size=len(batch[1]))
        self.log("val_accuracy", (found.argmax(1) == batch[1]).float().mean(), batch_size=len(batch[1]))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.05)


torch.manual_seed(1)
records, model = Records(sys.argv[1]), Model()
trainer = lightning.Trainer(max_epochs=20, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)

consortia.patch(trainer, before=lambda task: setattr(records, "index", task.client.index))
trainer.fit(model, datamodule=records)
