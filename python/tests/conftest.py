"""Learners that a failed test left behind end with it."""

from __future__ import annotations

import sys
from typing import Iterator

import agent
import pytest

if agent.PACKAGE:
    sys.path.insert(0, agent.PACKAGE)


@pytest.fixture(autouse=True)
def _no_learner_is_left(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    started = []
    original = agent.Agent.__init__

    def init(self: agent.Agent, *given: object) -> None:
        original(self, *given)  # type: ignore[arg-type]
        started.append(self)

    monkeypatch.setattr(agent.Agent, "__init__", init)
    yield
    for one in started:
        one.connection.close()
        if one.process is not None and one.process.poll() is None:
            one.process.kill()
            one.process.wait()
