"""A convolutional network in PyTorch on handwritten digits."""

import gzip
import sys

import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset


def read(folder, part):
    """Images (n, 1, 28, 28) from 0 to 1, and labels (n), of the files of the MNIST distribution."""
    with gzip.open(f"{folder}/{part}-images-idx3-ubyte.gz") as file:
        images = torch.frombuffer(bytearray(file.read()[16:]), dtype=torch.uint8)
    with gzip.open(f"{folder}/{part}-labels-idx1-ubyte.gz") as file:
        labels = torch.frombuffer(bytearray(file.read()[8:]), dtype=torch.uint8)
    return TensorDataset(images.reshape(-1, 1, 28, 28).float() / 255, labels.long())


def share(records, index, clients):
    """Every `clients`-th record, from `index` on."""
    return TensorDataset(*(tensor[index::clients] for tensor in records.tensors))


def train(model, records, epochs, seed, rate=0.1):
    torch.manual_seed(seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    model.train()
    total = 0.0
    for _ in range(epochs):
        for x, y in DataLoader(records[0], batch_size=32, shuffle=True):
            optimizer.zero_grad()
            loss = functional.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            total += loss.item() * len(y)
    return {"examples": len(records[0]), "loss": total / (epochs * len(records[0]))}


@torch.no_grad()
def test(model, records):
    model.eval()
    loss = right = 0.0
    for x, y in DataLoader(records[1], batch_size=500):
        found = model(x)
        loss += functional.cross_entropy(found, y, reduction="sum").item()
        right += (found.argmax(1) == y).sum().item()
    return {"examples": len(records[1]), "loss": loss / len(records[1]), "accuracy": right / len(records[1])}


torch.manual_seed(1)
everything = read(sys.argv[1], "train"), read(sys.argv[1], "t10k")
model = nn.Sequential(
    nn.Conv2d(1, 8, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 16, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(256, 10)
)

records = everything
print(train(model, records, epochs=1, seed=1))
print(test(model, records))
