"""The command `consortia`: where it is, and how it is run."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import threading
from typing import IO, Any, Dict, Iterator, List, Optional, Sequence

from ._errors import BinaryNotFound, CommandFailed

VARIABLE = "CONSORTIA_BINARY"


def _candidates() -> Iterator[str]:
    name = "consortia" + (sysconfig.get_config_var("EXE") or "")
    # A virtual environment, `pip install --user`, `--prefix` and distributions each have a scheme of their own.
    schemes = [sysconfig.get_path("scripts")]
    schemes += [sysconfig.get_path("scripts", scheme) for scheme in sysconfig.get_scheme_names()]
    for folder in dict.fromkeys(schemes):
        if folder:
            yield os.path.join(folder, name)
    # `pip install --target FOLDER` puts scripts beside the packages.
    beside = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    yield os.path.join(beside, "bin", name)
    found = shutil.which(name)
    if found:
        yield found


def binary() -> str:
    """The path of the command `consortia`: that of the environment variable CONSORTIA_BINARY, else the one that was installed with this package,
    else the first on PATH.

    Raises `BinaryNotFound` where there is none.
    """
    chosen = os.environ.get(VARIABLE)
    if chosen:
        if not _is_program(chosen):
            raise BinaryNotFound(
                f"{VARIABLE} is `{chosen}`, which is not a program; let it name the file `consortia`, or unset it"
            )
        return chosen
    for path in _candidates():
        if _is_program(path):
            return path
    raise BinaryNotFound(
        f"the command `consortia` is not installed: it is not among the scripts of {sys.prefix}, nor on PATH. "
        f"Install the wheel for this platform, or let {VARIABLE} name the program"
    )


def _is_program(path: str) -> bool:
    if not (os.path.isfile(path) and os.access(path, os.X_OK)):
        return False
    # A script of Python under this name would be this package's own starter, and call itself.
    with open(path, "rb") as file:
        return file.read(2) != b"#!" or os.environ.get(VARIABLE) == path


def run_json(arguments: Sequence[str], show: bool = True, cwd: Optional[str] = None) -> Dict[str, Any]:
    """Run the command and return the last object that it prints.

    `show` copies what it tells meanwhile to `sys.stderr`, line by line, so that a notebook shows it. An interrupt is handed on: the
    command writes what is done and ends, and then `KeyboardInterrupt` is raised. Raises `CommandFailed` with its last words and its exit code.
    """
    command = [binary(), *arguments, "--format", "json"]
    # In a session of its own, so that Ctrl-C reaches it once, through this process, in a terminal as in a notebook.
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=cwd,
        text=True,
        encoding="utf-8",
        errors="replace",
        start_new_session=True,
    )
    assert process.stdout is not None and process.stderr is not None
    told: List[str] = []
    listener = threading.Thread(target=_copy, args=(process.stderr, told, show), daemon=True)
    listener.start()
    interrupted = False
    try:
        while True:
            try:
                output = process.stdout.read()
                process.wait()
                break
            except KeyboardInterrupt:
                interrupted = True
                process.send_signal(signal.SIGINT)
    finally:
        if process.poll() is None:
            process.terminate()
        process.stdout.close()
    listener.join()
    if interrupted:
        raise KeyboardInterrupt
    last = _last_object(output)
    if process.returncode:
        message = last.get("error") or "\n".join(told[-20:]) or f"exit code {process.returncode}"
        raise CommandFailed(f"`consortia {' '.join(arguments[:2])}` failed: {message}", process.returncode)
    return last


def _copy(source: IO[str], told: List[str], show: bool) -> None:
    with source:
        for line in source:
            told.append(line.rstrip("\n"))
            del told[:-200]
            if show:
                sys.stderr.write(line)
                sys.stderr.flush()


def _last_object(output: str) -> Dict[str, Any]:
    try:
        found = json.loads(output)
    except ValueError:
        lines = [line for line in output.splitlines() if line.strip()]
        try:
            found = json.loads(lines[-1]) if lines else {}
        except ValueError:
            found = {}
    return found if isinstance(found, dict) else {}
