"""The connection to the agent: frames, the greeting, and a thread that says that this process is alive.

It knows nothing of models and tasks. docs/learner.md describes the channel byte by byte.
"""

from __future__ import annotations

import ipaddress
import json
import os
import select
import socket
import stat
import struct
import sys
import threading
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

from ._errors import Error, NotLaunched, ProtocolError, Refused

VARIABLE = "CONSORTIA_LEARNER"
VERSION = 1
HEADER_MAX = 1 << 20
DETAILS_MAX = 64 << 10
NUMBER_MAX = 1 << 53
# More buffers than this in one sendmsg are an error of the system (IOV_MAX).
BUFFERS_MAX = 512
# The longest path of a Unix socket, without its closing zero (sun_path).
SOCKET_PATH_MAX = 107

_PREFIX = struct.Struct("<IQ")

Header = Dict[str, Any]


class Closed(Exception):
    """The other end closed the connection between two frames."""


class Channel:
    """Frames over a connected stream socket.

    Sending is safe from several threads; receiving is for one. A fork closes the socket in the child, so that it belongs to one process.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._lock = threading.Lock()
        self._owner = os.getpid()
        self._silence: Optional[threading.Event] = None
        self.body_max = 0
        self.alive_seconds = 0.0
        self.closed = False
        self.on_beat: Callable[[], None] = lambda: None
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._after_fork)

    def _after_fork(self) -> None:
        # A child that holds the socket would keep the agent from seeing that its parent has ended.
        self._lock = threading.Lock()
        if not self.closed:
            self.closed = True
            self._socket.close()

    @property
    def is_owner(self) -> bool:
        """Whether this process made the connection; a forked worker did not."""
        return os.getpid() == self._owner

    def send(self, header: Header, body: Sequence[memoryview] = ()) -> None:
        """Send one frame.

        `body` holds buffers of bytes, sent one after another without being joined.

        Raises `OSError` when the connection has ended and `ProtocolError` when the header is longer than the channel allows.
        """
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()
        if len(text) > HEADER_MAX:
            raise ProtocolError(
                f"the header of `{header['type']}` has {len(text)} bytes and {HEADER_MAX} are allowed; "
                "use fewer tensors or shorter names"
            )
        buffers = [memoryview(_PREFIX.pack(len(text), sum(len(part) for part in body)) + text)]
        buffers += [part for part in body if len(part)]
        with self._lock:
            if self.closed:
                raise BrokenPipeError("the connection is closed")
            _send_all(self._socket, buffers)

    def receive_header(self) -> Tuple[Header, int]:
        """Wait for a frame and return its header and the length of its body, which must be read or skipped next.

        Raises `Closed` when the connection ends before a frame, `ProtocolError` when it ends within one or breaks a rule.
        """
        prefix = bytearray(_PREFIX.size)
        self._fill(memoryview(prefix), at_start=True)
        length, body = _PREFIX.unpack(prefix)
        if not 2 <= length <= HEADER_MAX:
            raise self._broken(f"a header of {length} bytes; 2 to {HEADER_MAX} are allowed")
        text = bytearray(length)
        self._fill(memoryview(text))
        try:
            header = json.loads(text.decode())
        except (UnicodeDecodeError, ValueError, RecursionError) as error:
            raise self._broken(f"a header that is not JSON in UTF-8 ({error})") from None
        if not isinstance(header, dict) or not isinstance(header.get("type"), str):
            raise self._broken("a header that is not an object with a `type`")
        if self.body_max and body > self.body_max:
            raise self._broken(f"a body of {body} bytes; {self.body_max} are allowed")
        return header, body

    def receive_body(self, into: memoryview) -> None:
        """Fill a buffer with the body of the frame whose header was read last."""
        self._fill(into)

    def skip_body(self, length: int) -> None:
        """Read a body and drop it."""
        scratch = memoryview(bytearray(min(length, 1 << 16)))
        while length:
            part = scratch[: min(length, len(scratch))]
            self._fill(part)
            length -= len(part)

    def has_input(self, seconds: float = 0) -> bool:
        """Whether something can be received, after waiting for it at most so long; the end of the connection counts."""
        if self.closed:
            return True
        # Not `select`, which knows no descriptors from 1024 on.
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        return bool(poll.poll(int(seconds * 1000)))

    def close(self) -> None:
        """Close the connection; a second time does nothing."""
        if self._silence is not None:
            self._silence.set()
        # Whoever sends holds the lock: closed under it, a descriptor is never used again by mistake.
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        with self._lock:
            if not self.closed:
                self.closed = True
                self._socket.close()

    def greet(self, software: str, token: Optional[str]) -> None:
        """Exchange `hello` and `welcome`, and start the thread that says that this process is alive."""
        hello: Header = {"type": "hello", "versions": [VERSION], "software": software[:200]}
        if token is not None:
            hello["token"] = token
        try:
            self.send(hello)
            welcome, body = self.receive_header()
        except (Closed, OSError):
            raise Refused(
                "the agent closed the connection without a greeting; "
                "its log says why (a token is good for one connection)"
            ) from None
        if welcome["type"] == "refused":
            self.close()
            raise Refused(f"the agent refused this learner: {welcome.get('reason')}")
        if welcome["type"] != "welcome" or welcome.get("version") != VERSION or body:
            raise self._broken(f"{json.dumps(welcome)[:200]} instead of a welcome of version {VERSION}")
        alive = welcome.get("alive_seconds")
        body_max = welcome.get("body_max")
        if isinstance(alive, bool) or not isinstance(alive, (int, float)) or not 0 < alive < NUMBER_MAX:
            raise self._broken(f"`alive_seconds` = {alive!r}; a number above 0 is allowed")
        if isinstance(body_max, bool) or not isinstance(body_max, int) or not 0 < body_max < NUMBER_MAX:
            raise self._broken(f"`body_max` = {body_max!r}; a whole number above 0 is allowed")
        self.alive_seconds, self.body_max = float(alive), body_max
        self._silence = threading.Event()
        threading.Thread(target=self._beat, name="consortia-alive", daemon=True).start()

    def _beat(self) -> None:
        """Send `alive` twice as often as asked, so that one late moment is not silence."""
        silence = self._silence
        assert silence is not None
        while not silence.wait(min(self.alive_seconds / 2, 3600.0)):
            try:
                self.on_beat()
                self.send({"type": "alive"})
            except OSError:
                return

    def _fill(self, into: memoryview, at_start: bool = False) -> None:
        done = 0
        while done < len(into):
            try:
                count = self._socket.recv_into(into[done:], 0, socket.MSG_WAITALL)
            except InterruptedError:
                continue
            except OSError:
                count = 0
            if count == 0:
                if at_start and done == 0:
                    raise Closed
                raise self._broken("the end of the connection within a frame")
            done += count

    def _broken(self, what: str) -> ProtocolError:
        """Close the connection, whose frames can no longer be told apart, and say why."""
        self.close()
        return ProtocolError(
            f"the agent sent {what}; the connection is closed. Do agent and package have the same version?"
        )


def _send_all(connection: socket.socket, buffers: List[memoryview]) -> None:
    waiting = buffers[::-1]
    while waiting:
        batch = waiting[: -BUFFERS_MAX - 1 : -1]
        sent = connection.sendmsg(batch)
        while sent:
            if sent < len(waiting[-1]):
                waiting[-1] = waiting[-1][sent:]
                break
            sent -= len(waiting.pop())


def connect(software: str) -> Channel:
    """Connect to the agent that `CONSORTIA_LEARNER` names, and greet it.

    Raises `NotLaunched` where the variable is absent, `Refused` where the agent refuses, and `Error` where it is not reached.
    """
    where = os.environ.get(VARIABLE, "")
    if not where:
        script = os.path.basename(sys.argv[0]) if sys.argv and sys.argv[0] else "train.py"
        raise NotLaunched(
            f"this script is a learner and waits for tasks, but {VARIABLE} is not set: nobody started it as one. "
            f'Simulate with `consortia.simulate("federation.toml", learner="{script}")` or with '
            f'`command = ["python", "{script}"]` under [simulation.learner] of the plan and `consortia simulate federation.toml`; '
            f'at a site write `command = ["python", "{script}"]` under [learner] of site.toml and start `consortia site run`'
        )
    token = None
    if where.startswith("fd:"):
        connection = _inherited(where)
    else:
        address, token = _read_address(where)
        connection = _attach(address, where)
    channel = Channel(connection)
    channel.greet(software, token)
    return channel


def _inherited(where: str) -> socket.socket:
    try:
        number = int(where[3:])
        if not stat.S_ISSOCK(os.fstat(number).st_mode):
            raise ValueError
        # A duplicate, which programs that this one starts do not inherit: they must not hold the connection open.
        connection = socket.socket(fileno=os.dup(number))
        # The agent may hand the connection over as standard input, whose place must not stay empty: the next file would get it.
        if number <= 2:
            nothing = os.open(os.devnull, os.O_RDWR)
            os.dup2(nothing, number)
            os.close(nothing)
        else:
            os.close(number)
        return connection
    except (ValueError, OSError):
        raise Error(
            f"{VARIABLE} is `{where}`, which is not an open socket in this process. A launcher between agent and script, "
            "such as torchrun, closes inherited descriptors: let the site attach instead (`attach = true` under [learner] of site.toml). "
            "Only one process can be the learner"
        ) from None


def _read_address(path: str) -> Tuple[str, str]:
    try:
        with open(path, encoding="utf-8") as file:
            found = json.load(file)
        address, token = found["address"], found["token"]
    except OSError as error:
        raise Error(
            f"{VARIABLE} names `{path}`, which cannot be read ({error.strerror}); "
            "start the site first, with `attach = true` under [learner] of site.toml"
        ) from None
    except (ValueError, KeyError, TypeError):
        address = token = None
    if not isinstance(address, str) or not isinstance(token, str):
        raise Error(
            f'`{path}` does not hold {{"address": "...", "token": "..."}}; {VARIABLE} must name the file that the site wrote'
        )
    return address, token


def _attach(address: str, path: str) -> socket.socket:
    kind, _, rest = address.partition(":")
    try:
        if kind == "unix" and rest:
            return _connect_unix(rest)
        host, _, port = rest.rpartition(":")
        host = host.strip("[]")
        if kind == "tcp" and port.isdigit() and _is_loopback(host):
            connection = socket.create_connection((host, int(port)))
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return connection
    except OSError as error:
        raise Error(
            f"the agent cannot be reached at {address} ({error.strerror or error}); is the site running, and does it still await a learner? "
            f"It writes a new `{path}` after each connection"
        ) from None
    raise Error(f"`{path}` names the address `{address}`; it must be unix:PATH or tcp:HOST:PORT on loopback")


def _connect_unix(path: str) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    folder = -1
    try:
        if len(os.fsencode(path)) > SOCKET_PATH_MAX:
            # The system's limit is on the text that is handed over, not on the path behind it.
            folder = os.open(os.path.dirname(path) or ".", os.O_RDONLY)
            path = f"/proc/self/fd/{folder}/{os.path.basename(path)}"
        connection.connect(path)
    except BaseException:
        connection.close()
        raise
    finally:
        if folder >= 0:
            os.close(folder)
    return connection


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
