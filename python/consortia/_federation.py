"""A federation's server over its admin port: submit plans, follow runs, look at sites."""

from __future__ import annotations

import json
import os
import re
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from typing import Any, Dict, List, Optional, Tuple, cast

from ._binary import run_json
from ._errors import Error, RequestFailed, RunFailed
from ._models import Model, Personal
from ._safetensors import Path, load_into
from ._simulate import frame_of

ENDED = ("stopped", "finished", "failed", "budget_exhausted")
_PATIENCE_SECONDS = 60.0


class Run:
    """A run of a federation. `id` is 16 hexadecimal digits, as `consortia run ls` prints it."""

    def __init__(self, federation: Federation, id: str) -> None:
        self.federation = federation
        self.id = id

    def __repr__(self) -> str:
        return f"<consortia.Run {self.id}>"

    def state(self) -> Dict[str, Any]:
        """The run as it is now: `name`, `state`, `message`, `rounds_done`, `rounds`, `model_sha256`, `history`, `sites` and more."""
        return self.federation.run(self.id)

    def watch(self, show: bool = True, every: float = 0.5) -> Dict[str, Any]:
        """Wait until the run has ended, and return its last state.

        show: whether to print a line for each round to stderr.
        every: seconds between two looks, at least 0.1.

        Raises `RunFailed` where it ended without being finished, with the server's reason. An interrupt ends the watching and not the run.
        """
        told, since = -1, 0
        while True:
            state = self.federation._ask("GET", f"runs/{self.id}?from={since}")
            for line in state["history"]:
                if line["round"] > told:
                    told = since = line["round"]
                    if show:
                        print(_line(line, state["rounds"]), file=sys.stderr, flush=True)
            if state["state"] in ENDED:
                if state["state"] != "finished":
                    raise RunFailed(f"run {self.id} ({state['name']}) is {state['state']}: {state['message']}")
                return self.state()
            time.sleep(max(every, 0.1))

    @property
    def metrics(self) -> List[Dict[str, Any]]:
        """A dict for each round so far: `round`, `released`, `cohort`, `answered`, `seconds`, `epsilon`, and what was measured as `train_loss`,
        `sites_accuracy` and so on, the plan's further metrics as `sites_auc`; None where nothing was. The server keeps the last 1,000 rounds."""
        return [_flat(line) for line in self.state()["history"]]

    def frame(self) -> Any:
        """The metrics as a `pandas.DataFrame`. Raises `Error` where pandas is not installed."""
        return frame_of(self.metrics)

    def reports(self) -> List[Dict[str, Any]]:
        """What each site measured: `round`, `kind`, `site`, `loss`, `accuracy`, `examples`, `seconds`."""
        return cast(List[Dict[str, Any]], self.federation._ask("GET", f"runs/{self.id}/reports"))

    def statement(self) -> Dict[str, Any]:
        """What may be said of the privacy of the last model."""
        return cast(Dict[str, Any], self.federation._ask("GET", f"runs/{self.id}/statement"))

    def pause(self) -> None:
        """Pause the run after its open round."""
        self.federation._ask("POST", f"runs/{self.id}/pause")

    def resume(self) -> None:
        """Resume a paused run."""
        self.federation._ask("POST", f"runs/{self.id}/resume")

    def stop(self, now: bool = False) -> None:
        """End the run with its open round; `now` drops that round. Its models stay."""
        self.federation._ask("POST", f"runs/{self.id}/stop" + ("?now=true" if now else ""))

    def pull(self, out: Path = ".", model: str = "last") -> str:
        """Fetch a model and its privacy statement into a folder, and return the path of `model.safetensors`.

        model: `last`, `best`, or the number of the round that made it. The admin port has no models, so this runs the command
        `consortia run pull` with the operator's identity: it needs a `Federation` made from the server's folder, else it raises `Error`.
        """
        folder = self.federation._folder_for("fetch a model")
        run_json(["run", "pull", self.id, "--dir", folder, "--model", str(model), "--out", os.fspath(out)], show=False)
        return os.path.join(os.fspath(out), "model.safetensors")

    def load_into(
        self, model: Model, personal: Personal = (), *, trainable_only: bool = False, which: str = "last"
    ) -> None:
        """Put a model of this run into one of Python's, as `consortia.load_into` does."""
        import tempfile

        with tempfile.TemporaryDirectory(prefix="consortia-") as scratch:
            load_into(model, self.pull(scratch, which), personal, trainable_only=trainable_only)


class Federation:
    """A federation's server, reached over its admin port.

    folder_or_url: the server's folder, which `consortia server init` made and which holds address and token; or the address of the admin port, such as
    `http://127.0.0.1:4434`. What `consortia server dashboard` prints is one with its token.
    token: the token in `operator/admin.token` of the server's folder. Whoever has it is an operator.

    Raises `Error` where folder, address or token is missing.
    """

    def __init__(self, folder_or_url: Path, token: Optional[str] = None) -> None:
        where = os.fspath(folder_or_url)
        self._folder: Optional[str] = None
        if where.startswith(("http://", "https://")):
            self._url, fragment = _split_url(where)
            token = token or fragment
        else:
            self._folder = where
            self._url = f"http://{_admin_address(where)}"
            token = token or _read_token(where)
        if not token:
            raise Error(
                "the admin port needs a token; give `token=`, or what `consortia server dashboard` prints as the address"
            )
        self._token = token.strip()

    def __repr__(self) -> str:
        return f"<consortia.Federation at {self._url}>"

    def status(self) -> Dict[str, Any]:
        """The server at a glance."""
        return cast(Dict[str, Any], self._ask("GET", "status"))

    def runs(self) -> List[Dict[str, Any]]:
        """The newest 200 runs, newest first, each with `run`, `name`, `state`, `message`, `rounds_done`, `rounds` and `model_sha256`."""
        return cast(List[Dict[str, Any]], self._ask("GET", "runs"))

    def run(self, id: str) -> Dict[str, Any]:
        """A run with its plan, its last 1,000 rounds (`history`) and its sites. Raises `RequestFailed` of status 404 for an id that is not there."""
        return cast(Dict[str, Any], self._ask("GET", f"runs/{urllib.parse.quote(id, safe='')}"))

    def open(self, id: str) -> Run:
        """A run of an earlier session by its id, to be watched or stopped."""
        return Run(self, self.run(id)["run"])

    def submit(self, plan: Path, seed: Optional[int] = None) -> Run:
        """Submit a plan, and return its run.

        plan: the path of a federation file. A plan that starts from a file (`start` of an external model) needs a `Federation` made from the
        server's folder: it is submitted by the command `consortia run submit`, which reads that file, too.
        seed: makes the run repeatable; it may not claim privacy then.

        Raises `RequestFailed` or `CommandFailed` where the server does not take it, with the reason.
        """
        with open(plan, encoding="utf-8") as file:
            text = file.read()
        if _starts_from_file(text):
            folder = self._folder_for("submit a plan that starts from a file")
            arguments = ["run", "submit", os.fspath(plan), "--dir", folder]
            answer = run_json(arguments + (["--seed", str(seed)] if seed is not None else []), show=False)
        else:
            answer = self._ask("POST", "runs", {"plan_toml": text, "seed": seed})
        return Run(self, answer["run"])

    def sites(self) -> List[Dict[str, Any]]:
        """The sites by name, each with `site`, `state`, `connected`, `last_seen`, `software` and more; times are seconds since 1970."""
        return cast(List[Dict[str, Any]], self._ask("GET", "sites"))

    def _folder_for(self, purpose: str) -> str:
        if self._folder is None:
            raise Error(
                f"to {purpose}, make the `Federation` from the server's folder: the admin port does not offer it"
            )
        return self._folder

    def _ask(self, method: str, path: str, body: Optional[Dict[str, Any]] = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        headers = {"Authorization": f"Bearer {self._token}", "Accept": "application/json"}
        if data is not None:
            headers["Content-Type"] = "application/json"
        request = urllib.request.Request(f"{self._url}/api/v1/{path}", data, headers, method=method)
        # A proxy of the environment is for the Internet; the port is on this machine, and the token is for it alone.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), _NoRedirect)
        try:
            with opener.open(request, timeout=_PATIENCE_SECONDS) as answer:
                text = answer.read()
        except urllib.error.HTTPError as error:
            with error:
                raise RequestFailed(_problem(error.read(), f"HTTP status {error.code}"), error.code) from None
        except (urllib.error.URLError, OSError) as error:
            reason = getattr(error, "reason", error)
            raise RequestFailed(
                f"no answer from {self._url} ({reason}); is `consortia server run` at work there, with an [admin] table in server.toml?",
                0,
            ) from None
        if not text:
            return {}
        try:
            return json.loads(text)
        except ValueError:
            raise RequestFailed(f"{self._url} does not answer in JSON; is it the admin port?", 0) from None


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """The token goes where it was meant to go, and nowhere else."""

    def redirect_request(self, *_: Any) -> None:
        return None


def _split_url(url: str) -> Tuple[str, Optional[str]]:
    parts = urllib.parse.urlsplit(url)
    token = urllib.parse.parse_qs(parts.fragment).get("token", [None])[0]
    return f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}", token


def _admin_address(folder: str) -> str:
    path = os.path.join(folder, "server.toml")
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read()
    except OSError as error:
        raise Error(
            f"{path} cannot be read ({error.strerror}); give the folder that `consortia server init` made, or the address of the admin port"
        ) from None
    # The only value that is needed; the standard library reads TOML from Python 3.11 on.
    table = re.search(r"^\s*\[\s*admin\s*\]\s*(?:#[^\n]*)?$(.*?)(?=^\s*\[|\Z)", text, re.MULTILINE | re.DOTALL)
    listen = re.search(r"""^\s*listen\s*=\s*["']([^"']+)["']""", table.group(1), re.MULTILINE) if table else None
    if listen is None:
        raise Error(
            f"{path} has no table [admin] with `listen`, so the server has no admin port; add it and start the server again"
        )
    host, _, port = listen.group(1).rpartition(":")
    # An address of all interfaces is none to connect to.
    host = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]"}.get(host, host)
    return f"{host}:{port}"


def _read_token(folder: str) -> str:
    path = os.path.join(folder, "operator", "admin.token")
    try:
        with open(path, encoding="ascii") as file:
            return file.read()
    except OSError as error:
        raise Error(
            f"{path} cannot be read ({error.strerror}); `consortia server run` makes it, for its owner alone. Or give `token=`"
        ) from None


def _starts_from_file(plan: str) -> bool:
    lines = [line.split("#")[0] for line in plan.splitlines()]
    return bool(re.search(r"\bstart\s*=", "\n".join(lines))) and bool(re.search(r"\bexternal\b", "\n".join(lines)))


def _problem(body: bytes, otherwise: str) -> str:
    try:
        return str(json.loads(body)["error"])
    except (ValueError, KeyError, TypeError):
        return otherwise


def _flat(line: Dict[str, Any]) -> Dict[str, Any]:
    row: Dict[str, Any] = {}
    for name, value in line.items():
        if name in ("train", "sites", "central"):
            for metric in ("loss", "accuracy", "examples"):
                row[f"{name}_{metric}"] = (value or {}).get(metric)
        elif name in ("further_train", "further_sites"):
            for metric, mean in value.items():
                row[f"{name[len('further_') :]}_{metric}"] = mean
        else:
            row[name] = value
    return row


def _line(line: Dict[str, Any], rounds: int) -> str:
    text = f"round {line['round']}/{rounds}"
    if line.get("cohort") is not None:
        text += f"  {line['answered']} of {line['cohort']} answered"
    for name, label in (("train", "training loss"), ("sites", "test loss")):
        if line.get(name):
            text += f"  {label} {line[name]['loss']:.4f}"
            if name == "sites" and line[name].get("accuracy") is not None:
                text += f", accuracy {line[name]['accuracy']:.4f}"
    return text
