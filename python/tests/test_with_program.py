"""Simulations by the program itself, where CONSORTIA_BINARY names it: what the other tests play an agent for, it does here."""

from __future__ import annotations

import os
import shutil
import sys
from array import array
from pathlib import Path
from typing import Any, Dict

import pytest
from agent import PACKAGE

import consortia

pytestmark = pytest.mark.skipif(
    not os.environ.get("CONSORTIA_BINARY"), reason="CONSORTIA_BINARY names no program that cargo or deploy/static.sh has built"
)

ROOT = Path(__file__).resolve().parents[2]

PLAN = """
name = "halves"
rounds = 3
model = { external = { start = "start.safetensors" } }
[learner]
config = { target = 2.0 }
metrics = ["distance"]
[cohort]
clients_min = 3
quorum = 3
[simulation]
seed = 5
clients = 3
[simulation.learner]
command = ["nothing-of-this-name"]
"""

# Client number i moves half of the way to `target` + i.
SCRIPT = """
import consortia

model = {"w": [0.0, 4.0], "b": 1.0}
for task in consortia.tasks(model):
    goal = task.config["target"] + task.client.index
    distance = sum(abs(value - goal) for value in model["w"])
    if task.kind == "train":
        model["w"] = [(value + goal) / 2 for value in model["w"]]
    BODY
    task.done(examples=1, loss=distance, distance=distance)
"""


@pytest.fixture()
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "plan.toml").write_text(PLAN)
    if PACKAGE:
        monkeypatch.setenv("PYTHONPATH", PACKAGE)
    consortia.save_initial({"w": [0.0, 4.0], "b": 1.0}, "start.safetensors")
    return tmp_path


def write(folder: Path, body: str = "") -> str:
    (folder / "train.py").write_text(SCRIPT.replace("BODY", body))
    return str(folder / "train.py")


def test_a_script_is_simulated_and_its_model_comes_back(folder: Path) -> None:
    result = consortia.simulate("plan.toml", learner=write(folder), show=False)
    # A mean of targets 2, 3 and 4, of which half of the way is gone in each round.
    model: Dict[str, Any] = {"w": array("f", [9, 9]), "b": 9.0}
    result.load_into(model)
    for value, begins in zip(model["w"], (0.0, 4.0)):
        assert abs(value - (3 + (begins - 3) / 8)) < 1e-4
    assert (result.rounds, model["b"], result.accuracy) == (3, 1.0, None)
    assert result.loss is not None and len(result.metrics) == 3
    assert Path(result.report).is_file() and Path(result.model).is_file()
    # The further metric of the plan, as a mean over the clients.
    measured = result.summary["further"]["distance"]
    assert measured > 0 and abs(measured - float(result.metrics[-1]["sites_distance"] or 0)) < 1e-5
    assert float(result.metrics[0]["train_distance"] or 0) > float(result.metrics[-1]["train_distance"] or 0)
    assert "distance on the sites" in Path(result.report).read_text()


def test_processes_and_repetition_change_no_bit(folder: Path) -> None:
    script = write(folder)
    found = {
        consortia.simulate("plan.toml", learner=script, show=False, processes=processes).model_sha256
        for processes in (1, 2, 2)
    }
    assert len(found) == 1


def test_a_function_is_a_learner(folder: Path) -> None:
    (folder / "learners.py").write_text("def learn():\n" + "".join(f"    {line}\n" for line in SCRIPT.replace("BODY", "").splitlines()))
    sys.path.insert(0, str(folder))
    try:
        from learners import learn  # type: ignore[import-not-found]

        of_function = consortia.simulate("plan.toml", learner=learn, show=False)
    finally:
        sys.path.remove(str(folder))
        sys.modules.pop("learners", None)
    assert of_function.model_sha256 == consortia.simulate("plan.toml", learner=write(folder), show=False).model_sha256


def test_a_learner_that_cannot_start_is_told_before_the_first_round(folder: Path) -> None:
    with pytest.raises(consortia.CommandFailed) as failed:
        consortia.simulate("plan.toml", show=False)
    assert "nothing-of-this-name" in str(failed.value) and "cannot be started" in str(failed.value)
    with pytest.raises(consortia.CommandFailed) as failed:
        consortia.simulate("plan.toml", learner=write(folder, "nonsense"), show=False)
    assert "NameError" in str(failed.value)


def test_a_model_of_other_tensors_is_told_with_both_lists(folder: Path) -> None:
    consortia.save_initial({"w": [0.0, 4.0, 5.0]}, "start.safetensors")
    with pytest.raises(consortia.CommandFailed) as failed:
        consortia.simulate("plan.toml", learner=write(folder), show=False)
    assert "the plan has w [3]; the learner has w [2], b []" in str(failed.value)


def test_the_numpy_example_learns(folder: Path) -> None:
    pytest.importorskip("numpy")
    (folder / "python").mkdir()
    for name in ("heart_numpy.py", "heart_numpy.toml"):
        shutil.copy(ROOT / "examples" / "python" / name, folder / "python")
    shutil.copytree(ROOT / "examples" / "data", folder / "data")
    os.chdir(folder / "python")
    sys.path.insert(0, str(folder / "python"))
    size = 13
    consortia.save_initial({"weight": array("f", [0.0] * size), "bias": array("f", [0.0])}, "heart_numpy.safetensors")
    records = str(folder / "data" / "heart_disease.csv")
    result = consortia.simulate("heart_numpy.toml", learner="heart_numpy.py", arguments=[records], show=False)
    assert result.accuracy is not None and result.accuracy > 0.75
