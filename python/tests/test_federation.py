"""The client of the admin port, against a server that answers as the port does."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Dict, Iterator, List, Tuple

import pytest

import consortia

RUN = "00000000000000ab"


class Port(BaseHTTPRequestHandler):
    """Answers one run that makes a round with each look."""

    requests: List[Tuple[str, str, Any]] = []
    looks = 0
    ends = "finished"

    def log_message(self, *_: Any) -> None:
        pass

    def answer(self, status: int, value: Any) -> None:
        text = b"" if value is None else json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def do_GET(self) -> None:
        self.do_POST()

    def do_POST(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(length)) if length else None
        Port.requests.append((self.command, self.path, body))
        if self.headers["Authorization"] != "Bearer t0ken":
            self.answer(401, {"error": "this needs the token"})
        elif self.path == "/api/v1/runs" and self.command == "POST":
            if "rounds" not in body["plan_toml"]:
                self.answer(400, {"error": "line 1: `rounds` is missing"})
            else:
                self.answer(201, {"run": RUN})
        elif self.path.startswith(f"/api/v1/runs/{RUN}") and self.command == "GET":
            Port.looks += 1
            self.answer(200, self.whole(min(Port.looks, 2)))
        elif self.path.startswith(f"/api/v1/runs/{RUN}/"):
            self.answer(200, None)
        elif self.path == "/api/v1/runs":
            self.answer(200, [{"run": RUN}])
        elif self.path == "/api/v1/sites":
            self.answer(200, [{"site": "north", "connected": True}])
        elif self.path == "/api/v1/elsewhere":
            self.answer(302, None)
        else:
            self.answer(404, {"error": "there is no such run here"})

    def whole(self, done: int) -> Dict[str, Any]:
        measured = {"loss": 0.5, "accuracy": 0.75, "examples": 9, "seconds": 0.1}
        history = [
            {"round": number, "released": True, "cohort": 3, "answered": 2, "train": measured, "sites": measured if number == 2 else None, "central": None, "seconds": 1.0, "epsilon": None, "further_train": {}, "further_sites": {"auc": 0.9}}
            for number in range(1, done + 1)
        ]  # fmt: skip
        return {
            "run": RUN,
            "name": "heart",
            "state": Port.ends if done == 2 else "running",
            "message": "why",
            "rounds": 2,
            "rounds_done": done,
            "history": history,
        }


@pytest.fixture
def port() -> Iterator[str]:
    Port.requests, Port.looks, Port.ends = [], 0, "finished"
    server = ThreadingHTTPServer(("127.0.0.1", 0), Port)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def plan(tmp_path: Path, text: str = "rounds = 2\n") -> Path:
    path = tmp_path / "plan.toml"
    path.write_text(text)
    return path


def test_a_plan_is_submitted_and_watched(port: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    federation = consortia.Federation(port, token="t0ken")
    run = federation.submit(plan(tmp_path), seed=3)
    assert Port.requests[0] == ("POST", "/api/v1/runs", {"plan_toml": "rounds = 2\n", "seed": 3})
    assert run.watch(every=0.1)["state"] == "finished"
    told = capsys.readouterr().err.splitlines()
    assert told[0] == "round 1/2  2 of 3 answered  training loss 0.5000"
    assert told[1] == "round 2/2  2 of 3 answered  training loss 0.5000  test loss 0.5000, accuracy 0.7500"
    assert len(told) == 2
    row = run.metrics[0]
    assert row["round"] == 1 and row["train_loss"] == 0.5 and row["sites_accuracy"] is None and row["answered"] == 2
    assert row["sites_auc"] == 0.9 and "further_sites" not in row
    run.pause()
    run.resume()
    run.stop(now=True)
    assert [path for method, path, _ in Port.requests if method == "POST"][1:] == [
        f"/api/v1/runs/{RUN}/{verb}" for verb in ("pause", "resume", "stop?now=true")
    ]
    assert federation.runs() == [{"run": RUN}] and federation.sites()[0]["site"] == "north"
    assert federation.open(RUN).id == RUN


def test_a_run_that_fails_is_an_error(port: str, tmp_path: Path) -> None:
    Port.ends = "budget_exhausted"
    with pytest.raises(consortia.RunFailed, match=r"run 00000000000000ab \(heart\) is budget_exhausted: why"):
        consortia.Federation(port, "t0ken").submit(plan(tmp_path)).watch(show=False, every=0.1)


@pytest.mark.parametrize(
    "token, text, status, said",
    [("wrong", "rounds = 2", 401, "needs the token"), ("t0ken", "name = 1", 400, "`rounds` is missing")],
)
def test_what_the_server_refuses_is_said_in_its_words(
    port: str, tmp_path: Path, token: str, text: str, status: int, said: str
) -> None:
    with pytest.raises(consortia.RequestFailed, match=said) as caught:
        consortia.Federation(port, token).submit(plan(tmp_path, text))
    assert caught.value.status == status


def test_a_token_is_not_sent_on(port: str) -> None:
    with pytest.raises(consortia.RequestFailed) as caught:
        consortia.Federation(port, "t0ken")._ask("GET", "elsewhere")
    assert caught.value.status == 302 and len(Port.requests) == 1


def test_a_run_that_is_not_there_is_a_404(port: str) -> None:
    with pytest.raises(consortia.RequestFailed) as caught:
        consortia.Federation(port, "t0ken").open("../status")
    assert caught.value.status == 404


def test_an_address_with_its_token_is_enough(port: str) -> None:
    assert consortia.Federation(f"{port}/#token=t0ken").runs()


@pytest.mark.parametrize(
    "text",
    [
        '[admin]\nlisten = "127.0.0.1:{}"\n',
        'listen = "0.0.0.0:1"\n[admin] # x\n# listen = "a:1"\nlisten = \'0.0.0.0:{}\'  # y\n[tls]\nlisten = "b:2"\n',
    ],
)
def test_a_folder_says_address_and_token(port: str, tmp_path: Path, text: str) -> None:
    (tmp_path / "server.toml").write_text(text.format(port.rsplit(":", 1)[1]))
    with pytest.raises(consortia.Error, match=r"admin.token cannot be read"):
        consortia.Federation(tmp_path)
    (tmp_path / "operator").mkdir()
    (tmp_path / "operator" / "admin.token").write_text("t0ken\n")
    assert consortia.Federation(tmp_path).runs()


def test_a_server_without_a_port_is_said(tmp_path: Path) -> None:
    with pytest.raises(consortia.Error, match="server.toml cannot be read"):
        consortia.Federation(tmp_path)
    (tmp_path / "server.toml").write_text('listen = "0.0.0.0:4433"\n')
    with pytest.raises(consortia.Error, match=r"no table \[admin\]"):
        consortia.Federation(tmp_path)
    with pytest.raises(consortia.Error, match="needs a token"):
        consortia.Federation("http://127.0.0.1:1")
    with pytest.raises(consortia.RequestFailed, match="is `consortia server run` at work there"):
        consortia.Federation("http://127.0.0.1:1", "t").runs()


def test_a_plan_with_a_start_file_goes_by_the_command(port: str, tmp_path: Path) -> None:
    text = 'rounds = 2\nmodel = { external = { start = "start.safetensors" } }\n'
    with pytest.raises(consortia.Error, match="make the `Federation` from the server's folder"):
        consortia.Federation(port, "t0ken").submit(plan(tmp_path, text))
