"""One workload with a loop over clients in torch: federated averaging in one or two processes, with nothing in the way.

    python loop.py W3 --variant "flat gradient" --processes 2 --threads 1

It prints one JSON object. Processes share the model and the images; each adds up its own clients' parameters. The first round
is left out of the speed. `compare.py` runs it beside `consortia bench`.
"""

import argparse
import json
import os
import socket
import time

STARTED = float(os.environ.get("BENCH_STARTED", time.time()))

import torch  # noqa: E402

from networks import cnn, logistic, mlp  # noqa: E402
from records import deal, load, peak_bytes, processor_seconds, proportional_bytes  # noqa: E402
from variants import VARIANTS  # noqa: E402

# Network, clients, clients a round, images a client, rounds, clipping norm.
WORKLOADS = {
    "W1": (logistic, 1000, 100, 10, 200, None),
    "W2": (cnn, 100, 10, 600, 5, None),
    "W3": (mlp, 100, 10, 600, 30, None),
    "W4": (mlp, 100, 10, 600, 30, 1.0),
}
NOISE = 0.01


def train(trainer, clients, start, images, labels, total, clip):
    """Adds these clients to the total."""
    total.zero_()
    if hasattr(trainer, "add_all"):
        trainer.add_all(start, images[clients], labels[clients], total, clip)
        return
    for client in clients:
        trainer.add(start, images[client], labels[client], total, clip)


def work(line, trainer, shared, images, labels, clip):
    """A process's life: a message names its clients, its answer says that they are in the total."""
    model, total = shared
    while True:
        message = line.recv(65536)
        if not message:
            os._exit(0)
        clients = torch.frombuffer(bytearray(message), dtype=torch.int64)
        train(trainer, clients, model, images, labels, total, clip)
        line.send(b"done")


class Federation:
    """The model, and the processes that train it."""

    def __init__(self, build, variant, processes, images, labels, clip):
        torch.manual_seed(7)
        self.trainer, self.clip = VARIANTS[variant](build), clip
        self.images, self.labels = images, labels
        self.model = self.trainer.flat.clone().share_memory_()
        self.totals = [torch.zeros_like(self.model).share_memory_() for _ in range(processes)]
        self.noise = torch.zeros_like(self.model)
        self.lines, self.pids = [], []
        for total in self.totals[1:]:
            ours, theirs = socket.socketpair()
            pid = os.fork()
            if pid == 0:
                ours.close()
                torch.manual_seed(os.getpid())
                work(theirs, self.trainer, (self.model, total), images, labels, clip)
            theirs.close()
            self.lines.append(ours)
            self.pids.append(pid)

    def round(self, cohort):
        """One round of federated averaging with these clients."""
        shares = cohort.chunk(len(self.totals))
        for line, share in zip(self.lines, shares[1:]):
            line.send(share.numpy().tobytes())
        train(self.trainer, shares[0], self.model, self.images, self.labels, self.totals[0], self.clip)
        for line, total in zip(self.lines, self.totals[1:]):
            line.recv(16)
            self.totals[0].add_(total)
        if self.clip is None:
            torch.mul(self.totals[0], 1.0 / len(cohort), out=self.model)
        else:
            self.noise.normal_(std=NOISE * self.clip)
            self.model.add_(self.totals[0].add_(self.noise), alpha=1.0 / len(cohort))

    def seconds(self):
        """Processor time of all processes so far."""
        return processor_seconds([os.getpid(), *self.pids])

    def bytes(self):
        """Resident memory of all processes: the most there was for one, what there is now for several."""
        return proportional_bytes([os.getpid(), *self.pids]) if self.pids else peak_bytes()


def evaluate(federation, images, labels):
    """Accuracy on the test images."""
    trainer = federation.trainer
    trainer.flat.copy_(federation.model)
    with torch.no_grad():
        parts = zip(images.split(1000), labels.split(1000))
        right = sum(int((trainer.model(x).argmax(1) == y).sum()) for x, y in parts)
    return right / len(labels)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("workload", choices=sorted(WORKLOADS))
    parser.add_argument("--variant", choices=list(VARIANTS), default="flat gradient")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--data", default=os.environ.get("CONSORTIA_DATA"))
    args = parser.parse_args()
    build, clients, cohort, records, rounds, clip = WORKLOADS[args.workload]
    rounds = args.rounds or rounds
    torch.set_num_threads(args.threads)
    images, labels, test_images, test_labels = load(args.data, clients * records)
    images, labels = deal(images, labels, clients, records)
    federation = Federation(build, args.variant, args.processes, images, labels, clip)
    chance = torch.Generator().manual_seed(7)
    memory = seconds = processor = 0
    for number in range(rounds):
        began, before = time.perf_counter(), federation.seconds()
        federation.round(torch.randperm(clients, generator=chance)[:cohort])
        if number == 0:
            first = time.time() - STARTED
        else:
            seconds += time.perf_counter() - began
            processor += federation.seconds() - before
        if number in (0, rounds // 2, rounds - 1):
            memory = max(memory, federation.bytes())
    print(
        json.dumps(
            {
                "workload": args.workload,
                "variant": args.variant,
                "processes": args.processes,
                "threads": args.threads,
                "images": "synthetic" if args.data is None else "mnist",
                "rounds": rounds,
                "parameters": federation.trainer.parameters,
                "updates_per_s": cohort * (rounds - 1) / seconds,
                "updates_per_processor_s": cohort * (rounds - 1) / processor,
                "seconds_to_first_aggregate": first,
                "peak_rss_bytes": memory,
                "accuracy": evaluate(federation, test_images, test_labels),
                "torch": torch.__version__,
                "load": os.getloadavg(),
            }
        )
    )
    for line in federation.lines:
        line.close()
    for pid in federation.pids:
        os.waitpid(pid, 0)


if __name__ == "__main__":
    main()
