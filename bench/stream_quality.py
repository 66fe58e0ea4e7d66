"""What an endless stream costs in quality: StreamingLLM's tables, on the embedded model.

    0  attention mass per position and layer: how much the first tokens draw
    1  perplexity of a stream for sinks 0 / 1 / 2 / 4 / 8 and caches of 256 / 512 / 1024 tokens,
       beside the same window computed again for every token, beside dense attention beyond the
       training length, and beside sinks that keep their original positions; also of the twin that
       was trained without a first token
    4  recall at a distance: records one a line, a question every 10 lines, the answer 20 lines
       back, and other distances across the border of the window
    5  perplexity of evicting 1, 16 or 128 tokens at a time (its time: stream_time.py)

Streams go through the engine (`prompt_logprobs` of one long prompt: every row has the window of its
own position). What the engine would refuse is computed by rows.py with the same kernels. "Computed
again" has the first token before the window, as the model was trained; it costs a window per token,
so it is taken at positions spread over the text, and compared there.

Recall is by teacher forcing: an answer counts where greedy decoding would write all of it. Keys and
values are made of the novel's own words, by the recipe's generator, of the tenth of words that
training left out.

Usage: python bench/stream_quality.py [--text FILE] [--tokens N] [--samples N] [--questions N]
                                      [--quick]
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from novel import (
    EMBEDDED,
    TWIN,
    Floats,
    encode,
    ids_of,
    note_text,
    opening,
    parser_with_text,
    perplexity,
    picture,
    ratio,
    there,
)
from report import ROOT, Report
from rows import Rows, dense, original_positions

sys.path.insert(0, str(ROOT / "recipes"))

from kveik_recipe.recall import WordPool, collect_words, make_key, make_value

from kveik import LLM, CacheOptions, SamplingParams
from kveik.cache.window import StreamWindow
from kveik.kernels.ops import AttentionSpec, GroupBatch
from kveik.kernels.reference import reference_ops

SINKS = (0, 1, 2, 4, 8)
CACHES = (256, 512, 1024)
EVICTED = (1, 16, 128)
DENSE = 4096  # tokens of dense attention: four times the training length
CONTEXT = 1024
EVERY, BACK = 10, 20  # lines between questions, lines back to the answer
DISTANCES = (5, 10, 20, 30, 40, 50, 60, 80, 120)
NAMES = {EMBEDDED: "embedded model", TWIN: "twin without a first token"}


def window_of(cache: int, sinks: int, evict: int = 1) -> StreamWindow:
    return StreamWindow(sinks, cache - sinks, evict)


# ---- 0: where attention goes --------------------------------------------------------------------


class Mass:
    """Sums up, by layer and head, the attention that each key draws from rows behind `behind`."""

    def __init__(self, layers: int, heads: int, keys: int, behind: int) -> None:
        self.sums = np.zeros((layers, heads, keys))
        self.rows = 0
        self._behind = behind

    def add(self, q: Any, arena: Any, layer: int, batch: GroupBatch, spec: AttentionSpec) -> None:
        """q [T, Q * D] unrotated; keys of this layer are written."""
        count, heads = len(q), spec.num_heads
        keys = arena.keys[layer].swapaxes(2, 3).reshape(spec.num_kv_heads, -1, spec.head_dim)
        keys = np.repeat(np.asarray(keys[:, :count], np.float64), heads // spec.num_kv_heads, 0)
        turned = turn(q.reshape(count, heads, spec.head_dim), spec)
        scores = np.einsum("thd,hkd->htk", turned * spec.scale, keys)[:, self._behind :]
        scores[:, np.arange(count)[None] > np.arange(self._behind, count)[:, None]] = -np.inf
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        self.sums[layer, :, :count] += weights.mean(1)
        self.rows += layer == 0

    def mean(self) -> Floats:
        """[layers, heads, keys], over rows; over keys it sums to 1."""
        return self.sums / self.rows


def turn(x: Any, spec: AttentionSpec) -> Any:
    """x [T, heads, D] at positions 0 .. T - 1, in the half-split layout of the Llama family."""
    assert spec.rope is not None
    angles = np.outer(np.arange(len(x)), spec.rope.inverse_frequencies)[:, None]
    half = x.shape[-1] // 2
    left, right = x[..., :half], x[..., half:]
    cos, sin = np.cos(angles), np.sin(angles)
    return np.concatenate((left * cos - right * sin, right * cos + left * sin), axis=-1)


def attention_mass(folder: Path, windows: Sequence[Sequence[int]]) -> Floats:
    """[layers, heads, keys] over the second halves of these windows of equal length."""
    own, length = reference_ops(), len(windows[0])
    mass: list[Mass] = []

    def attention(q: Any, arena: Any, layer: int, batch: GroupBatch, spec: AttentionSpec) -> Any:
        mass[0].add(q, arena, layer, batch, spec)
        return own.paged_attention(q, arena, layer, batch, spec)

    rows = Rows(folder, length, replace(own, paged_attention=attention))
    config = json.loads((folder / "config.json").read_text())
    shape = config["num_hidden_layers"], config["num_attention_heads"]
    mass.append(Mass(*shape, length, length // 2))
    for ids in windows:
        rows.logits(ids, dense)
    return mass[0].mean()


def measure_mass(report: Report, text: Path, quick: bool) -> None:
    length, count = 512, 2 if quick else 8
    found: dict[Path, Floats] = {}
    for folder, name in NAMES.items():
        first = opening(folder)
        room = length - len(first)
        ids = ids_of(folder, text, count * room)
        windows = [first + ids[k * room : (k + 1) * room] for k in range(count)]
        found[folder] = mass = attention_mass(folder, windows)
        layer, head = divmod(int(mass[:, :, 0].argmax()), mass.shape[1])
        report.figure(
            f"{name}: attention on position 0, head {head} of layer {layer}",
            100 * float(mass[layer, head, 0]),
            "%",
            first_eight={str(n): one[:, :8].tolist() for n, one in enumerate(mass)},
        )
    report.text(mass_table(found))
    report.note(
        f"Attention mass: over rows {length // 2} to {length - 1} and {count} "
        f"windows of {length} tokens; an even share would be {100 / (0.75 * length):.2f} % a token."
    )
    if not quick:
        draw_mass(found)


def mass_table(found: dict[Path, Floats]) -> str:
    lines = [
        "| attention, mean of the heads | layer | position 0 | its largest head | 1 to 3 | "
        "4 to 255 | the rest |",
        "|---|---|---|---|---|---|---|",
    ]
    for folder, mass in found.items():
        for layer, heads in enumerate(mass):
            row = heads.mean(0)
            rest = (row[1:4].sum(), row[4:256].sum(), row[256:].sum())
            parts = (row[0], heads[:, 0].max(), *rest)
            shares = " | ".join(f"{100 * part:.1f} %" for part in parts)
            lines.append(f"| {NAMES[folder]} | {layer} | {shares} |")
    return "\n".join(lines)


def draw_mass(found: dict[Path, Floats]) -> None:
    with picture("stream_attention") as axes:
        if axes is None:
            return
        for (folder, mass), line in zip(found.items(), ("-", "--"), strict=True):
            for layer, row in enumerate(mass):
                label = f"{NAMES[folder]}, layer {layer}"
                share = 100 * row.mean(0)[:32]
                axes.plot(range(1, 33), share, line, linewidth=1, label=label)
        axes.set(xlabel="position (1: the first token)", ylabel="attention, %", yscale="log")
        axes.legend(fontsize=5, ncol=2)


# ---- 1: perplexity ------------------------------------------------------------------------------


@dataclass
class Subject:
    """A model under measurement, through the engine and through bare rows."""

    folder: Path
    ids: list[int]
    llm: LLM
    rows: Rows

    @classmethod
    def of(cls, folder: Path, ids: list[int]) -> Subject:
        llm = LLM(model=str(folder), kv_memory="128MiB", max_num_batched_tokens=2048)
        return cls(folder, ids, llm, Rows(folder, len(ids)))

    def stream(self, window: StreamWindow) -> Floats:
        """Nats of every token but the first, by the engine."""
        return -told(self.llm, self.ids, window)[:, 0]

    def again(self, cache: int, places: Sequence[int]) -> Floats:
        """Nats of the tokens at `places`, each behind the window before it computed anew."""
        first = opening(self.folder)
        room = cache - len(first)
        windows = [first + self.ids[place - room : place + 1] for place in places]
        return np.array([self.rows.last_loss(ids) for ids in windows])


def told(llm: LLM, ids: Sequence[int], window: StreamWindow) -> Floats:
    """[tokens - 1, 2]: log-probability and rank of every token but the first."""
    params = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=0)
    options = CacheOptions(stream_window=window, write=False)
    [output] = llm.generate([{"prompt_token_ids": ids}], params, use_tqdm=False, cache=options)
    assert output.prompt_logprobs is not None
    found = [(one.logprob, one.rank) for at in output.prompt_logprobs if at for one in at.values()]
    return np.array(found)


def measure_perplexity(report: Report, text: Path, tokens: int, samples: int) -> None:
    table = ["| perplexity | cache 256 | 512 | 1024 |", "|---|---|---|---|"]
    for folder, name in NAMES.items():
        count = tokens if folder is EMBEDDED else tokens // 2
        subject = Subject.of(folder, opening(folder) + ids_of(folder, text, count))
        streams = compare_windows(report, subject, name, samples, table)
        original = compare_original(report, subject, name, streams, table)
        compare_dense(report, subject, name, streams, original)
        if folder is EMBEDDED:
            compare_evictions(report, subject, streams[1024, 4])
        subject.llm.close()
    report.text("\n".join(table))
    report.note(
        "Without sinks there are no original positions to keep: rotary embeddings see distances, "
        "so window attention as the article has it is the row of 0 sinks."
    )
    report.note(
        f'"Computed again" and what is compared with it: {samples} positions spread over the text '
        "behind the first window. All other perplexities: every token; of the twin half the text."
    )


def compare_windows(
    report: Report, subject: Subject, name: str, samples: int, table: list[str]
) -> dict[tuple[int, int], Floats]:
    """Streams of every shape; those with 4 sinks against the window computed again."""
    places = np.linspace(max(CACHES), len(subject.ids) - 1, samples).astype(int)
    streams = {
        (cache, sinks): subject.stream(window_of(cache, sinks))
        for cache in CACHES
        for sinks in SINKS
    }
    again = {cache: subject.again(cache, places.tolist()) for cache in CACHES}
    for sinks in SINKS:
        cells = " | ".join(f"{perplexity(streams[cache, sinks]):.2f}" for cache in CACHES)
        table.append(f"| {name}: {sinks} sinks | {cells} |")
    cells = " | ".join(f"{perplexity(again[cache]):.2f}" for cache in CACHES)
    table.append(f"| computed again, at {samples} positions | {cells} |")
    cells = " | ".join(f"{perplexity(streams[c, 4][places - 1]):.2f}" for c in CACHES)
    table.append(f"| 4 sinks, at these positions | {cells} |")
    for cache in CACHES:
        bar = 1.01 if subject.folder is EMBEDDED else None
        value, error = ratio(streams[cache, 4][places - 1], again[cache])
        report.figure(
            f"{name}: PPL 4+{cache - 4} / PPL of the window computed again",
            value,
            "x",
            bar=bar,
            sense="<=",
            standard_error=error,
        )
        value, error = ratio(streams[cache, 0], streams[cache, 4])
        report.figure(
            f"{name}: PPL 0+{cache} / PPL 4+{cache - 4}", value, "x", standard_error=error
        )
    return streams


def compare_original(
    report: Report,
    subject: Subject,
    name: str,
    streams: dict[tuple[int, int], Floats],
    table: list[str],
) -> Floats:
    """Four sinks at the distance that they have in the text; returns those of the largest cache."""
    found = {}
    for cache in CACHES:
        found[cache] = subject.rows.losses(subject.ids, original_positions(window_of(cache, 4)))
        value, error = ratio(found[cache], streams[cache, 4])
        report.figure(
            f"{name}: PPL 4+{cache - 4} at original positions / in the cache",
            value,
            "x",
            standard_error=error,
        )
    cells = " | ".join(f"{perplexity(found[cache]):.2f}" for cache in CACHES)
    table.append(f"| 4 sinks at their original positions | {cells} |")
    return found[max(CACHES)]


def compare_dense(
    report: Report,
    subject: Subject,
    name: str,
    streams: dict[tuple[int, int], Floats],
    original: Floats,
) -> None:
    """Dense attention over the beginning of the text, four times as long as a training sample."""
    ids = subject.ids[:DENSE]
    plain = subject.rows.losses(ids, dense)
    beyond = slice(CONTEXT, len(ids) - 1)
    report.figure(f"{name}: PPL dense within {CONTEXT}", perplexity(plain[:CONTEXT]), "")
    value, error = ratio(plain[beyond], streams[CONTEXT, 4][beyond])
    report.figure(
        f"{name}: PPL dense / 4+{CONTEXT - 4}, tokens {CONTEXT} to {len(ids)}",
        value,
        "x",
        standard_error=error,
        dense=perplexity(plain[beyond]),
        stream=perplexity(streams[CONTEXT, 4][beyond]),
    )
    if subject.folder is EMBEDDED and len(subject.ids) > 20_000:
        draw_perplexity(plain, streams, original)


def draw_perplexity(
    plain: Floats, streams: dict[tuple[int, int], Floats], original: Floats
) -> None:
    """Over the first tokens of the text, the mean of 256 at a time."""
    curves = {
        "dense": plain,
        f"4+{CONTEXT - 4} at original positions": original[: len(plain)],
        f"0+{CONTEXT}": streams[CONTEXT, 0][: len(plain)],
        f"4+{CONTEXT - 4}": streams[CONTEXT, 4][: len(plain)],
    }
    with picture("stream_perplexity") as axes:
        if axes is None:
            return
        for name, losses in curves.items():
            groups = losses[: len(losses) // 256 * 256].reshape(-1, 256).mean(1)
            axes.plot(128 + 256 * np.arange(len(groups)), np.exp(groups), label=name, linewidth=1)
        axes.axvline(CONTEXT, color="grey", linewidth=0.5)
        axes.set(xlabel="tokens", ylabel="perplexity", yscale="log")
        axes.legend(fontsize=7)


# ---- 5: several at a time -----------------------------------------------------------------------


def compare_evictions(report: Report, subject: Subject, one_by_one: Floats) -> None:
    for evict in EVICTED[1:]:
        losses = subject.stream(window_of(CONTEXT, 4, evict))
        value, error = ratio(losses, one_by_one)
        report.figure(
            f"PPL 4+{CONTEXT - 4}, {evict} evicted at a time / 1", value, "x", standard_error=error
        )


# ---- 4: recall ----------------------------------------------------------------------------------


@dataclass
class Asked:
    """Where an answer stands in the stream. reach: tokens back to the first token of its line."""

    start: int
    stop: int
    reach: int


def record_stream(
    rng: random.Random, pool: WordPool, lines: int, back: int
) -> tuple[list[int], list[Asked]]:
    """Records, and behind every tenth a question for the one `back` lines before it, answered."""
    ids, asked = opening(EMBEDDED), []
    known: list[tuple[str, str, int]] = []  # key, value, first token of its line
    used: set[str] = set()
    while len(known) < lines:
        key = make_key(rng, pool)
        if key in used:
            continue
        used.add(key)
        known.append((key, make_value(rng, pool), len(ids)))
        ids += encode(EMBEDDED, f"{key}: {known[-1][1]}\n")
        if len(known) % EVERY or len(known) < back:
            continue
        key, value, first = known[-back]
        ids += encode(EMBEDDED, f"What is the {key}?\nAnswer:")
        answer = encode(EMBEDDED, f" The {key} is {value}.\n")
        asked.append(Asked(len(ids), len(ids) + len(answer), len(ids) - first))
        ids += answer
    return ids, asked


def recalled(llm: LLM, ids: Sequence[int], asked: Sequence[Asked], window: StreamWindow) -> Any:
    """bool per question: would greedy decoding write the whole answer?"""
    ranks = told(llm, ids, window)[:, 1]
    return np.array([(ranks[one.start - 1 : one.stop - 1] == 1).all() for one in asked])


def compare_recall(report: Report, llm: LLM, pool: WordPool, questions: int) -> None:
    """The same questions with the window computed anew: what the model can look up in it at all."""
    rng = random.Random("recall again")
    ids, asked = record_stream(rng, pool, EVERY * questions + BACK, BACK)
    first, rows = opening(EMBEDDED), Rows(EMBEDDED, CONTEXT)
    later = [one for one in asked if one.stop > CONTEXT]
    for size in (window_of(CONTEXT, 4), window_of(512, 4)):
        again = []
        for one in later:
            window = first + ids[one.stop - size.size + len(first) : one.stop]
            length = one.stop - one.start
            best = rows.logits(window, dense)[-length - 1 : -1].argmax(1)
            again.append(bool((best == window[-length:]).all()))
        name = f"recall, {size.sinks}+{size.window}, {BACK} lines back"
        report.ratio(
            f"{name}: stream / window computed again",
            100 * float(recalled(llm, ids, later, size).mean()),
            100 * float(np.mean(again)),
            questions=len(later),
        )


def measure_recall(report: Report, text: Path, questions: int) -> None:
    _, pool = collect_words([text.read_text(encoding="utf-8-sig")])
    llm = LLM(kv_memory="128MiB", max_num_batched_tokens=2048)
    window = window_of(CONTEXT, 4)
    table = [
        f"| lines back | tokens back | within 4+{CONTEXT - 4} | recall | within 4+508 | recall |",
        "|---|---|---|---|---|---|",
    ]
    for back in DISTANCES:
        rng = random.Random(f"recall {back}")
        ids, asked = record_stream(rng, pool, EVERY * questions + back, back)
        reach = np.array([one.reach for one in asked])
        cells = []
        for size in (window, window_of(512, 4)):
            right = recalled(llm, ids, asked, size)
            inside = reach < size.window - 16  # the answer's own tokens push the window on
            cells += [f"{100 * inside.mean():.0f} %", f"{100 * right.mean():.1f} %"]
            if size is window or back == BACK:
                report_recall(report, back, size, right, inside)
        table.append(f"| {back} | {np.median(reach):.0f} | {' | '.join(cells)} |")
    compare_recall(report, llm, pool, questions)
    llm.close()
    report.text("\n".join(table))
    report.note(
        f"Recall: {questions} questions at each distance, one every {EVERY} lines, in one stream "
        'of records ("key: value"); true answers stay in the stream. Within: the share of '
        "questions whose line was still in the window."
    )


def report_recall(report: Report, back: int, size: StreamWindow, right: Any, inside: Any) -> None:
    name = f"recall, {size.sinks}+{size.window}, {back} lines back"
    share = 100 * float(right.mean())
    if inside.all():
        bar = 95.0 if back == BACK else None
        report.figure(f"{name} (inside)", share, "%", bar=bar)
    elif not inside.any():
        report.figure(f"{name} (outside)", share, "%")


def main() -> None:
    parser = parser_with_text(__doc__)
    parser.add_argument("--tokens", type=int, help="of the novel; default: 50,000")
    parser.add_argument("--samples", type=int, help="windows computed again; default: 600")
    parser.add_argument("--questions", type=int, help="at each distance; default: 200")
    options = parser.parse_args()
    if not there(options.text):
        return
    report = Report("stream_quality")
    tokens = options.tokens or (6_000 if options.quick else 50_000)
    measure_mass(report, options.text, options.quick)
    samples = options.samples or (40 if options.quick else 600)
    measure_perplexity(report, options.text, tokens, samples)
    measure_recall(report, options.text, options.questions or (20 if options.quick else 200))
    note_text(report, options.text, tokens)
    report.finish()


if __name__ == "__main__":
    main()
