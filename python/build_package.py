"""Build the package: a wheel with the program among its scripts, and an sdist.

A build backend (PEP 517) of the standard library alone, so that `pip wheel`, `pip install` of the sdist and `deploy/wheel.sh` make the same wheel on a
machine without a connection. It compiles nothing: it takes a program that is linked without libraries, as
`deploy/static.sh` makes it, from the environment variable CONSORTIA_BINARY.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import io
import os
import re
import stat
import struct
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

HERE = Path(__file__).resolve().parent
VARIABLE = "CONSORTIA_BINARY"
# ELF: what is in e_machine, and the names of the same in tags of wheels.
MACHINES = {62: "x86_64", 183: "aarch64"}
PT_DYNAMIC, PT_INTERP, DT_NEEDED = 2, 3, 1
# The smallest moment that a zip archive can hold: the same input makes the same bytes.
MOMENT = (1980, 1, 1, 0, 0, 0)


def build_wheel(wheel_directory: str, config_settings: Any = None, metadata_directory: Optional[str] = None) -> str:
    """Write the wheel `py3-none-PLATFORM` and return its name. Raises `SystemExit` where CONSORTIA_BINARY names no program that runs everywhere."""
    program = os.environ.get(VARIABLE)
    if not program or not os.path.isfile(program):
        raise SystemExit(
            f"error: {VARIABLE} is `{program or ''}`, and must name the program `consortia` that goes into the wheel. Build it with deploy/static.sh "
            "(it needs Rust and a C compiler), or install the ready-made wheel for this platform, which needs nothing"
        )
    content = Path(program).read_bytes()
    tags = [f"py3-none-{platform}" for platform in platforms(content, program)]
    name, version = project()["name"], project()["version"]
    found = f"{name}-{version}"
    files = [(f"{name}/{path.name}", path.read_bytes(), 0o644) for path in sources()]
    files.append((f"{found}.data/scripts/{name}", content, 0o755))
    info = f"{found}.dist-info"
    lines = [
        "Wheel-Version: 1.0",
        "Generator: build_package of consortia",
        "Root-Is-Purelib: false",
        *(f"Tag: {tag}" for tag in tags),
    ]
    files += [
        (f"{info}/METADATA", metadata().encode(), 0o644),
        (f"{info}/WHEEL", ("\n".join(lines) + "\n").encode(), 0o644),
    ]
    files += [(f"{info}/licenses/{path.name}", path.read_bytes(), 0o644) for path in licences()]
    record = "".join(f"{path},sha256={digest(data)},{len(data)}\n" for path, data, _ in files) + f"{info}/RECORD,,\n"
    files.append((f"{info}/RECORD", record.encode(), 0o644))
    wheel = f"{found}-py3-none-{'.'.join(platforms(content, program))}.whl"
    part = Path(wheel_directory, wheel + ".part")
    with zipfile.ZipFile(part, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, data, mode in files:
            entry = zipfile.ZipInfo(path, MOMENT)
            entry.external_attr = (stat.S_IFREG | mode) << 16
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, data)
    part.replace(Path(wheel_directory, wheel))
    return wheel


def build_sdist(sdist_directory: str, config_settings: Any = None) -> str:
    """Write the sdist, which holds the package and this file but no program, and return its name."""
    found = "{name}-{version}".format(**project())
    files = [(f"{name}", HERE / name) for name in ("pyproject.toml", "build_package.py", "README.md")]
    files += [(f"consortia/{path.name}", path) for path in sources()]
    files += [(path.name, path) for path in licences()]
    packed = [(name, path.read_bytes()) for name, path in files] + [("PKG-INFO", metadata().encode())]
    bytes_ = io.BytesIO()
    with tarfile.open(fileobj=bytes_, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, data in packed:
            entry = tarfile.TarInfo(f"{found}/{name}")
            entry.size, entry.mode = len(data), 0o644
            archive.addfile(entry, io.BytesIO(data))
    Path(sdist_directory, f"{found}.tar.gz").write_bytes(gzip.compress(bytes_.getvalue(), mtime=0))
    return f"{found}.tar.gz"


def platforms(program: bytes, path: str) -> List[str]:
    """The platforms on which a program runs. Raises `SystemExit` for one that is not Linux's or that needs libraries."""
    wrong = None
    if program[:6] != b"\x7fELF\x02\x01" or len(program) < 64:
        wrong = "is not a 64-bit program of Linux"
    else:
        machine = MACHINES.get(struct.unpack_from("<H", program, 18)[0])
        offset, size, count = struct.unpack_from("<Q", program, 32)[0], *struct.unpack_from("<HH", program, 54)
        headers = [struct.unpack_from("<IIQQQQ", program, offset + at * size) for at in range(count)]
        if machine is None:
            wrong = "is for a processor that is not known here"
        elif any(kind == PT_INTERP for kind, *_ in headers) or any(needs_libraries(program, one) for one in headers):
            wrong = "needs libraries of the machine that it was built on"
        else:
            # Without libraries it is the same to glibc and to musl; the oldest of each is named.
            return [f"manylinux_2_17_{machine}", f"manylinux2014_{machine}", f"musllinux_1_1_{machine}"]
    raise SystemExit(f"error: {path} {wrong}; build the program with deploy/static.sh")


def needs_libraries(program: bytes, header: Tuple[int, ...]) -> bool:
    """Whether a segment lists a library."""
    kind, _, offset, _, _, length = header
    if kind != PT_DYNAMIC:
        return False
    return any(struct.unpack_from("<Q", program, offset + at)[0] == DT_NEEDED for at in range(0, length, 16))


def project() -> Dict[str, str]:
    """Name and version. The standard library reads TOML from Python 3.11 on, and two lines need no more than this."""
    text = (HERE / "pyproject.toml").read_text(encoding="utf-8")
    table = text.split("\n[project]\n")[1].split("\n[")[0]
    return dict(re.findall(r'^(\w[\w-]*) = "(.*)"$', table, re.MULTILINE))


def metadata() -> str:
    """The METADATA of wheel and sdist, whose body is README.md."""
    text = (HERE / "pyproject.toml").read_text(encoding="utf-8")
    found = project()
    classifiers = re.findall(r'^    "(.*)",$', text.split("classifiers = [")[1].split("]")[0], re.MULTILINE)
    lines = [
        "Metadata-Version: 2.1",
        f"Name: {found['name']}",
        f"Version: {found['version']}",
        f"Summary: {found['description']}",
        f"License: {found['license']}",
    ]
    lines += [f"Classifier: {one}" for one in classifiers]
    lines += [f"Requires-Python: {found['requires-python']}", "Description-Content-Type: text/markdown"]
    return "\n".join(lines) + "\n\n" + (HERE / found["readme"]).read_text(encoding="utf-8")


def sources() -> List[Path]:
    """The files of the package."""
    return sorted(path for path in (HERE / "consortia").iterdir() if path.suffix == ".py" or path.name == "py.typed")


def licences() -> List[Path]:
    """The licences: at the root of the repository, and beside this file in an sdist."""
    return [path for folder in (HERE.parent, HERE) for path in sorted(folder.glob("LICENSE-*"))]


def digest(data: bytes) -> str:
    """The SHA-256 in the form of RECORD."""
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()


if __name__ == "__main__":
    os.makedirs(sys.argv[1], exist_ok=True)
    for name in (build_wheel(sys.argv[1]), build_sdist(sys.argv[1])):
        print(os.path.join(sys.argv[1], name))
