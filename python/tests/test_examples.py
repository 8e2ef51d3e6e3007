"""The examples: how little they differ from the plain scripts, and that they train, by an agent that averages four clients."""

from __future__ import annotations

import difflib
import json
import os
import re
import socket
import struct
import subprocess
import sys
from pathlib import Path
from typing import Dict, List, Tuple

import pytest
from agent import FOLDER, PACKAGE, Agent, floats, unfloats

EXAMPLES = FOLDER.parent / "examples" / "python"
HEART = str(EXAMPLES.parent / "data" / "heart_disease.csv")
PAGE = FOLDER.parent / "docs" / "python.md"
NAMES = ["heart_numpy", "heart_sklearn", "heart_lightning", "mnist_torch"]


def environment(tmp_path: Path, **more: str) -> Dict[str, str]:
    return {"PATH": os.environ["PATH"], "PYTHONPATH": PACKAGE, "HOME": str(tmp_path), "OMP_NUM_THREADS": "1", **more}


def difference(name: str) -> List[str]:
    texts = [(EXAMPLES / f"{name}{form}.py").read_text(encoding="utf-8").splitlines() for form in ("_plain", "")]
    return [
        line
        for line in difflib.unified_diff(*texts, n=0, lineterm="")
        if line[:1] in "+-" and line[:3] not in ("+++", "---")
    ]


@pytest.mark.parametrize("name", NAMES)
def test_at_most_five_lines_are_added_or_changed(name: str) -> None:
    added = [line for line in difference(name) if line.startswith("+")]
    assert 0 < len(added) <= 5, added


def test_the_page_shows_the_difference_as_it_is() -> None:
    shown = re.search(r"```diff\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert shown is not None
    assert [line for line in shown.group(1).splitlines() if line[:1] in "+-"] == difference("mnist_torch")


@pytest.mark.parametrize("name", NAMES)
def test_a_plan_lies_beside_each_example(name: str) -> None:
    text = (EXAMPLES / f"{name}.toml").read_text(encoding="utf-8")
    assert f'external = {{ start = "{name}.safetensors" }}' in text and f'["python", "{name}.py", ' in text
    tomllib = pytest.importorskip("tomllib")
    assert tomllib.loads(text)["simulation"]["learner"]["command"][1] == f"{name}.py"


def start(name: str, data: str, tmp_path: Path) -> Tuple[List[Dict[str, object]], bytes]:
    """The tensors and the values of the start file that the script writes."""
    path = tmp_path / "start.safetensors"
    command = [sys.executable, str(EXAMPLES / f"{name}.py"), data]
    done = subprocess.run(
        command,
        env=environment(tmp_path, CONSORTIA_SAVE_INITIAL=str(path)),
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 0 and "from which a run begins" in done.stderr, done.stderr
    raw = path.read_bytes()
    length = struct.unpack("<Q", raw[:8])[0]
    header = json.loads(raw[8 : 8 + length])
    return [{"name": key, "shape": value["shape"]} for key, value in header.items()], raw[8 + length :]


def accuracy(name: str, data: str, tmp_path: Path, clients: int, rounds: int, of: int = 0) -> float:
    """Federated averaging by the channel; the accuracy of the last model over all clients' test records."""
    tensors, values = start(name, data, tmp_path)
    ours, theirs = socket.socketpair()
    agent = Agent(ours)
    agent.folder = tmp_path
    agent.process = subprocess.Popen(
        [sys.executable, str(EXAMPLES / f"{name}.py"), data],
        env=environment(tmp_path, CONSORTIA_LEARNER=f"fd:{theirs.fileno()}"),
        pass_fds=[theirs.fileno()],
        stdout=open(tmp_path / "stdout", "w"),
        stderr=open(tmp_path / "stderr", "w"),
        text=True,
        cwd=tmp_path,
    )
    theirs.close()
    agent.greet()
    agent.prepare(tensors)
    who = [{"name": f"client-{index}", "index": index, "clients": of or clients} for index in range(clients)]
    for number in range(1, rounds + 1):
        total, weight = [0.0] * (len(values) // 4), 0
        for client in who:
            header, body = agent.ask("train", values, round=number, client=client, seed=number)
            assert header["type"] == "result", header
            weight += header["examples"]
            total = [old + header["examples"] * new for old, new in zip(total, unfloats(body))]
        values = floats(*(one / weight for one in total))
    right = examples = 0
    for client in who:
        header, _ = agent.ask("evaluate", values, client=client)
        right += header["metrics"]["accuracy"] * header["examples"]
        examples += header["examples"]
    assert agent.end()[0] == 0
    return right / examples


@pytest.mark.parametrize(
    "name, needs", [("heart_numpy", "numpy"), ("heart_sklearn", "sklearn"), ("heart_lightning", "pytorch_lightning")]
)
def test_four_hospitals_train_together(name: str, needs: str, tmp_path: Path) -> None:
    pytest.importorskip(needs)
    rounds = 5 if name == "heart_lightning" else 20
    assert accuracy(name, HEART, tmp_path, clients=4, rounds=rounds) > 0.76


def test_ten_clients_learn_digits(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    data = os.path.join(os.environ.get("CONSORTIA_DATA", ""), "mnist")
    if not os.path.isdir(data):
        pytest.skip("CONSORTIA_DATA names no folder with the files of MNIST in its folder mnist")
    # A hundredth of the images each, so that the test takes seconds.
    assert accuracy("mnist_torch", data, tmp_path, clients=10, rounds=3, of=100) > 0.5


@pytest.mark.parametrize(
    "name, needs", [("heart_numpy", "numpy"), ("heart_sklearn", "sklearn"), ("heart_lightning", "pytorch_lightning")]
)
def test_the_plain_script_trains_alone(name: str, needs: str, tmp_path: Path) -> None:
    pytest.importorskip(needs)
    command = [sys.executable, str(EXAMPLES / f"{name}_plain.py"), HEART]
    done = subprocess.run(command, env=environment(tmp_path), capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_the_code_of_the_page_is_python_and_names_what_is_there() -> None:
    import consortia

    text = PAGE.read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(blocks) >= 5
    for block in blocks:
        compile(block, "docs/python.md", "exec")
    for name in set(re.findall(r"\bconsortia\.(\w+)", text)) - {"0"}:
        assert hasattr(consortia, name), name
    task = set(re.findall(r"\btask\.(\w+)", text))
    assert task <= {"kind", "epochs", "seed", "config", "client", "done", "learning_rate_scale", "proximal_mu", "round", "stopped"}, (
        task
    )


def test_the_plans_of_the_page_are_toml() -> None:
    tomllib = pytest.importorskip("tomllib")
    blocks = re.findall(r"```toml\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 3
    for block in blocks:
        tomllib.loads(block)
