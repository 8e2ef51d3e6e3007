"""Runs torch and `consortia bench` in turn on this machine, never two at once, and prints how they compare.

    CONSORTIA_TORCH_PYTHON=/venv/bin/python CONSORTIA_DATA=/data python3 benches/torch/compare.py --out figures.json
    python3 benches/torch/compare.py --only W2,steps --out figures.json    # parts of it anew; the others are kept

This script needs Python alone; torch is wanted in `CONSORTIA_TORCH_PYTHON`. For each workload it first tries every variant of the
torch loop for a few rounds and keeps the fastest; then torch and Consortia take turns. `table.py` makes the tables of
docs/performance.md from the file.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import time

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
WORKLOADS = ("W1", "W2", "W3", "W4")
# Loops over clients with autograd: what is called the hand-tuned loop is the fastest of them.
LOOPS = ["tutorial", "resident", "flat gradient"]
CHANNELS_LAST = ["resident, channels last", "flat gradient, channels last"]
COMPILED = ["resident, compiled"]
SETTINGS = [(2, 1), (1, 2)]
# A few rounds are enough to choose.
TRIAL_ROUNDS = {"W1": 60, "W2": 2, "W3": 8, "W4": 8}


class Machine:
    """Where the programs are, and how long a run may take."""

    def __init__(self, args):
        self.python, self.consortia, self.data = args.python, args.consortia, args.data

    def run(self, command):
        """The object that a command ends with."""
        environment = dict(os.environ, BENCH_STARTED=repr(time.time()))
        if self.data:
            environment["CONSORTIA_DATA"] = self.data
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        if done.returncode != 0:
            raise RuntimeError(f"{' '.join(map(str, command))} failed:\n{done.stderr[-2000:]}")
        return json.loads(done.stdout.strip().splitlines()[-1])

    def torch(self, workload, variant, setting, rounds=None):
        """One run of a torch loop."""
        processes, threads = setting
        command = [self.python, HERE / "loop.py", workload, "--variant", variant]
        command += ["--processes", str(processes), "--threads", str(threads)]
        return self.run(command + (["--rounds", str(rounds)] if rounds else []))

    def ours(self, *words):
        """One run of `consortia bench`."""
        return self.run([self.consortia, "bench", *words, "--format", "json"])


def say(text):
    print(text, file=sys.stderr, flush=True)


def choose(machine, workload, variants, trials):
    """The fastest variant and setting of several."""
    best = None
    for variant in variants:
        for setting in SETTINGS:
            tried = machine.torch(workload, variant, setting, TRIAL_ROUNDS[workload])
            trials.append(tried)
            speed = tried["updates_per_s"]
            say(f"{workload}  {variant}, {setting[0]} x {setting[1]}: {speed:.1f}")
            # Threads inside one client spin while they wait: on a busy machine they may take minutes for what two processes do
            # in seconds, and the trial says so.
            if best is None or speed > best[0]:
                best = (speed, variant, setting)
    return best[1:]


def compare(machine, workload, args):
    """Every contender of one workload, in turn."""
    trials = []
    loops = LOOPS + (CHANNELS_LAST if workload == "W2" else []) + (COMPILED if args.compiled else [])
    contenders = {"loop": choose(machine, workload, loops, trials)}
    if workload != "W2":
        contenders["closed form"] = choose(machine, workload, ["closed form"], trials)
    if workload in ("W1", "W3"):
        vmaps = ["vmap"] + (["vmap, compiled"] if args.compiled and workload == "W1" else [])
        contenders["vmap"] = choose(machine, workload, vmaps, trials)
    runs = {name: [] for name in ["ours", *contenders]}
    for turn in range(args.turns):
        for name, (variant, setting) in contenders.items():
            runs["ours"].append(machine.ours(workload, "--repeats", "1"))
            runs[name].append(machine.torch(workload, variant, setting))
            ours, theirs = (runs[who][-1]["updates_per_s"] for who in ("ours", name))
            say(f"{workload}  turn {turn + 1}: {name} {theirs:.1f}, ours {ours:.1f}, {ours / theirs:.2f} times")
    scaling = machine.ours(workload, "--scaling", "--profile", "--repeats", str(args.turns))
    return {"trials": trials, "runs": runs, "scaling": scaling}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--consortia", default=str(ROOT / "target/dist/consortia"))
    parser.add_argument("--python", default=os.environ.get("CONSORTIA_TORCH_PYTHON"))
    parser.add_argument("--data", default=os.environ.get("CONSORTIA_DATA"))
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--only", default="W1,W2,W3,W4,steps,aggregate,wire")
    parser.add_argument("--compiled", action="store_true", help="torch.compile's variants, too; takes minutes")
    parser.add_argument("--out", required=True, help="the file for all figures; what it has of other parts is kept")
    args = parser.parse_args()
    if not args.python:
        parser.error("give a Python that has torch, by --python or CONSORTIA_TORCH_PYTHON")
    machine, out = Machine(args), pathlib.Path(args.out)
    figures = json.loads(out.read_text()) if out.exists() else {}
    for part in args.only.split(","):
        if part in WORKLOADS:
            figures[part] = compare(machine, part, args)
        elif part == "steps":
            words = ["--compiled"] if args.compiled else []
            turns = [
                {"ours": machine.ours("steps", "--profile"), "torch": machine.run([args.python, HERE / "steps.py", *words])}
                for _ in range(args.turns)
            ]
            figures[part] = turns
        else:
            figures[part] = machine.ours(part)
        figures["date"] = time.strftime("%Y-%m-%d")
        out.write_text(json.dumps(figures, indent=1))
    subprocess.run([sys.executable, HERE / "table.py", out], check=True)


if __name__ == "__main__":
    main()
