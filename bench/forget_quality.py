"""What forgetting a middle costs in quality, against computing what is left again.

    continuation     a held-out novel without a stretch of its middle; the 64 tokens behind the rest
                     are scored: Kullback-Leibler divergence from the probabilities of the shorter
                     text computed anew, over the whole vocabulary, and perplexity. Beside it the
                     whole text with nothing forgotten, to see what the stretch is worth
    again and again  a text that forgets its oldest 64 tokens whenever 64 more come, up to the depth
                     at which kveik computes anew: does what is owed to what is gone add up?
    recall           records before, in and behind the gap, and a question for one of them

Everything goes through the engine (scheduler, cache, kernels); the logits of all rows are read
where the runner captures the forward pass (watched.py). Times: forget.py.

Usage: python bench/forget_quality.py [--text FILE] [--samples N] [--questions N] [--quick]
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gapped import UNSTORED, Case, gapped
from joined import FIRST_TOKEN, ordinary, run
from modules_quality import WordPool, collect_words, records
from novel import EMBEDDED, encode, ids_of, note_text, opening, parser_with_text, there
from report import Report
from watched import Watch, watched

from kveik import LLM
from kveik.cache.directive import PLAIN
from kveik.engine.gaps import DEEPEST, Laid, aligned, closed, followed
from kveik.engine.request import Request

STEP = 64  # tokens that go and come, again and again
TEXTS = (
    *(Case(16, 128, 256), Case(64, 128, 256), Case(256, 128, 256)),
    *(Case(64, 256, 64), Case(64, 256, 256), Case(64, 256, 512)),
    *(Case(64, 512, 128), Case(64, 512, 256)),
)
RECORDS = (Case(64, 64, 64), Case(128, 128, 128), Case(128, 256, 128))


@dataclass
class Subject:
    llm: LLM
    watch: Watch

    def rows(self, one: Request, count: int) -> Any:
        """Log-probabilities of the last `count` rows, which are computed in the prompt."""
        run(self.llm, one)
        return self.watch.last(count)

    def forget(self) -> None:
        self.llm.engine.reset_cache()


def divergence(truth: Any, found: Any) -> float:
    """Of `found` from `truth`, mean nats a row."""
    return float((np.exp(truth) * (truth - found)).sum(1).mean())


def _lists(*names: str) -> dict[str, list[float]]:
    return {name: [] for name in names}


def measure_continuation(
    report: Report, subject: Subject, novel: Sequence[int], samples: int
) -> None:
    lines = [
        "| stay + stay, go | KL gap closed | KL nothing forgotten | PPL computed again | "
        "gap closed | nothing forgotten |",
        "|---|---|---|---|---|---|",
    ]
    for case in TEXTS:
        rng, nats = random.Random(f"{case}"), _lists("closed", "whole")
        losses = _lists("again", "closed", "whole")
        for _ in range(samples):
            size = case.settled + case.new - 1
            start = rng.randrange(len(novel) - size)
            whole = [*opening(EMBEDDED), *novel[start : start + size]]
            subject.forget()
            rows = {
                "whole": subject.rows(ordinary(whole), case.new),
                "closed": subject.rows(gapped(whole, case), case.new),
            }
            subject.forget()
            rows["again"] = subject.rows(ordinary(case.shorter(whole)), case.new)
            places = np.arange(case.new - 1), whole[-case.new + 1 :]
            for way, found in rows.items():
                losses[way].append(-float(found[places].mean()))
                if way != "again":
                    nats[way].append(divergence(rows["again"], found))
        closed_gap, nothing = (float(np.mean(nats[way])) for way in ("closed", "whole"))
        cells = [math.exp(float(np.mean(losses[way]))) for way in ("again", "closed", "whole")]
        told = " | ".join(f"{one:.2f}" for one in cells)
        lines.append(
            f"| {case.before} + {case.behind}, {case.gone} | {closed_gap:.4f} | {nothing:.4f} | "
            f"{told} |"
        )
        report.figure(
            f"continuation, {case.name}: KL from computing again, gap closed",
            closed_gap,
            "nats",
            nothing_forgotten=nothing,
            perplexity=cells[1],
            perplexity_again=cells[0],
        )
    report.text("\n".join(lines))


def measure_chain(report: Report, subject: Subject, novel: Sequence[int], samples: int) -> None:
    """From 512 tokens on: the oldest 64 behind the first 16 go, 64 new ones come."""
    kept, size, rng = 16, 512, random.Random("chain")
    nats: list[list[float]] = [[] for _ in range(DEEPEST)]
    for _ in range(samples):
        start = rng.randrange(len(novel) - size - DEEPEST * STEP)
        text = [*opening(EMBEDDED), *novel[start : start + size + DEEPEST * STEP]]
        said, more = text[:size], text[size:]
        before = Laid.plain(said)
        subject.forget()
        run(subject.llm, ordinary(said))
        for number in range(DEEPEST):
            new = more[number * STEP :][:STEP]
            whole = followed(before, [*before.tokens, *new])
            shorter = [*whole.tokens[:kept], *whole.tokens[kept + STEP :]]
            settled = len(whole.tokens) - STEP
            joined = closed(whole, aligned(whole.tokens, shorter), settled, PLAIN)
            assert joined is not None
            request = Request(tuple(shorter), FIRST_TOKEN, joined=joined)
            found = subject.rows(request, STEP)
            again = Request(tuple(shorter), FIRST_TOKEN, directive=UNSTORED, reuse=False)
            nats[number].append(divergence(subject.rows(again, STEP), found))
            before = Laid(shorter, joined.stretches, joined.units)
    means = [float(np.mean(values)) for values in nats]
    report.text(
        "| gaps so far | " + " | ".join(str(n + 1) for n in range(DEEPEST)) + " |\n"
        "|---|" + "---|" * DEEPEST + "\n"
        "| KL from computing again | " + " | ".join(f"{one:.4f}" for one in means) + " |"
    )
    for number in (0, DEEPEST - 1):
        title = f"again and again: KL from computing again after {number + 1} gaps of {STEP} tokens"
        report.figure(title, means[number], "nats")


def measure_recall(report: Report, subject: Subject, text: Path, questions: int) -> None:
    _, pool = collect_words([text.read_text(encoding="utf-8-sig")])
    lines = [
        "| records before, gone, behind (tokens) | of a record that stays: computed again | "
        "gap closed | nothing forgotten | of one that went: computed again | gap closed | "
        "nothing forgotten |",
        "|---|---|---|---|---|---|---|",
    ]
    for shape in RECORDS:
        found = {
            where: recall(subject, pool, shape, where, questions) for where in ("stays", "went")
        }
        cells = [f"{found[where][way]:.0f} %" for where in found for way in found[where]]
        name = f"{shape.before}, {shape.gone}, {shape.behind}"
        lines.append(f"| {name} | {' | '.join(cells)} |")
        stays = found["stays"]
        report.figure(
            f"recall, records of {name} tokens: lost of what stays",
            stays["again"] - stays["closed"],
            "points",
            stays=stays,
            went=found["went"],
        )
    report.text("\n".join(lines))


def recall(
    subject: Subject, pool: WordPool, shape: Case, where: str, questions: int
) -> dict[str, float]:
    """% of the answers that greedy decoding would write, by way."""
    rng = random.Random(f"recall {shape}")
    right: dict[str, list[bool]] = {"again": [], "closed": [], "whole": []}
    for _ in range(questions):
        known: dict[str, str] = {}
        lengths = (shape.before, shape.gone, shape.behind)
        groups = [records(rng, pool, length, known) for length in lengths]
        key = rng.choice(groups[1] if where == "went" else groups[0] + groups[2])
        texts = [
            encode(EMBEDDED, "".join(f"{one}: {known[one]}\n" for one in keys)) for keys in groups
        ]
        lead = opening(EMBEDDED) + encode(EMBEDDED, "<|user|>")
        answer = encode(EMBEDDED, f"The {key} is {known[key]}.<|end|>")
        asked = encode(EMBEDDED, f"What is the {key}?<|end|><|assistant|>") + answer
        whole = [*lead, *texts[0], *texts[1], *texts[2], *asked]
        case = Case(len(lead) + len(texts[0]), len(texts[1]), len(texts[2]), len(asked))
        subject.forget()
        rows = {
            "whole": subject.rows(ordinary(whole), len(answer) + 1),
            "closed": subject.rows(gapped(whole, case), len(answer) + 1),
        }
        subject.forget()
        rows["again"] = subject.rows(ordinary(case.shorter(whole)), len(answer) + 1)
        for way in right:
            right[way].append(bool((rows[way][:-1].argmax(1) == answer).all()))
    return {way: 100 * float(np.mean(values)) for way, values in right.items()}


def main() -> None:
    parser = parser_with_text(__doc__)
    parser.add_argument("--samples", type=int, help="texts of every shape; default: 60")
    parser.add_argument("--questions", type=int, help="of every shape; default: 100")
    options = parser.parse_args()
    if not there(options.text):
        return
    samples = options.samples or (3 if options.quick else 60)
    questions = options.questions or (5 if options.quick else 100)
    report = Report("forget_quality")
    subject = Subject(*watched(kv_memory=128 * 2**20, max_num_batched_tokens=2048))
    novel = ids_of(EMBEDDED, options.text, 50_000)
    measure_continuation(report, subject, novel, samples)
    measure_chain(report, subject, novel, max(2, samples // 3))
    measure_recall(report, subject, options.text, questions)
    note_text(report, options.text, len(novel))
    report.note(f"{samples} texts and {questions} questions of every shape.")
    report.finish()


if __name__ == "__main__":
    main()
