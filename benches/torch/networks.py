"""The networks that are measured, as a user of torch writes them."""

import torch
from torch import nn


def logistic():
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 10))


def mlp():
    return nn.Sequential(
        nn.Flatten(), nn.Linear(784, 200), nn.ReLU(), nn.Linear(200, 200), nn.ReLU(), nn.Linear(200, 10)
    )


def cnn():
    """McMahan et al. 2017: 1,663,370 parameters."""
    return nn.Sequential(
        nn.Conv2d(1, 32, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(3136, 512),
        nn.ReLU(),
        nn.Linear(512, 10),
    )


class Characters(nn.Module):
    """McMahan et al. 2017: the next of 90 characters from the 80 before it."""

    def __init__(self, vocabulary=90):
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, 8)
        self.lstm = nn.LSTM(8, 256, num_layers=2, batch_first=True)
        self.head = nn.Linear(256, vocabulary)

    def forward(self, text):
        return self.head(self.lstm(self.embedding(text))[0][:, -1])


class Block(nn.Module):
    """Two 3x3 convolutions with group norm, and the way around them."""

    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.first = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm_first = nn.GroupNorm(32, outputs)
        self.second = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm_second = nn.GroupNorm(32, outputs)
        self.way = None
        if stride != 1 or inputs != outputs:
            self.way = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.GroupNorm(32, outputs)
            )

    def forward(self, x):
        y = torch.relu(self.norm_first(self.first(x)))
        y = self.norm_second(self.second(y))
        return torch.relu(y + (x if self.way is None else self.way(x)))


def resnet():
    """ResNet-18 for 32 x 32 pixels with group norm, as in Hsieh et al. 2020: 11.2 million parameters."""
    layers = [nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.GroupNorm(32, 64), nn.ReLU()]
    inputs = 64
    for outputs, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
        layers += [Block(inputs, outputs, stride), Block(outputs, outputs, 1)]
        inputs = outputs
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 10))


def flattened(model, channels_last=False):
    """Moves all parameters of `model` into one vector, of which they become views; gives the vector."""
    total = sum(parameter.numel() for parameter in model.parameters())
    flat, at = torch.empty(total), 0
    for parameter in model.parameters():
        piece = flat[at : at + parameter.numel()]
        if channels_last and parameter.dim() == 4:
            outputs, inputs, height, width = parameter.shape
            view = piece.view(outputs, height, width, inputs).permute(0, 3, 1, 2)
        else:
            view = piece.view(parameter.shape)
        view.copy_(parameter.data)
        parameter.data = view
        at += parameter.numel()
    return flat
