"""Trainers of Hugging Face and Lightning, as a site starts them."""

from __future__ import annotations

from pathlib import Path
from typing import Optional

import pytest
from agent import Agent, floats, unfloats

import consortia

HUGGING_FACE = """
    import torch, transformers, consortia
    transformers.logging.set_verbosity_error()
    class Rows(torch.utils.data.Dataset):
        def __init__(self, count): self.count = count
        def __len__(self): return self.count
        def __getitem__(self, at): return {"x": torch.tensor([1.0, float(at % 2)]), "labels": torch.tensor(at % 2)}
    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.dense = torch.nn.Linear(2, 2)
        def forward(self, x, labels):
            logits = self.dense(x)
            return {"loss": torch.nn.functional.cross_entropy(logits, labels), "logits": logits}
    def measure(found):
        return {"accuracy": float((found.predictions.argmax(1) == found.label_ids).mean()), "share": 0.25, "secret": 1.0}
    arguments = transformers.TrainingArguments("out", num_train_epochs=7, learning_rate=0.1, per_device_train_batch_size=4, report_to=[], save_strategy="no", disable_tqdm=True, use_cpu=True, lr_scheduler_type="constant")
    trainer = transformers.Trainer(Model(), arguments, train_dataset=Rows(16), eval_dataset=Rows(6), compute_metrics=measure)
    consortia.patch(trainer, before=lambda task: print(task.kind, flush=True))
    trainer.train()
    print("steps", trainer.state.global_step)
"""

LIGHTNING = """
    import logging, torch, pytorch_lightning as lightning, consortia
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    class Model(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.dense = torch.nn.Linear(2, 2)
            self.rates = []
        def training_step(self, batch, index):
            self.rates.append(self.optimizers().param_groups[0]["lr"])
            return torch.nn.functional.cross_entropy(self.dense(batch[0]), batch[1])
        def validation_step(self, batch, index):
            logits = self.dense(batch[0])
            self.log("val_loss", torch.nn.functional.cross_entropy(logits, batch[1]))
            self.log("val_accuracy", (logits.argmax(1) == batch[1]).float().mean())
        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)
    y = torch.arange(16) % 2
    rows = torch.utils.data.TensorDataset(torch.stack([torch.ones(16), y.float()], 1), y)
    loader = torch.utils.data.DataLoader(rows, batch_size=4)
    trainer = lightning.Trainer(max_epochs=7, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0)
    consortia.patch(trainer)
    model = Model()
    trainer.fit(model, loader, loader)
    print("rates", len(model.rates), sorted(set(model.rates)))
"""
LAYOUT = [{"name": "dense.weight", "shape": [2, 2]}, {"name": "dense.bias", "shape": [2]}]


def start(script: str, tmp_path: Path) -> Agent:
    return Agent.launch(script, tmp_path, HOME=str(tmp_path), OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1")


def test_a_trainer_of_hugging_face_works_on_tasks(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    agent = start(HUGGING_FACE, tmp_path)
    agent.greet()
    agent.prepare(LAYOUT, metrics=["share"])
    zero = floats(*[0.0] * 6)
    header, body = agent.ask("train", zero, epochs=2)
    assert header["type"] == "result" and header["examples"] == 16 and 0 < header["metrics"]["loss"] < 0.7, header
    again, same = agent.ask("train", zero, epochs=2)
    assert (again["metrics"], same) == (header["metrics"], body), "nothing is kept between tasks"
    _, still = agent.ask("train", zero, epochs=2, learning_rate_scale=0)
    assert still == zero
    header, _ = agent.ask("evaluate", zero)
    assert header["examples"] == 6 and set(header["metrics"]) == {"loss", "accuracy", "share"}
    assert abs(header["metrics"]["loss"] - 0.6931) < 1e-3 and header["metrics"]["accuracy"] == 0.5
    code, out, err = agent.end()
    assert code == 0 and "steps 8" in out and out.count("train\n") == 3, err


def test_a_trainer_of_lightning_works_on_tasks(tmp_path: Path) -> None:
    pytest.importorskip("pytorch_lightning")
    agent = start(LIGHTNING, tmp_path)
    agent.greet()
    agent.prepare(LAYOUT)
    zero = floats(*[0.0] * 6)
    header, body = agent.ask("train", zero, epochs=2)
    assert header["type"] == "result" and header["examples"] == 16 and 0 < header["metrics"]["loss"] < 0.7, header
    again, same = agent.ask("train", zero, epochs=2)
    assert (again["metrics"], same) == (header["metrics"], body), "nothing is kept between tasks"
    _, other = agent.ask("train", zero, epochs=1, learning_rate_scale=0.5)
    assert other != zero and max(map(abs, unfloats(other))) < max(map(abs, unfloats(body)))
    header, _ = agent.ask("evaluate", zero)
    assert header["examples"] == 16 and header["metrics"]["accuracy"] == 0.5
    assert abs(header["metrics"]["loss"] - 0.6931) < 1e-3
    code, out, err = agent.end()
    assert code == 0 and "rates 20 [0.05, 0.1]" in out, err


def test_of_a_model_with_adapters_the_adapters_alone_travel(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    pytest.importorskip("peft")
    script = HUGGING_FACE.replace(
        "trainer = transformers.Trainer(Model()",
        "import peft\n    adapted = peft.get_peft_model(Model(), peft.LoraConfig(r=1, target_modules=['dense']))\n    trainer = transformers.Trainer(adapted",
    )
    agent = start(script, tmp_path)
    agent.greet()
    layout = agent.prepare([])
    assert [(one["name"].split(".")[-3:], one["shape"]) for one in layout] == [
        (["lora_A", "default", "weight"], [1, 2]),
        (["lora_B", "default", "weight"], [2, 1]),
    ]
    header, body = agent.ask("train", floats(1, 1, 0, 0))
    assert header["type"] == "result" and len(body) == 16 and body != floats(1, 1, 0, 0)
    agent.end()


def test_what_is_no_trainer_is_said() -> None:
    with pytest.raises(consortia.Error, match="is not a trainer that is known here"):
        consortia.patch(object())


def test_records_are_those_that_samplers_choose() -> None:
    from consortia._patch import _records

    class Loader:
        def __init__(self, dataset: int, sampler: Optional[int] = None, batch_size: int = 4, drop_last: bool = False) -> None:
            self.dataset, self.batch_size, self.drop_last = range(dataset), batch_size, drop_last
            self.sampler = None if sampler is None else range(sampler)

    assert _records(Loader(64), "records") == 64
    assert _records(Loader(64, sampler=8), "records") == 8
    assert _records(Loader(64, sampler=10, drop_last=True), "records") == 8
    assert _records(Loader(64), "records", 3) == 12
    assert _records([Loader(64, sampler=6), Loader(5)], "records", [float("inf"), 1]) == 6 + 4
