"""Measure an exported checkpoint folder: held-out text, recall by distance, chat, samples.

    python recipes/evaluate.py --model runs/default/export --text corpora/eval \\
        --words corpora/train --out runs/default/results.json

The folder is loaded with transformers, so the figures are those of the exported weights.
"""

import argparse
import json
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import torch
from kveik_recipe.data import find_paragraphs, read_texts
from kveik_recipe.dialogue import find_dialogues
from kveik_recipe.recall import Probe, WordPool, collect_words, make_probe
from torch import Tensor
from tqdm import tqdm
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

DISTANCES = {"1-5": (1, 5), "6-10": (6, 10), "11-20": (11, 20), "21-30": (21, 30)}
QUESTIONS = (
    "Good morning! How do you do?",
    "What is your name?",
    "Tell me about the sea.",
    "Where have you been all day?",
    "Do you love her?",
    "Please help me.",
    "What time is it?",
    "Why are you so sad?",
)
OPENINGS = (
    "It was a cold morning, and",
    "The prince looked at her and",
    "“My dear friend,” said the old man,",
    "CHAPTER I\n\n",
)


@dataclass(frozen=True)
class Subject:
    """The model under measurement."""

    model: Any
    tokenizer: PreTrainedTokenizerFast
    seed: int

    @property
    def context(self) -> int:
        return int(self.model.config.max_position_embeddings)

    @property
    def opening(self) -> list[int]:
        bos = self.tokenizer.bos_token_id
        return [] if bos is None else [bos]

    @property
    def end(self) -> int:
        return int(self.tokenizer.eos_token_id)

    def encode(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text, add_special_tokens=False, verbose=False))


def windows(count: int, context: int, stride: int) -> Iterator[tuple[int, int, int]]:
    """Start, first scored token and end of each window over `count` tokens."""
    scored = 0
    for start in range(0, count, stride):
        end = min(start + context, count)
        yield start, scored, end
        scored = end
        if end == count:
            return


@torch.no_grad()
def text_loss(subject: Subject, ids: Sequence[int], stride: int) -> tuple[float, int]:
    """Summed loss in nats and the number of scored tokens; without a first token, the very
    first token of a text cannot be scored."""
    opening = subject.opening
    room = subject.context - len(opening)
    total, scored = 0.0, 0
    for start, first, end in tqdm(list(windows(len(ids), room, min(stride, room)))):
        row = torch.tensor([opening + list(ids[start:end])])
        logits = subject.model(row).logits[0, :-1].float()
        losses = torch.nn.functional.cross_entropy(logits, row[0, 1:], reduction="none")
        wanted = losses[max(0, first - start + len(opening) - 1) :]
        total += float(wanted.sum())
        scored += len(wanted)
    return total, scored


def measure_text(subject: Subject, text: str, stride: int) -> dict[str, float]:
    """Perplexity per token and bits per byte of a whole text."""
    ids = subject.encode(text)
    nats, scored = text_loss(subject, ids, stride)
    size = len(text.encode())
    return {
        "bytes": size,
        "tokens": len(ids),
        "scored": scored,
        "loss": nats / scored,
        "perplexity": math.exp(nats / scored),
        "bits_per_byte": nats / scored * len(ids) / size / math.log(2),
    }


@torch.no_grad()
def answers_rightly(subject: Subject, probe: Probe) -> bool | None:
    """Whether greedy decoding writes the whole answer; None if the probe exceeds the context."""
    prompt = subject.opening + subject.encode(probe.prompt)
    answer = subject.encode(probe.answer)
    if len(prompt) + len(answer) > subject.context:
        return None
    row = torch.tensor([prompt + answer])
    best: Tensor = subject.model(row).logits[0, len(prompt) - 1 : -1].argmax(-1)
    return bool((best == row[0, len(prompt) :]).all())


def measure_recall(
    subject: Subject, pool: WordPool, prose: Sequence[str], count: int
) -> dict[str, float]:
    """Exact-answer share for every distance, plain and chat, with and without prose between."""
    rng = Random(f"{subject.seed} recall")
    results: dict[str, float] = {}
    everything: list[bool] = []
    for name, (low, high) in DISTANCES.items():
        for chat in (False, True):
            for between in (False, True):
                outcomes: list[bool] = []
                while len(outcomes) < count:
                    text = rng.choice(prose) if between else None
                    probe = make_probe(rng, pool, text, rng.randint(low, high), chat)
                    right = answers_rightly(subject, probe)
                    if right is not None:
                        outcomes.append(right)
                form = ("chat" if chat else "plain") + (", prose between" if between else "")
                results[f"{name} lines, {form}"] = sum(outcomes) / count
                everything += outcomes
    results["all"] = sum(everything) / len(everything)
    return results


@torch.no_grad()
def generate(subject: Subject, prompt: Sequence[int], limit: int, greedy: bool) -> list[int]:
    """Tokens after the prompt, up to and with the end of the turn."""
    out = subject.model.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        max_new_tokens=limit,
        do_sample=not greedy,
        **({} if greedy else {"temperature": 0.8, "top_p": 0.95}),
    )
    return [int(token) for token in out[0, len(prompt) :]]


def chat_prompt(subject: Subject, message: str) -> list[int]:
    turns = [{"role": "user", "content": message}]
    text = subject.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    return subject.encode(str(text))


def measure_turns(
    subject: Subject, messages: Sequence[str], limit: int
) -> dict[str, dict[str, float]]:
    """How often an answer ends its turn within `limit` tokens, and how long ended ones are."""
    results = {}
    for greedy in (False, True):
        torch.manual_seed(subject.seed)
        answers = [
            generate(subject, chat_prompt(subject, message), limit, greedy)
            for message in tqdm(messages)
        ]
        ended = [len(answer) for answer in answers if answer[-1] == subject.end]
        results["greedy" if greedy else "sampled"] = {
            "answers": len(answers),
            "ended": len(ended) / len(answers),
            "mean_tokens": sum(ended) / max(1, len(ended)),
        }
    return results


def write_samples(subject: Subject) -> list[dict[str, str]]:
    """Continuations of a few openings and answers to a few questions."""
    torch.manual_seed(subject.seed)
    prompts = [(text, subject.opening + subject.encode(text)) for text in OPENINGS]
    prompts += [(text, chat_prompt(subject, text)) for text in QUESTIONS]
    return [
        {
            "prompt": text,
            "answer": subject.tokenizer.decode(
                generate(subject, ids, 120, greedy=False), skip_special_tokens=True
            ),
        }
        for text, ids in prompts
    ]


def load_subject(folder: Path, seed: int) -> Subject:
    model: Any = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    return Subject(model.eval(), tokenizer, seed)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """All figures of the model card."""
    subject = load_subject(options.model, options.seed)
    held_out = "\n\n".join(read_texts(options.text))
    _, pool = collect_words(read_texts(options.words))
    speeches = [run[0] for run in find_dialogues(held_out)]
    messages = [*QUESTIONS, *Random(options.seed).sample(speeches, options.messages)]
    paragraphs = find_paragraphs(held_out)
    return {
        "recall": measure_recall(subject, pool, paragraphs, options.probes),
        "turns": measure_turns(subject, messages, options.limit),
        "samples": write_samples(subject),
        "text": measure_text(subject, held_out, subject.context),
        "text_overlapping": measure_text(subject, held_out[: options.overlapping], 512),
    }


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model", type=Path, required=True, help="exported checkpoint folder")
    add("--text", type=Path, required=True, help="folder with held-out .txt files")
    add("--words", type=Path, required=True, help="folder the model was trained on")
    add("--out", type=Path, required=True, help="JSON file for the figures")
    add("--probes", type=int, default=50, help="recall questions per distance and form")
    add("--messages", type=int, default=92, help="chat messages from the held-out dialogue")
    add("--limit", type=int, default=256, help="longest answer in tokens")
    add("--overlapping", type=int, default=400_000, help="characters of the overlapping figure")
    add("--seed", type=int, default=7)
    add("--threads", type=int, default=0, help="torch threads (0: torch decides)")
    return parser.parse_args()


def main() -> int:
    options = parse_arguments()
    if options.threads:
        torch.set_num_threads(options.threads)
    results = measure(options)
    options.out.write_text(json.dumps(results, indent=2, ensure_ascii=False) + "\n")
    print(json.dumps(results, indent=2, ensure_ascii=False))
    return 0


if __name__ == "__main__":
    sys.exit(main())
