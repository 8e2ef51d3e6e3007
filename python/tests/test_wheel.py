"""The wheel and the sdist: made by the standard library, installed by pip into fresh environments.

CONSORTIA_STATIC names a program that deploy/static.sh has built; without it a small script stands for the program, which pip treats alike.
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
import struct
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any, List, Tuple

import pytest
from agent import FOLDER

import consortia

sys.path.append(str(FOLDER))
build_package: Any = __import__("build_package")

PT_LOAD, PT_DYNAMIC, PT_INTERP = 1, 2, 3


def elf(*segments: Tuple[int, bytes], machine: int = 62) -> bytes:
    """A program of 64 bits with these segments."""
    at = 64 + 56 * len(segments)
    headers, content = b"", b""
    for kind, data in segments:
        headers += struct.pack("<IIQQQQQQ", kind, 0, at + len(content), 0, 0, len(data), len(data), 1)
        content += data
    head = (
        b"\x7fELF\x02\x01\x01"
        + b"\x00" * 9
        + struct.pack("<HHIQQQIHHHHHH", 3, machine, 1, 0, 64, 0, 0, 64, 56, len(segments), 0, 0, 0)
    )
    return head + headers + content


STATIC = elf((PT_LOAD, b"code"), (PT_DYNAMIC, struct.pack("<QQQQ", 5, 9, 0, 0)))


@pytest.mark.parametrize(
    "program, said",
    [
        (elf((PT_INTERP, b"/lib64/ld-linux-x86-64.so.2")), "needs libraries"),
        (elf((PT_DYNAMIC, struct.pack("<QQ", 1, 1))), "needs libraries"),
        (elf((PT_LOAD, b""), machine=8), "a processor that is not known"),
        (b"#!/bin/sh\n", "not a 64-bit program"),
    ],
)
def test_a_program_that_does_not_run_everywhere_is_refused(program: bytes, said: str) -> None:
    with pytest.raises(SystemExit, match=said):
        build_package.platforms(program, "consortia")


def test_a_wheel_is_named_for_every_linux_of_its_processor() -> None:
    assert build_package.platforms(STATIC, "p") == [
        "manylinux_2_17_x86_64",
        "manylinux2014_x86_64",
        "musllinux_1_1_x86_64",
    ]
    assert build_package.platforms(elf((PT_LOAD, b""), machine=183), "p")[0] == "manylinux_2_17_aarch64"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    program = os.environ.get("CONSORTIA_STATIC")
    if not program:
        program = str(folder / "program")
        Path(program).write_bytes(STATIC)
    before = os.environ.get("CONSORTIA_BINARY")
    os.environ["CONSORTIA_BINARY"] = program
    try:
        return folder / build_package.build_wheel(str(folder))
    finally:
        os.environ.pop("CONSORTIA_BINARY")
        if before is not None:
            os.environ["CONSORTIA_BINARY"] = before


def test_a_wheel_lists_every_file_with_its_digest(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        assert archive.testzip() is None
        names = archive.namelist()
        info = f"consortia-{consortia.__version__}.dist-info"
        records = dict(line.rsplit(",", 2)[:2] for line in archive.read(f"{info}/RECORD").decode().splitlines())
        assert list(records) == names
        for name, value in records.items():
            if value:
                found = base64.urlsafe_b64encode(hashlib.sha256(archive.read(name)).digest()).rstrip(b"=").decode()
                assert value == f"sha256={found}", name
        script = archive.getinfo(f"consortia-{consortia.__version__}.data/scripts/consortia")
        assert script.external_attr >> 16 & 0o111
        assert "consortia/py.typed" in names and f"{info}/licenses/LICENSE-MIT" in names
        tags = re.findall(r"^Tag: (.*)$", archive.read(f"{info}/WHEEL").decode(), re.MULTILINE)
        assert wheel.name == f"consortia-{consortia.__version__}-py3-none-{'.'.join(tag[9:] for tag in tags)}.whl"
        assert f"\nVersion: {consortia.__version__}\n" in archive.read(f"{info}/METADATA").decode()


def test_the_versions_of_package_program_and_wheel_agree() -> None:
    root = FOLDER.parent
    found = re.search(r'^version = "(.*)"$', (root / "Cargo.toml").read_text(encoding="utf-8"), re.MULTILINE)
    assert found is not None and found.group(1) == consortia.__version__ == build_package.project()["version"]


def test_an_sdist_builds_the_same_wheel_and_says_what_it_needs(wheel: Path, tmp_path: Path) -> None:
    name = build_package.build_sdist(str(tmp_path))
    with tarfile.open(tmp_path / name) as archive:
        archive.extractall(tmp_path)
    folder = tmp_path / f"consortia-{consortia.__version__}"
    environment = {key: value for key, value in os.environ.items() if key != "CONSORTIA_BINARY"}
    command = [sys.executable, str(folder / "build_package.py"), str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 1 and "Build it with deploy/static.sh" in done.stderr
    program = os.environ.get("CONSORTIA_STATIC") or str(wheel.parent / "program")
    subprocess.run(command, env={**environment, "CONSORTIA_BINARY": program}, check=True, capture_output=True)
    assert (tmp_path / wheel.name).read_bytes() == wheel.read_bytes()


def interpreters() -> List[str]:
    """The oldest and the newest Python on this machine, of those that the package supports, after the one that runs this."""
    found = {}
    for path in Path.home().glob(".pyenv/versions/3.*/bin/python"):
        version = tuple(int(part) for part in path.parts[-3].split(".")[:2])
        if version >= (3, 9):
            found[version] = str(path)
    ends = [found[min(found)], found[max(found)]] if found else []
    return ends or [sys.executable]


@pytest.mark.parametrize("python", interpreters())
def test_pip_installs_the_wheel_into_a_fresh_environment(wheel: Path, tmp_path: Path, python: str) -> None:
    environment = tmp_path / "environment"
    subprocess.run([python, "-m", "venv", str(environment)], check=True)
    here = environment / "bin"
    clean = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    pip = [
        str(here / "python"),
        "-m",
        "pip",
        "--disable-pip-version-check",
        "install",
        "--no-index",
        "--quiet",
        str(wheel),
    ]
    subprocess.run(pip, check=True, env=clean, cwd=tmp_path)
    ask = "import consortia; print(consortia.__file__, consortia.binary(), sep='\\n')"
    out = subprocess.run(
        [str(here / "python"), "-c", ask], check=True, env=clean, cwd=tmp_path, capture_output=True, text=True
    ).stdout
    assert out.splitlines()[0].startswith(str(environment)) and out.splitlines()[1] == str(here / "consortia")
    if not os.environ.get("CONSORTIA_STATIC"):
        return
    for command in ([str(here / "consortia")], [str(here / "python"), "-m", "consortia"]):
        done = subprocess.run(
            [*command, "--version"], check=True, env=clean, cwd=tmp_path, capture_output=True, text=True
        )
        assert done.stdout == f"consortia {consortia.__version__}\n"
    # Whatever folder is on PATH: the program is found beside the Python that asks.
    done = subprocess.run(
        [str(here / "python"), "-m", "consortia", "nonsense"], env=clean, cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 2
