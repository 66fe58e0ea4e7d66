"""What joining modules costs in quality, against computing the whole prompt (figure 2).

    continuation   passages of a held-out novel as modules of 64 to 448 tokens, 2 to 8 of them, in
                   a shuffled order, all that fit into 1024 tokens; the 64 tokens of the novel
                   behind the last one are scored: Kullback-Leibler divergence from the
                   probabilities of `exact` over the whole vocabulary, and perplexity
    recall         modules of records, shuffled; a question for a key of any of them, in a chat

Bars, at modules of 256 tokens and at most 900 in all: `link` (one block) recovers at least 70 % of
the divergence of `independent` where that is at least 0.02 nats, and loses at most 2 points of
recall against `exact`. Everything goes through the engine (scheduler, cache, native kernels); the
logits of all rows are read where the runner captures the forward pass (watched.py).

Usage: python bench/modules_quality.py [--text FILE] [--samples N] [--questions N] [--quick]
"""

from __future__ import annotations

import math
import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from joined import prompt, request, run
from novel import EMBEDDED, encode, ids_of, note_text, opening, parser_with_text, picture, there
from report import ROOT, Report
from watched import Watch, watched

sys.path.insert(0, str(ROOT / "recipes"))

from kveik_recipe.recall import WordPool, collect_words, make_key, make_value

from kveik import LLM
from kveik.engine.modules.joins import Join
from kveik.engine.modules.layout import Layout

JOINS: tuple[Join, ...] = ("independent", "link", "link2")
ALL: tuple[Join, ...] = ("exact", *JOINS)
SHAPES = (  # (tokens of a module, modules): what fits into 1024 with 64 tokens behind
    *((64, 2), (64, 4), (64, 8)),
    *((128, 2), (128, 4), (128, 6)),
    *((256, 2), (256, 3)),
    (448, 2),
)
BARRED = 256  # tokens of a module at which the bars hold
GAP, RECOVERED, LOST = 0.02, 70.0, 2.0
CONTINUATION = 64


@dataclass
class Subject:
    llm: LLM
    watch: Watch

    def rows(self, layout: Layout, how: Join, count: int) -> Any:
        """Log-probabilities of the last `count` rows. They are computed in the prompt: `forget`
        sees to it that nobody has asked the same before."""
        run(self.llm, request(layout, how, self.llm.engine.info.block_size))
        return self.watch.last(count)

    def forget(self) -> None:
        self.llm.engine.reset_cache()


# ---- continuation -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Quality:
    """Means over samples: nats of divergence, and of loss, by way of joining."""

    divergence: dict[str, float]
    loss: dict[str, float]

    def recovered(self, how: Join) -> float:
        """Share of the divergence of `independent` that is gone, %."""
        return 100 * (1 - self.divergence[how] / self.divergence["independent"])


def passages(
    rng: random.Random, novel: Sequence[int], length: int, count: int
) -> tuple[list[list[int]], list[int]]:
    """Neighbouring modules in any order, and what follows the last of them in the novel."""
    start = rng.randrange(len(novel) - length * count - CONTINUATION)
    order = rng.sample(range(count), count)
    starts = [start + length * number for number in order]
    behind = starts[-1] + length
    modules = [list(novel[at : at + length]) for at in starts]
    return modules, list(novel[behind : behind + CONTINUATION])


def continuation(
    subject: Subject, novel: Sequence[int], length: int, count: int, samples: int
) -> Quality:
    rng = random.Random(f"{length} {count}")
    divergence: dict[str, list[float]] = {how: [] for how in JOINS}
    loss: dict[str, list[float]] = {how: [] for how in ALL}
    for _ in range(samples):
        modules, text = passages(rng, novel, length, count)
        layout = prompt(opening(EMBEDDED), modules, text)
        subject.forget()
        rows = {how: subject.rows(layout, how, CONTINUATION) for how in ALL}
        truth = rows["exact"]
        for how, found in rows.items():
            loss[how].append(-float(found[np.arange(CONTINUATION - 1), text[1:]].mean()))
            if how != "exact":
                divergence[how].append(float((np.exp(truth) * (truth - found)).sum(1).mean()))
    return Quality(
        {how: float(np.mean(values)) for how, values in divergence.items()},
        {how: float(np.mean(values)) for how, values in loss.items()},
    )


def measure_continuation(
    report: Report, subject: Subject, novel: Sequence[int], samples: int
) -> dict[tuple[int, int], Quality]:
    found: dict[tuple[int, int], Quality] = {}
    lines = [
        "| modules | KL independent | link | link2 | recovered by link | by link2 | "
        "PPL exact | independent | link | link2 |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for length, count in SHAPES:
        quality = found[length, count] = continuation(subject, novel, length, count, samples)
        nats = [f"{quality.divergence[how]:.4f}" for how in JOINS]
        shares = [f"{quality.recovered(how):.0f} %" for how in JOINS[1:]]
        perplexities = [f"{math.exp(quality.loss[how]):.2f}" for how in ALL]
        cells = " | ".join((*nats, *shares, *perplexities))
        lines.append(f"| {count} x {length} | {cells} |")
        report_continuation(report, f"{count} modules of {length}", length, quality)
    report.text("\n".join(lines))
    return found


def report_continuation(report: Report, name: str, length: int, quality: Quality) -> None:
    gap = quality.divergence["independent"]
    report.figure(f"{name}: KL of independent", gap, "nats")
    report.figure(
        f"{name}: recovered by link",
        quality.recovered("link"),
        "%",
        bar=RECOVERED if length == BARRED and gap >= GAP else None,
        link=quality.divergence["link"],
        link2=quality.divergence["link2"],
        independent=gap,
    )


def draw(found: dict[tuple[int, int], Quality]) -> None:
    with picture("modules_quality") as axes:
        if axes is None:
            return
        names = [f"{count} x {length}" for length, count in found]
        for place, how in enumerate(JOINS):
            values = [quality.divergence[how] for quality in found.values()]
            axes.bar(np.arange(len(names)) + 0.27 * (place - 1), values, 0.25, label=how)
        axes.set_xticks(range(len(names)), names, fontsize=7)
        axes.set(ylabel="KL from exact, nats", xlabel="modules x tokens")
        axes.legend(fontsize=7)


# ---- recall -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Question:
    """modules: of records, in the order in which they stand; text: the question and its answer, of
    which the answer is the last `answer` tokens."""

    modules: list[list[int]]
    text: list[int]
    answer: int
    place: int  # which module holds the key


def records(rng: random.Random, pool: WordPool, length: int, used: dict[str, str]) -> list[str]:
    """Keys of records that fill a module of about so many tokens; they go into `used`."""
    keys: list[str] = []
    size = 0
    while True:
        key, value = make_key(rng, pool), make_value(rng, pool)
        size += len(encode(EMBEDDED, f"{key}: {value}\n"))
        if size > length:
            return keys
        if key not in used:
            used[key] = value
            keys.append(key)


def question(rng: random.Random, pool: WordPool, length: int, count: int) -> Question:
    known: dict[str, str] = {}
    groups = [records(rng, pool, length, known) for _ in range(count)]
    place = rng.randrange(count)
    key = rng.choice(groups[place])
    texts = ["".join(f"{one}: {known[one]}\n" for one in keys) for keys in groups]
    answer = encode(EMBEDDED, f"The {key} is {known[key]}.<|end|>")
    asked = encode(EMBEDDED, f"What is the {key}?<|end|><|assistant|>")
    return Question([encode(EMBEDDED, text) for text in texts], asked + answer, len(answer), place)


def answered(subject: Subject, one: Question, how: Join) -> Any:
    """Log-probabilities of the rows that predict the answer."""
    lead = opening(EMBEDDED) + encode(EMBEDDED, "<|user|>")
    layout = prompt(lead, one.modules, one.text)
    return subject.rows(layout, how, one.answer + 1)[:-1]


@dataclass(frozen=True)
class Recall:
    """right: % of the answers that greedy decoding would write; divergence: from `exact` over their
    tokens, nats. By way of joining, of the same questions."""

    right: dict[str, float]
    divergence: dict[str, float]


def recall(subject: Subject, pool: WordPool, length: int, count: int, questions: int) -> Recall:
    rng = random.Random(f"recall {length} {count}")
    right: dict[str, list[bool]] = {how: [] for how in ALL}
    divergence: dict[str, list[float]] = {how: [] for how in JOINS}
    for _ in range(questions):
        one = question(rng, pool, length, count)
        subject.forget()
        rows = {how: answered(subject, one, how) for how in ALL}
        truth = rows["exact"]
        for how, found in rows.items():
            right[how].append(bool((found.argmax(1) == one.text[-one.answer :]).all()))
            if how != "exact":
                divergence[how].append(float((np.exp(truth) * (truth - found)).sum(1).mean()))
    return Recall(
        {how: 100 * float(np.mean(values)) for how, values in right.items()},
        {how: float(np.mean(values)) for how, values in divergence.items()},
    )


def measure_recall(report: Report, subject: Subject, text: Path, questions: int) -> None:
    _, pool = collect_words([text.read_text(encoding="utf-8-sig")])
    lines = [
        "| recall, modules | exact | independent | link | link2 | "
        "KL over the answer, independent | link | link2 |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for length, count in SHAPES:
        if length == 448:  # a hundred lines: far beyond what the model was trained to look up in
            continue
        found = recall(subject, pool, length, count, questions)
        shares = [f"{found.right[how]:.1f} %" for how in ALL]
        nats = [f"{found.divergence[how]:.4f}" for how in JOINS]
        lines.append(f"| {count} x {length} | {' | '.join((*shares, *nats))} |")
        report_recall(report, f"{count} modules of {length}", length, found)
    report.text("\n".join(lines))


def report_recall(report: Report, name: str, length: int, found: Recall) -> None:
    gap = found.divergence["independent"]
    report.figure(
        f"recall, {name}: lost by link against exact",
        found.right["exact"] - found.right["link"],
        "points",
        bar=LOST if length == BARRED else None,
        sense="<=",
        right=found.right,
    )
    report.figure(
        f"answers, {name}: KL recovered by link",
        100 * (1 - found.divergence["link"] / gap),
        "%",
        bar=RECOVERED if length == BARRED and gap >= GAP else None,
        divergence=found.divergence,
    )


def main() -> None:
    parser = parser_with_text(__doc__)
    parser.add_argument("--samples", type=int, help="prompts of every shape; default: 100")
    parser.add_argument("--questions", type=int, help="of every shape; default: 200")
    options = parser.parse_args()
    if not there(options.text):
        return
    samples = options.samples or (3 if options.quick else 100)
    questions = options.questions or (10 if options.quick else 200)
    report = Report("modules_quality")
    subject = Subject(*watched(kv_memory=128 * 2**20, max_num_batched_tokens=2048))
    novel = ids_of(EMBEDDED, options.text, 50_000)
    found = measure_continuation(report, subject, novel, samples)
    measure_recall(report, subject, options.text, questions)
    if not options.quick:
        draw(found)
    note_text(report, options.text, len(novel))
    report.note(
        f"{samples} prompts and {questions} questions of every shape. 512 tokens do not fit twice "
        "into the context of 1,024; 448 do. The first module stands behind the lead and is exact "
        "in every way of joining."
    )
    report.finish()


if __name__ == "__main__":
    main()
