"""What a thread, a huge model and many tensors do to the channel."""

from __future__ import annotations

from pathlib import Path

import pytest
from agent import Agent, floats, unfloats


def test_a_model_of_many_tensors_is_sent_whole(tmp_path: Path) -> None:
    script = """
        import consortia
        model = {"layer.%d" % at: float(at) for at in range(3000)}
        for task in consortia.tasks(model):
            task.done(examples=1, loss=0)
    """
    agent = Agent.launch(script, tmp_path)
    agent.greet()
    tensors = [{"name": f"layer.{at}", "shape": []} for at in range(3000)]
    assert [one["name"] for one in agent.prepare(tensors)] == [one["name"] for one in tensors]
    body = floats(*range(3000))
    assert agent.ask("train", body)[1] == body
    agent.end()


def test_a_body_that_the_line_takes_in_parts_arrives_whole(tmp_path: Path) -> None:
    script = """
        import array, consortia
        model = {"a": array.array("f", bytes(4 * 1000003)), "b": array.array("d", bytes(8 * 77777))}
        for task in consortia.tasks(model):
            model["a"][1000002] = 5
            task.done(examples=1, loss=0)
    """
    agent = Agent.launch(script, tmp_path)
    agent.greet(alive_seconds=0.01)
    agent.prepare([{"name": "a", "shape": [1000003]}, {"name": "b", "shape": [77777]}])
    body = floats(*(float(at % 1000) for at in range(1077780)))
    values = unfloats(agent.ask("train", body)[1])
    assert (
        values[1000002] == 5
        and values[:1000002] == unfloats(body)[:1000002]
        and values[1000003:] == unfloats(body)[1000003:]
    )
    assert agent.end()[0] == 0


def test_threads_of_torch_are_as_they_were(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from consortia._models import parameters_of

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        module = torch.nn.Linear(1, 1, bias=False)
        parameters = parameters_of(module)
        parameters.load(memoryview(bytearray(floats(2))))
        module.weight.data.fill_(float("nan"))
        with pytest.raises(ValueError):
            parameters.body()
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_no_value_of_torch_that_is_not_finite_is_overlooked(value: str) -> None:
    torch = pytest.importorskip("torch")
    from consortia._models import parameters_of

    for at in (0, 1, 4095, 4096, 9999):
        tensor = torch.zeros(10000)
        tensor[at] = float(value)
        with pytest.raises(ValueError, match=f"element {at} is {value}"):
            parameters_of({"w": tensor}).body()
