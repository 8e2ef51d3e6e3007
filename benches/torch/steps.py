"""One training step (forward, backward, SGD) of several networks on one thread in torch, by several variants.

    python steps.py --only cnn

It prints one JSON object with the median and the least of each variant; `compare.py` takes the best one.
"""

import argparse
import json
import os
import statistics
import time

import torch
import torch.nn.functional as F

from networks import Characters, cnn, flattened, mlp, resnet
from variants import RATE, ClosedForm

# Name, network, batch sizes, what a record is.
NETWORKS = [
    ("mlp", mlp, (10, 32, 64), "image"),
    ("cnn", cnn, (10, 32, 64), "image"),
    ("lstm", Characters, (10,), "text"),
    ("resnet", resnet, (10,), "picture"),
]


def batch(kind, size):
    """Records of chance, and their classes."""
    generator = torch.Generator().manual_seed(7)
    classes = torch.randint(10, (size,), generator=generator)
    if kind == "text":
        return torch.randint(90, (size, 80), generator=generator), classes
    shape = (1, 28, 28) if kind == "image" else (3, 32, 32)
    return torch.rand(size, *shape, generator=generator), classes


class Autograd:
    """Parameters in one vector, gradients from autograd, SGD in one call."""

    def __init__(self, build, channels_last=False, compiled=False):
        torch.manual_seed(7)
        self.model = build()
        self.flat = flattened(self.model, channels_last)
        self.list = list(self.model.parameters())
        self.channels_last = channels_last

        def loss(x, y):
            return F.cross_entropy(self.model(x), y)

        self.loss = torch.compile(loss) if compiled else loss

    def step(self, x, y):
        gradients = torch.autograd.grad(self.loss(x, y), self.list)
        with torch.no_grad():
            torch._foreach_add_(self.list, gradients, alpha=-RATE)


def variants(name, build, compiled):
    """By name, how to make each."""
    made = {"eager": lambda: Autograd(build)}
    if name in ("cnn", "resnet"):
        made["channels last"] = lambda: Autograd(build, channels_last=True)
    if name == "mlp":
        made["closed form"] = lambda: ClosedForm(build)
    if compiled:
        made["compiled"] = lambda: Autograd(build, compiled=True)
        if name in ("cnn", "resnet"):
            made["compiled, channels last"] = lambda: Autograd(build, channels_last=True, compiled=True)
    return made


def measure(name, build, size, kind, repeats, compiled):
    """Seconds a step of every variant, in turn."""
    x, y = batch(kind, size)
    steps, seconds = {}, {}
    for variant, make in variants(name, build, compiled).items():
        try:
            trainer = make()
            images = x
            if getattr(trainer, "channels_last", False):
                images = x.contiguous(memory_format=torch.channels_last)
            if isinstance(trainer, ClosedForm):
                images = x.flatten(1)
            for _ in range(3):
                trainer.step(images, y)
            steps[variant], seconds[variant] = (trainer, images), []
        except Exception as error:  # A compiler that is not there or fails is no figure, and no reason to stop.
            steps.pop(variant, None)
            print(json.dumps({"network": name, "variant": variant, "failed": str(error)[:200]}))
    for _ in range(repeats):
        for variant, (trainer, images) in steps.items():
            count, began = 0, time.perf_counter()
            while count < 3 or time.perf_counter() - began < 0.2:
                trainer.step(images, y)
                count += 1
            seconds[variant].append((time.perf_counter() - began) / count)
    return {
        variant: {"median": statistics.median(values), "least": min(values), "each": values}
        for variant, values in seconds.items()
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--compiled", action="store_true", help="torch.compile, too; takes minutes")
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for name, build, sizes, kind in NETWORKS:
        for size in sizes if name.startswith(args.only) else ():
            seconds = measure(name, build, size, kind, args.repeats, args.compiled)
            best = min(seconds, key=lambda variant: seconds[variant]["median"])
            rows.append({"network": name, "batch_size": size, "best": best, "variants": seconds})
    print(json.dumps({"torch": torch.__version__, "load": os.getloadavg(), "networks": rows}))


if __name__ == "__main__":
    main()
