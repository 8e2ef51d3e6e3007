"""An agent for tests, written from docs/learner.md alone: it uses nothing of the package."""

from __future__ import annotations

import json
import os
import socket
import struct
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

FOLDER = Path(__file__).resolve().parents[1]
# With CONSORTIA_TEST_INSTALLED, the package that is installed is tested instead of the one beside the tests.
PACKAGE = "" if os.environ.get("CONSORTIA_TEST_INSTALLED") else str(FOLDER)
WELCOME = {
    "type": "welcome",
    "version": 1,
    "software": "agent of the tests",
    "alive_seconds": 5,
    "silent_seconds": 60,
    "body_max": 1 << 33,
}


def frame(header: Dict[str, Any], body: bytes = b"") -> bytes:
    text = json.dumps(header, separators=(",", ":")).encode()
    return len(text).to_bytes(4, "little") + len(body).to_bytes(8, "little") + text + body


def floats(*values: float) -> bytes:
    return struct.pack(f"<{len(values)}f", *values)


def unfloats(body: bytes) -> List[float]:
    return list(struct.unpack(f"<{len(body) // 4}f", body))


class Agent:
    """One end of the channel, and, where it was started here, the learner at the other end."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        # Libraries take their time to be imported where the machine has other work, too.
        self.patience = 240
        connection.settimeout(self.patience)
        self.process: Optional[subprocess.Popen[str]] = None
        self.folder = Path()
        self.number = 0
        self.received = b""
        self.alive = 0

    @classmethod
    def launch(cls, script: str, tmp_path: Path, as_input: bool = False, **environment: str) -> Agent:
        """Start a script as a learner, as an agent does."""
        ours, theirs = socket.socketpair()
        path = tmp_path / "script.py"
        path.write_text(textwrap.dedent(script), encoding="utf-8")
        agent = cls(ours)
        environment = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": PACKAGE,
            **environment,
        }
        agent.process = subprocess.Popen(
            [sys.executable, str(path)],
            env={**environment, "CONSORTIA_LEARNER": f"fd:{0 if as_input else theirs.fileno()}"},
            stdin=theirs if as_input else subprocess.DEVNULL,
            pass_fds=[] if as_input else [theirs.fileno()],
            stdout=open(tmp_path / "stdout", "w+"),
            stderr=open(tmp_path / "stderr", "w+"),
            text=True,
            cwd=str(tmp_path),
        )
        theirs.close()
        agent.folder = tmp_path
        return agent

    def exactly(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            part = self.connection.recv(count - len(data))
            if not part:
                raise EOFError
            data += part
        self.received += data
        return data

    def receive(self) -> Tuple[Dict[str, Any], bytes]:
        """The next frame that is not `alive` or `accepted`."""
        # `alive` comes for ever from a learner that is stuck.
        until = time.monotonic() + self.patience
        while time.monotonic() < until:
            length, body = struct.unpack("<IQ", self.exactly(12))
            header = json.loads(self.exactly(length))
            content = self.exactly(body)
            if header["type"] == "alive":
                self.alive += 1
            elif header["type"] != "accepted":
                return header, content
        raise TimeoutError(f"no answer in {self.patience} s")

    def send(self, header: Dict[str, Any], body: bytes = b"") -> None:
        self.connection.sendall(frame(header, body))

    def greet(self, **changes: Any) -> Dict[str, Any]:
        hello, _ = self.receive()
        assert hello["type"] == "hello" and 1 in hello["versions"] and len(hello["software"]) <= 200
        self.send({**WELCOME, **changes})
        return hello

    def ask(self, kind: str, body: bytes = b"", **fields: Any) -> Tuple[Dict[str, Any], bytes]:
        self.request(kind, body, **fields)
        header, content = self.receive()
        assert header["id"] == self.number, header
        if header["type"] == "result":
            self.send({"type": "acknowledged", "id": self.number})
        return header, content

    def request(self, kind: str, body: bytes = b"", **fields: Any) -> None:
        self.number += 1
        client = {"name": "north", "index": 0, "clients": 1}
        common: Dict[str, Any] = {
            "prepare": {"config": {}, "tensors": [], "metrics": []},
            "initialise": {"client": client, "seed": 1},
            "train": {
                "round": 1,
                "client": client,
                "seed": 42,
                "epochs": 1,
                "batch_size": 32,
                "learning_rate_scale": 1.0,
            },
            "evaluate": {"client": client},
        }[kind]
        self.send({"type": kind, "id": self.number, **common, **fields}, body)

    def prepare(self, tensors: List[Dict[str, Any]], **fields: Any) -> List[Dict[str, Any]]:
        header, body = self.ask("prepare", tensors=tensors, **fields)
        assert header["type"] == "result" and body == b"", header
        found: List[Dict[str, Any]] = header["tensors"]
        return found

    def end(self) -> Tuple[int, str, str]:
        """Say `end` and wait for the learner: its exit code and what it printed."""
        try:
            self.send({"type": "end"})
        except OSError:
            pass
        return self.wait()

    def wait(self) -> Tuple[int, str, str]:
        assert self.process is not None
        try:
            self.process.wait(timeout=self.patience)
        finally:
            self.process.kill()
            self.process.wait()
            self.connection.close()
        return self.process.returncode, (self.folder / "stdout").read_text(), (self.folder / "stderr").read_text()
