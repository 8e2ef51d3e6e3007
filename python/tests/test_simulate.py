"""Simulations from Python. A program of Python stands for the command: it reads the same options and speaks the same channel."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, Dict, List

import pytest
from agent import PACKAGE, floats, unfloats

import consortia
from consortia import _binary
from consortia._simulate import _value, toml_value

# Trains two rounds with one client by the learner that it is told, and writes what a simulation writes.
COMMAND = """#!{python}
import json, os, pathlib, socket, subprocess, sys, time
sys.path[:0] = [{tests!r}]
from agent import Agent, floats, unfloats
if sys.argv[1] == "--version":
    print("consortia 0.1.0"); sys.exit()
values = dict(word.split("=", 1) for at, word in enumerate(sys.argv) if sys.argv[at - 1] == "--set")
if "fail" in values:
    print("told before", file=sys.stderr)
    print(json.dumps({{"error": "line 3: unknown key `fail`", "exit_code": 2}})); sys.exit(2)
if "wait" in values:
    print("waiting", file=sys.stderr, flush=True)
    try:
        time.sleep(60)
    except KeyboardInterrupt:
        print("round dropped", file=sys.stderr); sys.exit(1)
out = pathlib.Path(sys.argv[sys.argv.index("--out") + 1], "2026-11-30-try-1")
out.mkdir(parents=True, exist_ok=True)
(out / "arguments.json").write_text(json.dumps(sys.argv[1:]))
w = floats(0, 0)
rounds = int(values.get("rounds", 2))
if "simulation.learner.command" in values:
    ours, theirs = socket.socketpair()
    agent = Agent(ours)
    environment = {{"PATH": os.environ["PATH"], "CONSORTIA_LEARNER": "fd:%d" % theirs.fileno()}}
    process = subprocess.Popen(json.loads(values["simulation.learner.command"]), env=environment, pass_fds=[theirs.fileno()], stdout=2)
    theirs.close()
    agent.greet()
    agent.prepare([{{"name": "w", "shape": [2]}}])
    for number in range(1, rounds + 1):
        header, w = agent.ask("train", w, round=number)
        assert header["type"] == "result", header
        print("round %d/%d" % (number, rounds), file=sys.stderr, flush=True)
    agent.send({{"type": "end"}})
    assert process.wait() == 0
text = json.dumps({{"w": {{"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}}}).encode()
(out / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + w)
(out / "report.html").write_text("<html>")
(out / "metrics.csv").write_text("round,released,cohort,train_loss,sites_loss,state\\n1,true,4,0.5,,ok\\n2,false,4,1e-3,nan,\\n")
print(json.dumps({{"results": str(out), "rounds": rounds, "model_sha256": "ab", "loss": 0.25, "accuracy": None}}))
"""
SCRIPT = """
import consortia
model = {"w": [0.0, 0.0]}
for task in consortia.tasks(model):
    model["w"] = [value + task.round for value in model["w"]]
    task.done(examples=1, loss=0)
"""


def learner() -> None:
    model = {"w": [0.0, 0.0]}
    for task in consortia.tasks(model):
        model["w"][0] += 1
        task.done(examples=1, loss=0)


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "consortia-of-the-test"
    path.write_text(COMMAND.format(python=sys.executable, tests=str(Path(__file__).parent)))
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("CONSORTIA_BINARY", str(path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.py").write_text(SCRIPT)
    if not os.environ.get("CONSORTIA_TEST_INSTALLED"):
        # A launched learner has a clean environment; a path file is what an installed package amounts to.
        (tmp_path / "train.py").write_text(f"import sys\nsys.path.insert(0, {PACKAGE!r})\n" + SCRIPT)
    return path


def arguments(result: consortia.Result) -> List[str]:
    found: List[str] = json.loads(Path(result.folder, "arguments.json").read_text())
    return found


def test_a_script_is_simulated(command: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = consortia.simulate(
        "federation.toml",
        learner="train.py",
        arguments=["/data"],
        rounds=3,
        seed=5,
        processes=2,
        settings={"training.epochs": 2},
    )
    given = arguments(result)
    assert given == [
        "simulate", "federation.toml", "--set", "training.epochs=2", "--set", "rounds=3", "--set", "simulation.learner.processes=2",
        "--set", f'simulation.learner.command=["{sys.executable}", "-u", "{tmp_path}/train.py", "/data"]', "--seed", "5", "--out", "runs", "--format", "json",
    ]  # fmt: skip
    assert "round 3/3" in capsys.readouterr().err
    assert (result.rounds, result.model_sha256, result.loss, result.accuracy) == (3, "ab", 0.25, None)
    assert os.path.isabs(result.folder) and os.path.isfile(result.report) and os.path.isfile(result.model)
    model = {"w": [0.0, 0.0]}
    result.load_into(model)
    assert model == {"w": [6, 6]}


def test_a_function_is_simulated(command: Path, tmp_path: Path) -> None:
    result = consortia.simulate("federation.toml", learner=learner, out=tmp_path / "there", show=False)
    assert result.folder.startswith(str(tmp_path / "there"))
    model = {"w": [0.0, 0.0]}
    result.load_into(model)
    assert model == {"w": [2, 0]}


def test_a_function_of_a_script_is_simulated(command: Path, tmp_path: Path) -> None:
    script = tmp_path / "whole.py"
    script.write_text(
        f"import sys\nsys.path.insert(0, {PACKAGE!r})\n"
        + "import consortia\ndef learn():\n    model = {'w': [0.0, 0.0]}\n    for task in consortia.tasks(model):\n"
        "        model['w'][1] += 2\n        task.done(examples=1, loss=0)\n"
        "if __name__ == '__main__':\n    model = {'w': [0.0, 0.0]}\n    consortia.simulate('f.toml', learn).load_into(model)\n    print(model)\n"
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True)
    assert done.stdout == "{'w': [0.0, 4.0]}\n", done.stderr


def test_a_function_within_another_needs_cloudpickle(command: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step = 3.0

    def inner() -> None:
        model = {"w": [0.0, 0.0]}
        for task in consortia.tasks(model):
            model["w"][0] += step
            task.done(examples=1, loss=0)

    with monkeypatch.context() as without:
        without.setitem(sys.modules, "cloudpickle", None)
        with pytest.raises(consortia.Error, match="move it there, or install `cloudpickle`"):
            consortia.simulate("federation.toml", learner=inner)
    pytest.importorskip("cloudpickle")
    model = {"w": [0.0, 0.0]}
    consortia.simulate("federation.toml", learner=inner, show=False).load_into(model)
    assert model == {"w": [6, 0]}


def test_without_a_learner_the_plan_decides(command: Path) -> None:
    assert not any("learner" in word for word in arguments(consortia.simulate("federation.toml", show=False)))


def test_a_failure_has_the_words_and_the_exit_code(command: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(consortia.CommandFailed, match="line 3: unknown key `fail`") as caught:
        consortia.simulate("federation.toml", settings={"fail": 1})
    assert caught.value.exit_code == 2 and "told before" in capsys.readouterr().err


def test_an_interrupt_is_handed_on(command: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt() -> None:
        time.sleep(1)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt):
        consortia.simulate("federation.toml", settings={"wait": True})
    assert "round dropped" in capsys.readouterr().err


def test_a_learner_does_not_simulate(command: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONSORTIA_LEARNER", "fd:9")
    with pytest.raises(consortia.Error, match="__main__"):
        consortia.simulate("federation.toml")


def test_a_script_that_is_not_there_is_said(command: Path) -> None:
    with pytest.raises(consortia.Error, match="there is no script"):
        consortia.simulate("federation.toml", learner="trian.py")
    with pytest.raises(consortia.Error, match="a function has none"):
        consortia.simulate("federation.toml", learner=learner, arguments=["x"])


def test_metrics_have_the_types_of_their_values(command: Path) -> None:
    result = consortia.simulate("federation.toml", show=False)
    first, second = result.metrics
    assert first == {"round": 1, "released": True, "cohort": 4, "train_loss": 0.5, "sites_loss": None, "state": "ok"}
    assert second["released"] is False and second["train_loss"] == 1e-3 and second["state"] is None
    assert _value("1") == 1 and isinstance(_value("1"), int)


def test_metrics_are_a_frame_where_pandas_is(command: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = consortia.simulate("federation.toml", show=False)
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "pandas", None)
        with pytest.raises(consortia.Error, match="`.metrics` has the same numbers"):
            result.frame()
    pytest.importorskip("pandas")
    frame = result.frame()
    assert list(frame.index) == [1, 2] and frame["train_loss"].tolist() == [0.5, 1e-3]


def test_settings_are_written_as_toml() -> None:
    value: Dict[str, Any] = {"a": [1, 0.5, True], 'b "c"': 'x\n"\\'}
    assert toml_value(value) == '{"a" = [1, 0.5, true], "b \\"c\\"" = "x\\n\\"\\\\"}'
    with pytest.raises(consortia.Error, match="no form in TOML"):
        toml_value(None)


# -- the command ----------------------------------------------------------------------------------------------------------------------


def test_the_module_is_the_command(command: Path) -> None:
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": PACKAGE, "CONSORTIA_BINARY": str(command)}
    done = subprocess.run(
        [sys.executable, "-m", "consortia", "--version"], env=environment, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, "consortia 0.1.0\n"), done.stderr


def test_a_command_that_is_not_there_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_binary, "_candidates", lambda: iter(()))
    monkeypatch.delenv("CONSORTIA_BINARY", raising=False)
    with pytest.raises(consortia.BinaryNotFound, match="Install the wheel"):
        consortia.binary()
    monkeypatch.setenv("CONSORTIA_BINARY", str(tmp_path))
    with pytest.raises(consortia.BinaryNotFound, match="is not a program"):
        consortia.binary()


def test_a_script_of_the_same_name_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CONSORTIA_BINARY", raising=False)
    for name, content in (("a", b"#!/bin/sh\n"), ("b", b"\x7fELF")):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "consortia").write_bytes(content)
        (folder / "consortia").chmod(0o755)
    monkeypatch.setattr(
        _binary, "_candidates", lambda: iter([str(tmp_path / "a" / "consortia"), str(tmp_path / "b" / "consortia")])
    )
    assert consortia.binary() == str(tmp_path / "b" / "consortia")


def test_floats_of_the_tests_are_those_of_the_channel() -> None:
    assert unfloats(floats(1, -2)) == [1, -2]
