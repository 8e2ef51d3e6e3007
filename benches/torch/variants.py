"""Ways to train one client with torch, from a tutorial's to the best we know of. Each has a `model` whose parameters are views
of the vector `flat`, `parameters`, how many there are, and `add(start, images, labels, total, clip)`, which trains from the vector `start` and adds to the vector `total`: the
trained parameters, or with `clip` the difference to `start`, scaled down to that norm."""

import torch
import torch.nn.functional as F

from networks import flattened

RATE = 0.05
BATCH = 10


def contribute(trained, start, total, clip):
    """Adds what was trained to the total."""
    if clip is None:
        total.add_(trained)
        return
    difference = trained - start
    norm = float(torch.linalg.vector_norm(difference))
    total.add_(difference, alpha=min(1.0, clip / max(norm, 1e-12)))


class Tutorial:
    """A new model and a new optimizer for every client."""

    def __init__(self, build):
        self.model, self.build = build(), build
        self.flat = flattened(self.model)
        self.parameters = self.flat.numel()

    def add(self, start, images, labels, total, clip):
        model = self.build()
        torch.nn.utils.vector_to_parameters(start.clone(), model.parameters())
        optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
        order = torch.randperm(len(labels))
        for batch in order.split(BATCH):
            optimizer.zero_grad()
            F.cross_entropy(model(images[batch]), labels[batch]).backward()
            optimizer.step()
        trained = torch.nn.utils.parameters_to_vector(model.parameters()).detach()
        contribute(trained, start, total, clip)


class Resident:
    """One model for all clients, its parameters views of one vector; images are shuffled once a client."""

    def __init__(self, build, channels_last=False, compiled=False):
        self.model = build()
        self.channels_last = channels_last
        self.flat = flattened(self.model, channels_last)
        self.list = list(self.model.parameters())
        self.parameters = self.flat.numel()

        def loss(images, labels):
            return F.cross_entropy(self.model(images), labels)

        self.loss = torch.compile(loss) if compiled else loss

    def shuffled(self, images, labels):
        if len(labels) > BATCH:
            order = torch.randperm(len(labels))
            images, labels = images[order], labels[order]
        if self.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        return zip(images.split(BATCH), labels.split(BATCH))

    def add(self, start, images, labels, total, clip):
        self.flat.copy_(start)
        for x, y in self.shuffled(images, labels):
            gradients = torch.autograd.grad(self.loss(x, y), self.list)
            with torch.no_grad():
                torch._foreach_add_(self.list, gradients, alpha=-RATE)
        contribute(self.flat, start, total, clip)


class FlatGradient(Resident):
    """The same with gradients in one vector, too, so that a step of SGD is one addition."""

    def __init__(self, build, channels_last=False):
        super().__init__(build, channels_last)
        self.gradient, at = torch.zeros(self.parameters), 0
        for parameter in self.list:
            piece = self.gradient[at : at + parameter.numel()]
            parameter.grad = torch.as_strided(piece, parameter.shape, parameter.stride())
            at += parameter.numel()

    def add(self, start, images, labels, total, clip):
        self.flat.copy_(start)
        for x, y in self.shuffled(images, labels):
            self.gradient.zero_()
            self.loss(x, y).backward()
            self.flat.add_(self.gradient, alpha=-RATE)
        contribute(self.flat, start, total, clip)


class ClosedForm:
    """Dense layers with ReLU, without autograd: the gradient written by hand in torch's products, each step of SGD inside the
    product that makes the gradient."""

    def __init__(self, build):
        self.model = build()
        self.flat = flattened(self.model)
        self.parameters = self.flat.numel()
        self.layers = [(m.weight.data, m.bias.data) for m in self.model if isinstance(m, torch.nn.Linear)]

    def add(self, start, images, labels, total, clip):
        self.flat.copy_(start)
        if len(labels) > BATCH:
            order = torch.randperm(len(labels))
            images, labels = images[order], labels[order]
        with torch.no_grad():
            for x, y in zip(images.flatten(1).split(BATCH), labels.split(BATCH)):
                self.step(x, y)
        contribute(self.flat, start, total, clip)

    def step(self, x, y):
        inputs = [x]
        for weight, bias in self.layers[:-1]:
            inputs.append(torch.addmm(bias, inputs[-1], weight.t()).relu_())
        weight, bias = self.layers[-1]
        error = torch.softmax(torch.addmm(bias, inputs[-1], weight.t()), 1)
        error[torch.arange(len(y)), y] -= 1
        for index in range(len(self.layers) - 1, -1, -1):
            weight, bias = self.layers[index]
            below = None
            if index > 0:
                below = torch.mm(error, weight).mul_(inputs[index] > 0)
            weight.addmm_(error.t(), inputs[index], alpha=-RATE / len(y))
            bias.add_(error.sum(0), alpha=-RATE / len(y))
            error = below


class Vectorised:
    """All clients of a process at once, by `torch.func.vmap` over their parameters."""

    def __init__(self, build, compiled=False):
        self.model = build()
        self.names = [name for name, _ in self.model.named_parameters()]
        self.shapes = [parameter.shape for parameter in self.model.parameters()]
        self.flat = flattened(self.model)
        self.parameters = self.flat.numel()

        def loss(parameters, x, y):
            named = dict(zip(self.names, parameters))
            return F.cross_entropy(torch.func.functional_call(self.model, named, (x,)), y)

        gradient = torch.func.vmap(torch.func.grad(loss))
        self.gradient = torch.compile(gradient) if compiled else gradient

    def add_all(self, start, images, labels, total, clip):
        """As `add`, for [clients, records, ...] at once."""
        clients, at, parameters = len(labels), 0, []
        for shape in self.shapes:
            piece = start[at : at + shape.numel()].view(shape)
            parameters.append(piece.expand(clients, *shape).clone())
            at += shape.numel()
        if labels.shape[1] > BATCH:
            order = torch.stack([torch.randperm(labels.shape[1]) for _ in range(clients)])
            rows = torch.arange(clients)[:, None]
            images, labels = images[rows, order], labels[rows, order]
        for x, y in zip(images.split(BATCH, 1), labels.split(BATCH, 1)):
            gradients = self.gradient(parameters, x, y)
            torch._foreach_add_(parameters, gradients, alpha=-RATE)
        trained = torch.cat([parameter.flatten(1) for parameter in parameters], 1)
        if clip is None:
            total.add_(trained.sum(0))
        else:
            for row in trained:
                contribute(row, start, total, clip)


VARIANTS = {
    "tutorial": Tutorial,
    "resident": Resident,
    "resident, channels last": lambda build: Resident(build, channels_last=True),
    "resident, compiled": lambda build: Resident(build, compiled=True),
    "flat gradient": FlatGradient,
    "flat gradient, channels last": lambda build: FlatGradient(build, channels_last=True),
    "closed form": ClosedForm,
    "vmap": Vectorised,
    "vmap, compiled": lambda build: Vectorised(build, compiled=True),
}
