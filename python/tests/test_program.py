"""With the program itself: CONSORTIA_STATIC names one that deploy/static.sh has built."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Iterator

import pytest
from agent import FOLDER

import consortia

PROGRAM = os.environ.get("CONSORTIA_STATIC", "")
pytestmark = pytest.mark.skipif(not PROGRAM, reason="CONSORTIA_STATIC names no program")


@pytest.fixture(autouse=True)
def _program(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CONSORTIA_BINARY", PROGRAM)
    monkeypatch.chdir(tmp_path)
    shutil.copytree(FOLDER.parent / "examples" / "data", tmp_path / "examples" / "data")
    shutil.copy(FOLDER.parent / "examples" / "heart.toml", tmp_path / "examples")


def test_a_plan_with_a_model_of_the_program_is_simulated(tmp_path: Path) -> None:
    results = [
        consortia.simulate("examples/heart.toml", rounds=2, seed=3, out=tmp_path / "out", show=False) for _ in range(2)
    ]
    assert results[0].model_sha256 == results[1].model_sha256 and results[0].folder != results[1].folder
    last = results[0].metrics[-1]
    assert (
        last["round"] == results[0].rounds == 2
        and last["released"] is True
        and isinstance(last["sites_accuracy"], float)
    )
    assert results[0].accuracy == pytest.approx(last["sites_accuracy"], abs=1e-6)
    assert os.path.isfile(results[0].report)
    tensors = consortia.tensors(results[0].model)
    model = {name: bytearray_of(value) for name, value in tensors.items()}
    results[0].load_into(model)
    assert all(bytes(model[name]) == bytes(tensors[name]) for name in tensors)


def bytearray_of(value: object) -> memoryview:
    view = memoryview(value)  # type: ignore[arg-type]
    return memoryview(bytearray(view.nbytes)).cast("f", view.shape)


def test_a_mistake_in_a_plan_has_its_place(tmp_path: Path) -> None:
    with pytest.raises(consortia.CommandFailed, match="roundz") as caught:
        consortia.simulate("examples/heart.toml", settings={"roundz": 2}, show=False)
    assert caught.value.exit_code == 2


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    subprocess.run(
        [PROGRAM, "server", "init", "fed", "--name", "localhost", "--listen", "127.0.0.1:0"],
        check=True,
        capture_output=True,
    )
    process = subprocess.Popen(
        [PROGRAM, "server", "run", "fed", "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    address = ""
    for line in process.stdout:
        if line.startswith("admin port "):
            address = f"http://{line.split()[2]}"
            break
    try:
        assert address
        yield address
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(30)
        finally:
            process.kill()


def test_the_admin_port_takes_a_plan_and_tells_of_its_run(server: str, tmp_path: Path) -> None:
    token = (tmp_path / "fed" / "operator" / "admin.token").read_text()
    federation = consortia.Federation(server, token)
    assert federation.runs() == [] and federation.sites() == []
    assert federation.status()
    plan = tmp_path / "plan.toml"
    plan.write_text((tmp_path / "examples" / "heart.toml").read_text().split("[simulation]")[0])
    run = federation.submit(plan, seed=1)
    assert run.state()["name"] == "heart" and federation.runs()[0]["run"] == run.id
    run.pause()
    run.resume()
    run.stop(now=True)
    with pytest.raises(consortia.RunFailed, match="is stopped"):
        run.watch(show=False, every=0.1)
    assert all(row["train_loss"] is None for row in run.metrics) and run.reports() == []
    with pytest.raises(consortia.RequestFailed) as caught:
        federation.run("0000000000000000")
    assert caught.value.status == 404
    with pytest.raises(consortia.RequestFailed) as caught:
        consortia.Federation(server, "x" * 32).runs()
    assert caught.value.status == 401
    plan.write_text("name = 1\n")
    with pytest.raises(consortia.RequestFailed) as caught:
        federation.submit(plan)
    assert caught.value.status == 400
