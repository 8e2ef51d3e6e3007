"""Images of MNIST or made-up ones of the same shape, dealt to clients; and what is known of a process's memory."""

import gzip
import os
import struct

import torch


def read_idx(path):
    """The bytes of one IDX file as a tensor of its shape."""
    with gzip.open(path, "rb") as file:
        content = file.read()
    dimensions = content[3]
    shape = struct.unpack(f">{dimensions}I", content[4 : 4 + 4 * dimensions])
    values = torch.frombuffer(bytearray(content[4 + 4 * dimensions :]), dtype=torch.uint8)
    return values.reshape(shape)


def load(folder, rows):
    """At least `rows` training images and labels, and test images and labels; images are [n, 1, 28, 28] from 0 to 1."""
    if folder is None:
        generator = torch.Generator().manual_seed(7)
        centres = torch.rand(10, 784, generator=generator)
        parts = []
        for count in (rows, 2000):
            labels = torch.randint(10, (count,), generator=generator)
            images = centres[labels] + 0.3 * torch.randn(count, 784, generator=generator)
            parts += [images.reshape(-1, 1, 28, 28), labels]
        return parts
    parts = []
    for name in ("train", "t10k"):
        images = read_idx(os.path.join(folder, "mnist", f"{name}-images-idx3-ubyte.gz"))
        labels = read_idx(os.path.join(folder, "mnist", f"{name}-labels-idx1-ubyte.gz"))
        if name == "train":
            images, labels = images[:rows], labels[:rows]
        parts += [images.unsqueeze(1).to(torch.float32).div_(255), labels.to(torch.int64)]
    return parts


def deal(images, labels, clients, records):
    """[clients, records, 1, 28, 28] and [clients, records], dealt at random."""
    order = torch.randperm(clients * records, generator=torch.Generator().manual_seed(7))
    return images[order].reshape(clients, records, 1, 28, 28), labels[order].reshape(clients, records)


def proportional_bytes(pids):
    """Resident bytes of processes together, shared pages counted once."""
    total = 0
    for pid in pids:
        with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as file:
            for line in file:
                if line.startswith("Pss:"):
                    total += int(line.split()[1]) * 1024
    return total


def peak_bytes():
    """The most that this process ever had resident."""
    with open("/proc/self/status", encoding="ascii") as file:
        for line in file:
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return 0


def processor_seconds(pids):
    """Processor time of processes so far, in the kernel's ticks."""
    ticks = 0
    for pid in pids:
        with open(f"/proc/{pid}/stat", encoding="ascii") as file:
            fields = file.read().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")
