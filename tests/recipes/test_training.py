"""A tiny run: it resumes exactly, exports exactly, and refuses an empty folder."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from kveik_recipe.checkpoint import load_model
from kveik_recipe.induction import plant_induction
from kveik_recipe.model import token_losses
from train_default import main, make_trainer, parse_arguments


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Models this small are slower on several threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def losses(arguments: list[str], stop_at: int | None = None) -> list[float]:
    trainer = make_trainer(parse_arguments(arguments))
    trainer.resume()
    while trainer.progress.step < (stop_at or trainer.schedule().total):
        trainer.progress.log.append(trainer.train_step(trainer.schedule()))
    trainer.save()
    return [record["loss"] for record in trainer.progress.log]


@pytest.mark.parametrize("schedule", ["wsd", "cosine"])
def test_a_resumed_run_has_the_losses_of_an_unbroken_one(
    tiny_arguments: list[str], tmp_path: Path, schedule: str
) -> None:
    arguments = [*tiny_arguments, "--steps", "12", "--schedule", schedule]
    whole = losses([*arguments, "--out", str(tmp_path / "whole")])
    losses([*arguments, "--out", str(tmp_path / "broken")], stop_at=7)
    resumed = losses([*arguments, "--out", str(tmp_path / "broken")])
    assert len(whole) == 12
    assert resumed == whole


def test_planted_heads_copy_a_sequence_that_comes_again(tiny_arguments: list[str]) -> None:
    arguments = [*tiny_arguments, "--steps", "1", "--layers", "4", "--hidden", "64"]
    trainer = make_trainer(parse_arguments(arguments))
    model = trainer.model
    prose, random = (torch.from_numpy(part) for part in trainer.sampler.planting_rows(64, 60))
    rows = torch.cat([random[:, :30], random[:, 1:30]], dim=1)
    inputs, targets = rows[:, :-1], rows[:, 1:]
    with torch.no_grad():
        before = token_losses(model, inputs, targets).view(64, -1)[:, 32:].mean()
        plant_induction(model, prose, random)
        after = token_losses(model, inputs, targets).view(64, -1)[:, 32:].mean()
    assert after < before - 0.03


def test_the_export_is_the_trained_model(tiny_arguments: list[str], tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="compares with transformers")
    assert main([*tiny_arguments, "--steps", "4"]) == 0
    trained = load_model(tmp_path / "run" / "checkpoint.pt").to(torch.bfloat16).float()
    exported = transformers.LlamaForCausalLM.from_pretrained(
        tmp_path / "run" / "export", dtype=torch.float32
    )
    tokens = torch.arange(60).view(2, 30)
    with torch.no_grad():
        torch.testing.assert_close(trained(tokens), exported(tokens).logits, rtol=1e-4, atol=1e-4)
    assert exported.generation_config.eos_token_id == [1]


def test_an_empty_folder_ends_with_its_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--data", str(tmp_path), "--out", str(tmp_path / "run"), "--steps", "1"]
    assert main(arguments) == 2
    assert "no text to train on" in capsys.readouterr().err


@pytest.mark.parametrize("budget", ["now", "time"])
def test_a_time_budget_decays_over_the_last_tenth(tiny_arguments: list[str], budget: str) -> None:
    arguments = [*tiny_arguments, "--minutes", "60"]
    trainer = make_trainer(parse_arguments(arguments))
    trainer.progress.step = 90
    assert not trainer.schedule().decaying(90)
    if budget == "now":
        trainer.options.decay_now = True
    else:
        trainer.started -= 55 * 60
    assert trainer.schedule().decay_start == 90
    assert trainer.schedule().total == 100
