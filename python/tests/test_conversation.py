"""The channel, byte by byte, and what becomes of tasks."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from agent import PACKAGE, WELCOME, Agent, floats, frame, unfloats

ECHO = """
    import consortia
    model = {"w": [0.5, 0.25]}
    for task in consortia.tasks(model):
        if task.kind == "train":
            model["w"] = [value + task.round for value in model["w"]]
            task.done(examples=303, loss=0.69)
        else:
            task.done(examples=7, loss=0.5, accuracy=0.75)
"""
W = [{"name": "w", "shape": [2]}]


def test_a_conversation_has_the_bytes_of_the_page(tmp_path: Path) -> None:
    agent = Agent.launch(ECHO, tmp_path)
    agent.greet()
    agent.prepare(W, config={"width": 2})
    header, body = agent.ask("train", floats(1, 2))
    assert header == {"type": "result", "id": 2, "examples": 303, "metrics": {"loss": 0.69}}
    assert unfloats(body) == [2, 3]
    assert agent.end()[0] == 0
    version = json.loads(agent.received[12 : 12 + agent.received[0]])["software"]
    assert agent.received == (
        frame({"type": "hello", "versions": [1], "software": version})
        + frame({"type": "result", "id": 1, "tensors": [{"name": "w", "shape": [2], "personal": False}]})
        + frame({"type": "accepted", "id": 2})
        + frame({"type": "result", "id": 2, "examples": 303, "metrics": {"loss": 0.69}}, floats(2, 3))
    )


def test_the_frame_of_the_page_has_the_bytes_of_the_page(tmp_path: Path) -> None:
    agent = Agent.launch("import consortia\nfor task in consortia.tasks({'w': [1.0]}): pass", tmp_path)
    agent.greet(alive_seconds=0.05)
    while agent.exactly(1) != b"\x10":
        pass
    golden = bytes.fromhex("1000000000000000000000007b2274797065223a22616c697665227d")
    assert b"\x10" + agent.exactly(len(golden) - 1) == golden
    agent.end()


def test_values_of_an_evaluation_are_not_sent_back(tmp_path: Path) -> None:
    agent = Agent.launch(ECHO, tmp_path)
    agent.greet()
    agent.prepare(W)
    header, body = agent.ask("evaluate", floats(1, 2))
    assert header == {"type": "result", "id": 2, "examples": 7, "metrics": {"loss": 0.5, "accuracy": 0.75}}
    assert body == b""
    agent.end()


def test_an_evaluation_may_have_no_records(tmp_path: Path) -> None:
    script = """
        import consortia
        for task in consortia.tasks({"w": [0.0]}):
            task.done(examples=0, loss=0)
    """
    agent = Agent.launch(script, tmp_path)
    agent.greet()
    agent.prepare([{"name": "w", "shape": [1]}])
    assert agent.ask("evaluate", floats(0))[0] == {"type": "result", "id": 2, "examples": 0, "metrics": {"loss": 0.0}}
    agent.end()


def test_a_task_says_everything_that_the_agent_said(tmp_path: Path) -> None:
    script = """
        import consortia
        for task in consortia.tasks({"w": [0.0]}):
            print(task.kind, task.round, task.seed, task.epochs, task.batch_size, task.learning_rate_scale, task.client, task.config, task.metrics)
            task.done(examples=1, loss=0, auc=1)
    """
    agent = Agent.launch(script, tmp_path)
    agent.greet()
    agent.prepare([{"name": "w", "shape": [1]}], config={"rate": 0.5}, metrics=["auc"])
    client = {"name": "c3", "index": 3, "clients": 5}
    agent.ask(
        "train", floats(0), round=9, seed=2**53 - 1, epochs=2, batch_size=0, learning_rate_scale=0.5, client=client
    )
    agent.ask("evaluate", floats(0), client=client)
    code, out, _ = agent.end()
    who = "Client(name='c3', index=3, clients=5)"
    assert out.splitlines() == [
        f"train 9 9007199254740991 2 0 0.5 {who} {{'rate': 0.5}} ('auc',)",
        f"evaluate 0 0 0 0 1.0 {who} {{'rate': 0.5}} ('auc',)",
    ]
    assert code == 0


def test_fedprox_needs_its_term(tmp_path: Path) -> None:
    script = """
        import consortia
        for task in consortia.tasks({"w": [0.0]}):
            try:
                task.done(examples=1, loss=0)
            except consortia.TaskError as error:
                print(error)
                task.done(examples=1, loss=task.proximal_mu)
    """
    agent = Agent.launch(script, tmp_path)
    agent.greet()
    agent.prepare([{"name": "w", "shape": [1]}])
    plain, _ = agent.ask("train", floats(0))
    assert plain == {"type": "result", "id": 2, "examples": 1, "metrics": {"loss": 0.0}}
    told, _ = agent.ask("train", floats(0), proximal_mu=0.25)
    assert told == {"type": "result", "id": 3, "examples": 1, "metrics": {"loss": 0.25}, "proximal_mu": 0.25}
    _, out, _ = agent.end()
    assert "strategy is fedprox" in out and "mu is 0.25" in out


def test_a_second_run_brings_another_config(tmp_path: Path) -> None:
    script = """
        import consortia
        for task in consortia.tasks({"w": [0.0]}):
            print(task.config)
            task.done(examples=1, loss=0)
    """
    agent = Agent.launch(script, tmp_path)
    agent.greet()
    for run in ("01", "02"):
        agent.prepare([{"name": "w", "shape": [1]}], config={"of": run})
        agent.ask("evaluate", floats(0))
    assert agent.end()[1].splitlines() == ["{'of': '01'}", "{'of': '02'}"]


def test_an_exception_under_with_declines_its_task_and_the_loop_goes_on(tmp_path: Path) -> None:
    script = """
        import consortia
        for task in consortia.tasks({"w": [0.0]}):
            with task:
                if task.round == 1:
                    raise RuntimeError("no such patient:\\nsecond line")
                task.done(examples=1, loss=0)
    """
    agent = Agent.launch(script, tmp_path)
    agent.greet()
    agent.prepare([{"name": "w", "shape": [1]}])
    header, _ = agent.ask("train", floats(0))
    assert header["type"] == "failed" and header["error"] == "RuntimeError: no such patient: second line"
    assert "script.py" in header["details"] and "Traceback" in header["details"]
    assert agent.ask("train", floats(0), round=2)[0]["type"] == "result"
    code, _, err = agent.end()
    assert code == 0 and "no such patient" in err


def test_an_exception_that_nothing_catches_declines_its_task_and_ends_the_script(tmp_path: Path) -> None:
    script = """
        import consortia
        for task in consortia.tasks({"w": [0.0]}):
            raise RuntimeError("no such patient")
    """
    agent = Agent.launch(script, tmp_path)
    agent.greet()
    agent.prepare([{"name": "w", "shape": [1]}])
    header, _ = agent.ask("train", floats(0))
    assert header["type"] == "failed" and header["error"] == "RuntimeError: no such patient"
    assert "script.py" in header["details"]
    code, _, err = agent.wait()
    assert code == 1 and err.count("Traceback") == 1


def test_a_long_traceback_keeps_its_end(tmp_path: Path) -> None:
    script = """
        import consortia
        for task in consortia.tasks({"w": [0.0]}):
            with task:
                raise RuntimeError("x" * 100000 + "the end")
    """
    agent = Agent.launch(script, tmp_path)
    agent.greet()
    agent.prepare([{"name": "w", "shape": [1]}])
    header, _ = agent.ask("train", floats(0))
    assert len(header["details"].encode()) <= 64 << 10 and header["details"].rstrip().endswith("the end")
    assert len(header["error"]) <= 1000
    agent.end()


@pytest.mark.parametrize(
    "leave, said",
    [
        ("continue", "went on without `task.done("),
        ("import sys; sys.exit(3)", "ended without `task.done(...)`"),
        ("break", "ended without `task.done(...)`"),
    ],
)
def test_a_task_that_is_left_without_an_answer_is_said(tmp_path: Path, leave: str, said: str) -> None:
    script = f"""
        import consortia
        for task in consortia.tasks({{"w": [0.0]}}):
            {leave}
    """
    agent = Agent.launch(script, tmp_path)
    agent.greet()
    agent.prepare([{"name": "w", "shape": [1]}])
    header, _ = agent.ask("train", floats(0))
    assert header["type"] == "failed" and said in header["error"]
    agent.end()


def test_a_loop_that_was_left_does_not_keep_its_task_open_while_the_script_works_on(tmp_path: Path) -> None:
    script = """
        import consortia, time
        for task in consortia.tasks({"w": [0.0]}):
            break
        time.sleep(60)
    """
    agent = Agent.launch(script, tmp_path)
    agent.greet(alive_seconds=0.1)
    agent.prepare([{"name": "w", "shape": [1]}])
    header, _ = agent.ask("train", floats(0))
    assert header["type"] == "failed" and "left its loop" in header["error"]
    assert agent.process is not None
    agent.process.kill()
    agent.wait()


@pytest.mark.parametrize(
    "call, error",
    [
        ("task.done(examples=1, loss=float('nan'))", "the metric `loss` is nan"),
        ("task.done(examples=1, loss=0.1, auc=float('inf'))", "the metric `auc` is inf"),
        (
            "model['w'] = [1.0, float('-inf')]; task.done(examples=1, loss=0.1)",
            "tensor `w` has 1 of 2 values that are not finite in f32 (element 1 is -inf",
        ),
        ("model['w'] = [1.0]; task.done(examples=1, loss=0.1)", "tensor `w` has the shape [1] and had [2]"),
        ("del model['w']; task.done(examples=1, loss=0.1)", "tensor `w` is no longer in the model"),
        ("task.decline('no records of today')", "no records of today"),
    ],
)
def test_what_must_not_leave_declines_the_task_by_name_and_the_loop_goes_on(
    tmp_path: Path, call: str, error: str
) -> None:
    script = f"""
        import consortia
        model = {{"w": [0.0, 0.0]}}
        for task in consortia.tasks(model):
            if task.round == 1:
                {call}
            else:
                model["w"] = [1.0, 2.0]
                task.done(examples=1, loss=0.5)
    """
    agent = Agent.launch(script, tmp_path)
    agent.greet()
    agent.prepare(W, metrics=["auc"])
    header, body = agent.ask("train", floats(1, 2))
    assert header["type"] == "failed" and error in header["error"], header
    assert body == b""
    if "del" not in call:
        assert agent.ask("train", floats(1, 2), round=2)[0]["type"] == "result"
    assert error in agent.end()[2]


@pytest.mark.parametrize(
    "call, error",
    [
        ("task.done(examples=0, loss=1)", "at least 1 here"),
        ("task.done(examples=1.5, loss=1)", "whole number"),
        ("task.done(examples=True, loss=1)", "at least 1 here"),
        ("task.done(examples=1, loss='low')", "the metric `loss` is str and not a number"),
        ("task.done(examples=1, loss=1, accuracy=97)", "a share from 0 to 1"),
        ("task.done(examples=1, loss=1, auc=1)", "does not declare the metric `auc`"),
        ("task.done(examples=1)", "loss"),
        ("task.done(examples=1, loss=1); task.done(examples=1, loss=1)", "has been answered"),
        ("next(iter(consortia.tasks({'v': [1.0]})))", "loops over its tasks already"),
    ],
)
def test_a_wrong_answer_is_an_error_that_says_what_to_do(tmp_path: Path, call: str, error: str) -> None:
    script = f"""
        import consortia
        for task in consortia.tasks({{"w": [0.0, 0.0]}}):
            try:
                {call}
            except (consortia.TaskError, TypeError) as problem:
                print(problem)
            if task._open:
                task.done(examples=1, loss=1)
    """
    agent = Agent.launch(script, tmp_path)
    agent.greet()
    agent.prepare(W)
    assert agent.ask("train", floats(0, 0))[0]["type"] == "result"
    assert error in agent.end()[1]


def test_a_rejected_result_is_told_in_the_log(tmp_path: Path) -> None:
    agent = Agent.launch(ECHO, tmp_path)
    agent.greet()
    agent.prepare(W)
    agent.request("train", floats(1, 2))
    agent.receive()
    agent.send({"type": "rejected", "id": 2, "reason": "values that are not finite"})
    code, _, err = agent.end()
    assert code == 0 and "did not take the answer to request 2: values that are not finite" in err


def test_a_stop_is_seen_and_its_result_may_be_left_out(tmp_path: Path) -> None:
    script = """
        import consortia, time
        for task in consortia.tasks({"w": [0.0]}):
            print("working", flush=True)
            while task.round == 1 and not task.stopped():
                time.sleep(0.01)
            if task.round > 1:
                task.done(examples=1, loss=task.stopped())
    """
    agent = Agent.launch(script, tmp_path)
    agent.greet()
    agent.prepare([{"name": "w", "shape": [1]}])
    agent.request("train", floats(0))
    time.sleep(0.2)
    agent.send({"type": "stop", "id": 1})
    agent.send({"type": "later", "id": 2, "reason": "an unknown type"}, b"with a body")
    agent.send({"type": "stop", "id": 2})
    header, _ = agent.receive()
    assert header["type"] == "failed" and header["id"] == 2
    header, _ = agent.ask("train", floats(0), round=2)
    assert header["metrics"] == {"loss": 0.0}
    code, _, err = agent.end()
    assert code == 0 and err == ""


def test_a_result_after_a_stop_is_an_answer(tmp_path: Path) -> None:
    script = """
        import consortia, time
        for task in consortia.tasks({"w": [0.0]}):
            while not task.stopped():
                time.sleep(0.01)
            task.done(examples=1, loss=1)
    """
    agent = Agent.launch(script, tmp_path)
    agent.greet()
    agent.prepare([{"name": "w", "shape": [1]}])
    agent.request("train", floats(0))
    agent.send({"type": "stop", "id": 2})
    assert agent.receive()[0]["type"] in ("failed", "result")
    assert agent.end()[0] == 0


@pytest.mark.parametrize("how", ["end", "close"])
def test_an_agent_that_goes_during_a_task_stops_it(tmp_path: Path, how: str) -> None:
    script = """
        import consortia, time
        for task in consortia.tasks({"w": [0.0]}):
            while not task.stopped():
                time.sleep(0.01)
            task.done(examples=1, loss=1)
        print("left")
    """
    agent = Agent.launch(script, tmp_path)
    agent.greet(alive_seconds=0.05)
    agent.prepare([{"name": "w", "shape": [1]}])
    agent.request("train", floats(0))
    time.sleep(0.2)
    if how == "close":
        agent.connection.close()
    else:
        agent.send({"type": "end"})
    code, out, _ = agent.wait()
    assert code == 0 and out == "left\n"


def test_an_agent_that_goes_between_tasks_ends_the_loop(tmp_path: Path) -> None:
    agent = Agent.launch(ECHO, tmp_path)
    agent.greet()
    agent.prepare(W)
    agent.connection.shutdown(socket.SHUT_RDWR)
    code, _, err = agent.wait()
    assert code == 0 and "without `end`" in err


def test_a_learner_is_heard_while_it_works_and_while_it_waits(tmp_path: Path) -> None:
    script = """
        import consortia, time
        for task in consortia.tasks({"w": [0.0]}):
            time.sleep(0.5)
            task.done(examples=1, loss=1)
    """
    agent = Agent.launch(script, tmp_path)
    agent.greet(alive_seconds=0.1)
    time.sleep(0.4)
    agent.prepare([{"name": "w", "shape": [1]}])
    waiting = agent.alive
    agent.ask("train", floats(0))
    assert waiting >= 3 and agent.alive >= waiting + 4
    agent.end()


def test_personal_tensors_are_marked_and_their_first_values_told(tmp_path: Path) -> None:
    script = """
        import consortia
        model = {"body.w": [1.0, 2.0], "head.w": [3.0], "head.n": 7, "scale": 4.0}
        for task in consortia.tasks(model, personal=["head"]):
            print(model)
            model["head.w"][0] += 1
            model["head.n"] += 1
            task.done(examples=1, loss=1)
    """
    agent = Agent.launch(script, tmp_path)
    agent.greet()
    layout = agent.prepare([{"name": "scale", "shape": []}, {"name": "body.w", "shape": [2]}])
    assert layout == [
        {"name": "body.w", "shape": [2], "personal": False},
        {"name": "head.w", "shape": [1], "personal": True},
        {"name": "scale", "shape": [], "personal": False},
    ]
    for _ in range(2):
        assert unfloats(agent.ask("initialise")[1]) == [3]
        assert unfloats(agent.ask("train", floats(10, 20, 30, 40))[1]) == [10, 20, 31, 40]
    line = "{'body.w': [10.0, 20.0], 'head.w': [30.0], 'head.n': 7, 'scale': 40.0}"
    assert agent.end()[1].splitlines() == [line, line]


def test_a_script_may_choose_the_first_values_of_each_client(tmp_path: Path) -> None:
    script = """
        import consortia
        model = {"body": [1.0], "head": [3.0]}
        def initialise(client, seed):
            if client.index == 1:
                raise RuntimeError("unknown client")
            model["head"][0] = float(seed)
        for task in consortia.tasks(model, personal="head", initialise=initialise):
            pass
    """
    agent = Agent.launch(script, tmp_path)
    agent.greet()
    agent.prepare([{"name": "body", "shape": [1]}])
    assert unfloats(agent.ask("initialise", seed=9)[1]) == [9]
    header, _ = agent.ask("initialise", client={"name": "b", "index": 1, "clients": 2})
    assert header["type"] == "failed" and "unknown client" in header["error"]
    agent.end()


def test_another_layout_is_answered_with_ones_own_and_explained(tmp_path: Path) -> None:
    agent = Agent.launch(ECHO, tmp_path)
    agent.greet()
    layout = agent.prepare([{"name": "w", "shape": [3]}, {"name": "v", "shape": []}])
    assert [one["name"] for one in layout] == ["w"]
    _, _, err = agent.end()
    assert "`w` is [2] here and [3] in the plan; `v` [] is in the plan alone" in err


def test_without_an_agent_the_error_says_how_to_start(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text("import consortia\nconsortia.tasks({'w': [1.0]})\n")
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": PACKAGE}
    done = subprocess.run([sys.executable, str(script)], env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    assert (
        'learner="train.py"' in done.stderr
        and "[simulation.learner]" in done.stderr
        and "consortia site run" in done.stderr
    )


@pytest.mark.parametrize(
    "where, said",
    [
        ("fd:x", "not an open socket"),
        ("fd:987", "attach = true"),
        ("/no/such/file", "start the site first"),
        ("fd:0", "not an open socket"),
    ],
)
def test_an_agent_that_is_not_there_is_said(tmp_path: Path, where: str, said: str) -> None:
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": PACKAGE, "CONSORTIA_LEARNER": where}
    done = subprocess.run(
        [sys.executable, "-c", "import consortia; consortia.tasks({'w': [1.0]})"],
        env=environment,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 1 and said in done.stderr


def attached(tmp_path: Path, listener: socket.socket, address: str, script: str = ECHO) -> Agent:
    file = tmp_path / "learner.json"
    file.write_text(json.dumps({"address": address, "token": "s3cret"}))
    path = tmp_path / "script.py"
    path.write_text(__import__("textwrap").dedent(script))
    process = subprocess.Popen(
        [sys.executable, str(path)],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": PACKAGE, "CONSORTIA_LEARNER": str(file)},
        stdout=open(tmp_path / "stdout", "w+"),
        stderr=open(tmp_path / "stderr", "w+"),
        text=True,
    )
    listener.settimeout(30)
    connection, _ = listener.accept()
    listener.close()
    agent = Agent(connection)
    agent.process, agent.folder = process, tmp_path
    return agent


@pytest.mark.parametrize("kind", ["tcp", "unix", "a long path"])
def test_a_learner_attaches_with_its_token(tmp_path: Path, kind: str) -> None:
    if kind == "tcp":
        listener = socket.create_server(("127.0.0.1", 0))
        address = f"tcp:127.0.0.1:{listener.getsockname()[1]}"
    else:
        folder = tmp_path / ("x" * 100 if kind == "a long path" else "x")
        folder.mkdir()
        listener = socket.socket(socket.AF_UNIX)
        before = os.getcwd()
        os.chdir(folder)
        listener.bind("learner.sock")
        os.chdir(before)
        listener.listen()
        address = f"unix:{folder}/learner.sock"
    agent = attached(tmp_path, listener, address)
    assert agent.greet()["token"] == "s3cret"
    agent.prepare(W)
    assert unfloats(agent.ask("train", floats(1, 2))[1]) == [2, 3]
    assert agent.end()[0] == 0


def test_a_refusal_is_told_with_its_reason(tmp_path: Path) -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    agent = attached(tmp_path, listener, f"tcp:127.0.0.1:{listener.getsockname()[1]}")
    agent.receive()
    agent.send({"type": "refused", "reason": "this token was used"})
    code, _, err = agent.wait()
    assert code == 1 and "Refused: the agent refused this learner: this token was used" in err


@pytest.mark.parametrize("address", ["tcp:10.0.0.1:80", "tcp:example.org:80", "http://x", "unix:"])
def test_a_token_goes_to_no_other_machine(tmp_path: Path, address: str) -> None:
    file = tmp_path / "learner.json"
    file.write_text(json.dumps({"address": address, "token": "s3cret"}))
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": PACKAGE, "CONSORTIA_LEARNER": str(file)}
    done = subprocess.run(
        [sys.executable, "-c", "import consortia; consortia.tasks({'w': [1.0]})"],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1 and "loopback" in done.stderr


@pytest.mark.parametrize("as_input", [False, True])
def test_children_hold_no_end_of_the_connection_and_cannot_answer(tmp_path: Path, as_input: bool) -> None:
    script = """
        import consortia, os, subprocess, sys
        def sockets():
            return [name for name in os.listdir("/proc/self/fd") if os.path.exists("/proc/self/fd/" + name) and os.readlink("/proc/self/fd/" + name).startswith("socket:")]
        for task in consortia.tasks({"w": [0.0]}):
            assert len(sockets()) == 1 and sys.stdin.read() == ""
            child = os.fork()
            if child == 0:
                if sockets():
                    os._exit(1)
                try:
                    task.done(examples=1, loss=1)
                except consortia.TaskError as error:
                    os._exit(0 if "main process" in str(error) else 2)
                os._exit(3)
            assert os.waitpid(child, 0)[1] == 0
            ask = "import os, sys; sys.exit(7 * (os.readlink('/proc/self/fd/0') == '/dev/null' and not any(os.readlink('/proc/self/fd/%d' % at).startswith('socket') for at in (0, 1, 2))))"
            assert subprocess.run([sys.executable, "-c", ask]).returncode == 7
            assert subprocess.run(["ls", "-l", "/proc/self/fd"], close_fds=False, stdout=subprocess.PIPE).stdout.count(b"socket:") == 0
            task.done(examples=1, loss=1)
    """
    agent = Agent.launch(script, tmp_path, as_input)
    agent.greet(alive_seconds=0.05)
    agent.prepare([{"name": "w", "shape": [1]}])
    assert agent.ask("train", floats(0))[0]["type"] == "result"
    assert agent.end()[0] == 0


def test_what_a_script_prints_is_no_part_of_the_channel(tmp_path: Path) -> None:
    agent = Agent.launch('print(\'{"type":"alive"}\' * 1000)\n' + __import__("textwrap").dedent(ECHO), tmp_path)
    agent.greet()
    agent.prepare(W)
    assert agent.ask("train", floats(1, 2))[0]["type"] == "result"
    assert len(agent.end()[1]) > 10000


# -- hostile agents -------------------------------------------------------------------------------------------------------------------

HUGE = (1 << 32) - 1
TRAIN = {
    "type": "train",
    "id": 2,
    "round": 1,
    "client": {"name": "n", "index": 0, "clients": 1},
    "seed": 1,
    "epochs": 1,
    "batch_size": 1,
    "learning_rate_scale": 1,
}


@pytest.mark.parametrize(
    "sent, said",
    [
        (b"\x00" * 12, "a header of 0 bytes"),
        (b"\x01" + b"\x00" * 11 + b"{", "a header of 1 bytes"),
        (HUGE.to_bytes(4, "little") + b"\x00" * 8, f"a header of {HUGE} bytes"),
        (b"\x02\x00\x00\x00" + b"\xff" * 8 + b"{}", "header that is not an object with a `type`"),
        (
            frame({"type": "later"})[:4] + b"\xff" * 8 + frame({"type": "later"})[12:],
            "a body of 18446744073709551615 bytes",
        ),
        (b"\x05\x00\x00\x00" + b"\x00" * 8 + b"\xff\xff\xff\xff\xff", "header that is not JSON"),
        (b"\x10\x27\x00\x00" + b"\x00" * 8 + b"[" * 10000, "header that is not JSON"),
        (frame({"type": 3}), "not an object with a `type`"),
        (frame({"type": "train"})[:9], "the end of the connection within a frame"),
        (frame(TRAIN, floats(1, 2))[:-1], "the end of the connection within a frame"),
        (frame(TRAIN, floats(1)), "a body of 4 bytes; the tensors of this learner have 8"),
        (frame(TRAIN, floats(1, 2, 3)), "a body of 12 bytes"),
        (frame(TRAIN)[:4] + (1 << 32).to_bytes(8, "little") + frame(TRAIN)[12:], "a body of 4294967296 bytes"),
        (frame({**TRAIN, "id": 1}, floats(1, 2)), "ids must rise"),
        (frame({**TRAIN, "id": -3}, floats(1, 2)), "`id` = -3"),
        (frame({**TRAIN, "id": 2.5}, floats(1, 2)), "`id` = 2.5"),
        (frame({**TRAIN, "epochs": 0}, floats(1, 2)), "`epochs` = 0"),
        (frame({**TRAIN, "seed": 1 << 53}, floats(1, 2)), "`seed` = 9007199254740992"),
        (frame({**TRAIN, "learning_rate_scale": None}, floats(1, 2)), "`learning_rate_scale` = None"),
        (frame({**TRAIN, "client": {"name": "n", "index": 2, "clients": 2}}, floats(1, 2)), "client 2 of 2"),
        (frame({**TRAIN, "client": "n"}, floats(1, 2)), "a client that has a name"),
        (
            frame({"type": "prepare", "id": 2, "run": "1", "tensors": [{"shape": [1]}]}),
            "a tensor that lacks name or shape",
        ),
    ],
)
def test_an_agent_that_breaks_the_rules_is_left_with_a_reason(tmp_path: Path, sent: bytes, said: str) -> None:
    agent = Agent.launch(ECHO, tmp_path)
    agent.greet()
    agent.prepare(W)
    agent.connection.sendall(sent)
    agent.connection.shutdown(socket.SHUT_WR)
    with pytest.raises((EOFError, ConnectionError)):
        while True:
            agent.receive()
    code, _, err = agent.wait()
    assert code == 1 and "ProtocolError: the agent sent" in err and said in err, err


def test_a_task_before_prepare_is_a_broken_rule(tmp_path: Path) -> None:
    agent = Agent.launch(ECHO, tmp_path)
    agent.greet()
    agent.request("train", floats(1, 2))
    assert "`train` before `prepare`" in agent.wait()[2]


@pytest.mark.parametrize(
    "welcome, said",
    [
        ({"version": 2}, "instead of a welcome"),
        ({"alive_seconds": 0}, "`alive_seconds` = 0"),
        ({"alive_seconds": "5"}, "`alive_seconds` = '5'"),
        ({"body_max": -1}, "`body_max` = -1"),
        ({"type": "train"}, "instead of a welcome"),
    ],
)
def test_a_welcome_that_cannot_be_is_refused(tmp_path: Path, welcome: dict, said: str) -> None:  # type: ignore[type-arg]
    agent = Agent.launch(ECHO, tmp_path)
    agent.receive()
    agent.send({**WELCOME, **welcome})
    code, _, err = agent.wait()
    assert code == 1 and said in err


def test_fields_and_frames_that_are_not_known_are_ignored(tmp_path: Path) -> None:
    agent = Agent.launch(ECHO, tmp_path)
    agent.greet(more={"of": "this"})
    agent.send({"type": "weather", "wind": 3}, b"x" * 100_000)
    agent.prepare(W, colour="green")
    assert agent.ask("train", floats(1, 2), mood="good")[0]["type"] == "result"
    agent.end()
