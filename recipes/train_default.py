"""Train a small Llama from a folder of text and export it as a Hugging Face checkpoint folder.

    python recipes/train_default.py --data corpora/train --out runs/default --minutes 95

A run ends after `--steps`, or, with `--minutes`, begins its decay when nine tenths of the time
are over. Killed runs go on from their last checkpoint when the same command is given again.
"""

import argparse
import json
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from kveik_recipe.checkpoint import Progress, load_checkpoint, save_checkpoint
from kveik_recipe.data import (
    PLANTING,
    EmptyCorpusError,
    Sampler,
    build_corpus,
    copying_at,
    read_texts,
    split_validation,
)
from kveik_recipe.export import export_config, export_model
from kveik_recipe.induction import plant_induction
from kveik_recipe.model import Llama, ModelShape, token_losses
from kveik_recipe.schedule import Schedule, decay_from
from kveik_recipe.tokenizer import train_tokenizer
from tokenizers import Tokenizer
from tqdm import tqdm

CHECKPOINT_SECONDS = 90.0
VALIDATE_EVERY = 250
VALIDATION_ROWS = 32
PLANTING_ROWS = 150
FOREVER = 10**9


@dataclass
class Trainer:
    """One run: the model, its optimiser and how far it has come."""

    options: argparse.Namespace
    model: Llama
    sampler: Sampler
    progress: Progress = field(default_factory=Progress)

    def __post_init__(self) -> None:
        self.optimizer = make_optimizer(self.model, self.options)
        self.started = time.monotonic()

    @property
    def checkpoint(self) -> Path:
        return Path(self.options.out) / "checkpoint.pt"

    def resume(self) -> None:
        if not self.checkpoint.exists():
            return
        state = load_checkpoint(self.checkpoint)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.progress = Progress(**state["progress"])
        self.started = time.monotonic() - self.progress.seconds

    def schedule(self) -> Schedule:
        """The schedule as known now: with `--minutes` its end is set when the decay begins."""
        options, progress = self.options, self.progress
        if options.steps:
            return Schedule(options.steps, options.warmup, options.schedule)
        out_of_time = time.monotonic() - self.started >= options.minutes * 60 * 0.9
        if progress.decay_start is None and (options.decay_now or out_of_time):
            progress.decay_start = progress.step
        if progress.decay_start is None:
            return Schedule(FOREVER, options.warmup)
        return decay_from(progress.decay_start, options.warmup)

    def length(self, schedule: Schedule) -> int:
        """Every fourth step, and every step of the decay, fills the whole context; copying is
        learned in a short one."""
        if copying_at(self.progress.step, self.options.curriculum):
            return int(self.options.copying_context)
        whole = self.progress.step % 4 == 3 or schedule.decaying(self.progress.step)
        return int(self.options.context if whole else self.options.short_context)

    def plant(self) -> None:
        """Set the induction heads, once, at their step."""
        curriculum = self.options.curriculum
        if curriculum and self.progress.step == round(PLANTING * curriculum):
            rows = self.sampler.planting_rows(PLANTING_ROWS, self.options.copying_context)
            plant_induction(self.model, *(torch.from_numpy(part) for part in rows))

    def train_step(self, schedule: Schedule) -> dict[str, float]:
        """Accumulate the gradients of a step, clip them, and move."""
        self.plant()
        options, step = self.options, self.progress.step
        length = self.length(schedule)
        rows = max(1, options.batch_tokens // length)
        inputs, targets, weights = (
            torch.from_numpy(np.ascontiguousarray(part))
            for part in self.sampler.batch(step, rows, length)
        )
        micro = max(1, options.micro_tokens // length)
        total_weight, loss_sum = float(weights.sum()), 0.0
        for start in range(0, rows, micro):
            part = slice(start, start + micro)
            with torch.autocast("cpu", torch.bfloat16, enabled=options.bf16):
                losses = token_losses(self.model, inputs[part], targets[part])
            loss = (losses * weights[part].flatten()).sum() / total_weight
            loss.backward()  # type: ignore[no-untyped-call]
            loss_sum += loss.item()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        rate = options.lr * schedule.share(step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.progress.step += 1
        self.progress.tokens += rows * length
        return {"step": step, "loss": loss_sum, "lr": rate, "norm": float(norm)}

    def run(self) -> None:
        """Train to the end of the schedule."""
        saved = time.monotonic()
        bar = tqdm(initial=self.progress.step, unit="step", mininterval=5.0, file=sys.stderr)
        while self.progress.step < (schedule := self.schedule()).total:
            bar.total = schedule.total if schedule.total < FOREVER else None
            record = self.train_step(schedule)
            self.progress.seconds = time.monotonic() - self.started
            record |= {"tokens": self.progress.tokens, "seconds": self.progress.seconds}
            if self.progress.step % VALIDATE_EVERY == 0 or self.progress.step == schedule.total:
                record |= {"validation": self.validate(), "recall": self.recall_accuracy()}
            self.progress.log.append(record)
            bar.set_postfix(loss=f"{record['loss']:.3f}", refresh=False)
            bar.update()
            if "validation" in record:
                bar.write(json.dumps({key: round(value, 5) for key, value in record.items()}))
            if time.monotonic() - saved > CHECKPOINT_SECONDS:
                self.save()
                saved = time.monotonic()
        bar.close()
        self.save()

    @torch.no_grad()
    def validate(self) -> float:
        """Mean loss of prose from the kept-back ends of the texts."""
        length = self.options.short_context
        tokens = self.sampler.corpus.validation
        rows = min(VALIDATION_ROWS, (len(tokens) - 1) // length)
        if rows == 0:
            return float("nan")
        stride = (len(tokens) - 1) // rows
        starts = [number * stride for number in range(rows)]
        parts = np.stack([tokens[start : start + length + 1] for start in starts])
        batch = torch.from_numpy(parts)
        opening = self.sampler.opening_ids()
        if opening:
            batch = torch.cat([torch.tensor([opening] * rows), batch[:, : -len(opening)]], dim=1)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.options.bf16):
            losses = token_losses(self.model, batch[:, :-1], batch[:, 1:])
        return float(losses.mean())

    @torch.no_grad()
    def recall_accuracy(self) -> float:
        """Share of short recall questions whose whole answer has the highest logits."""
        length = self.options.short_context
        rows = [
            self.sampler.probe_row(probe, length + 1)
            for probe in self.sampler.probes(VALIDATION_ROWS)
        ]
        tokens = torch.from_numpy(np.stack([ids for ids, _ in rows]))
        asked = torch.from_numpy(np.stack([weights for _, weights in rows]))[:, 1:] > 0
        with torch.autocast("cpu", torch.bfloat16, enabled=self.options.bf16):
            right = self.model(tokens[:, :-1]).argmax(-1) == tokens[:, 1:]
        return float((right | ~asked).all(dim=1).float().mean())

    def save(self) -> None:
        save_checkpoint(self.checkpoint, self.model, self.optimizer, self.progress)
        log = "\n".join(json.dumps(record) for record in self.progress.log)
        (Path(self.options.out) / "log.jsonl").write_text(log + "\n")


def make_optimizer(model: Llama, options: argparse.Namespace) -> torch.optim.AdamW:
    """AdamW; matrices decay, norms do not."""
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    vectors = [p for p in model.parameters() if p.dim() < 2]
    groups = [
        {"params": matrices, "weight_decay": options.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=options.lr, betas=(0.9, 0.95), fused=True)


def prepare_tokenizer(options: argparse.Namespace, texts: list[str]) -> Tokenizer:
    """The tokenizer given or already trained for this run, or a new one."""
    path = options.tokenizer or Path(options.out) / "tokenizer.json"
    if path.exists():
        return Tokenizer.from_file(str(path))
    tokenizer = train_tokenizer(texts, options.vocab_size, not options.no_first_token)
    path.parent.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(path))
    return tokenizer


def make_trainer(options: argparse.Namespace) -> Trainer:
    torch.manual_seed(options.seed)
    train_texts, _ = split_validation(texts := read_texts(options.data))
    tokenizer = prepare_tokenizer(options, train_texts)
    shape = ModelShape(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=options.hidden,
        intermediate_size=options.intermediate,
        num_layers=options.layers,
        num_heads=options.heads,
        num_kv_heads=options.kv_heads,
        context=options.context,
    )
    export_config(shape, tokenizer, options.out / "export", not options.no_first_token)
    model = Llama(shape)
    if options.compile:
        model.compile_parts()
    corpus = build_corpus(texts, tokenizer)
    sampler = Sampler(corpus, options.seed, not options.no_first_token, options.curriculum)
    return Trainer(options, model, sampler)


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--data", type=Path, required=True, help="folder with .txt files to train on")
    add("--out", type=Path, required=True, help="folder for checkpoint, log and export/")
    add("--tokenizer", type=Path, help="a tokenizer.json to use instead of training one")
    length = parser.add_mutually_exclusive_group(required=True)
    length.add_argument("--steps", type=int, default=0, help="optimiser steps of the whole run")
    length.add_argument("--minutes", type=float, default=0.0, help="time budget of the whole run")
    add("--decay-now", action="store_true", help="with --minutes: begin the decay at once")
    add("--schedule", choices=["wsd", "cosine"], default="wsd", help="with --steps")
    add("--warmup", type=int, default=200, help="steps to the peak learning rate")
    add("--lr", type=float, default=3e-3, help="peak learning rate")
    add("--weight-decay", type=float, default=0.1)
    add("--curriculum", type=int, default=1500, help="steps of English before copying is taught")
    add("--batch-tokens", type=int, default=4096, help="tokens per step")
    add("--micro-tokens", type=int, default=4096, help="tokens per accumulated part of a step")
    add("--context", type=int, default=1024)
    add("--short-context", type=int, default=512, help="context of three steps in four")
    add("--copying-context", type=int, default=128, help="context of the copying phase")
    add("--vocab-size", type=int, default=4096)
    add("--hidden", type=int, default=256)
    add("--intermediate", type=int, default=768)
    add("--layers", type=int, default=6)
    add("--heads", type=int, default=4)
    add("--kv-heads", type=int, default=2)
    add("--no-first-token", action="store_true", help="train without the dedicated first token")
    add("--seed", type=int, default=1)
    add("--threads", type=int, default=0, help="torch threads (0: torch decides)")
    add("--no-bf16", dest="bf16", action="store_false", help="float32 without autocast")
    add("--no-compile", dest="compile", action="store_false", help="without torch.compile")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    options = parse_arguments(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    try:
        trainer = make_trainer(options)
    except EmptyCorpusError as error:
        print(f"train_default: {error}", file=sys.stderr)
        return 2
    trainer.resume()
    print(f"{trainer.model.num_parameters:,} parameters", file=sys.stderr)
    trainer.run()
    tokenizer = trainer.sampler.corpus.tokenizer
    export_model(trainer.model, tokenizer, options.out / "export", not options.no_first_token)
    return 0


if __name__ == "__main__":
    sys.exit(main())
