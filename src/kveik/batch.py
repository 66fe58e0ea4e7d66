"""Batch inference from and to JSONL files, resumable.

Two forms of line may be mixed (see `kveik.batch_lines`):

    {"prompt" | "messages" | "prompt_token_ids": ..., "id": optional, sampling fields ...}
        -> {"id", "choices": [{"index", "text", "finish_reason", ...}], "usage"} or {"id", "error"}
    {"custom_id", "method": "POST", "url": "/v1/chat/completions" | "/v1/completions" |
     "/v1/embeddings", "body"}
        -> {"id", "custom_id", "response": {"status_code", "request_id", "body"}, "error"}

Results are written as they end, one whole line at a time; `id` (the line number where none is
given) tells which line they belong to. A second run skips what the output holds, repairs a last
line that was cut off, and computes the rest. A bad line gets an error record and stops nothing.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from kveik.batch_lines import Line, failure_record, parse_line
from kveik.engine.request import Request, SamplingParams
from kveik.errors import ConfigError, InvalidRequest, KveikError
from kveik.llm import LLM, RequestSink


@dataclass(frozen=True, slots=True)
class BatchSummary:
    """Lines of this run: computed, failed, and found in the output of an earlier run."""

    done: int
    failed: int
    skipped: int


def run_batch(llm: LLM, source: Path, target: Path, params: SamplingParams) -> BatchSummary:
    """Compute every line of `source` that `target` does not hold yet. params: for fields that a
    line does not set. Raises ConfigError when a file cannot be read or written."""
    lines = _SourceLines(source, known=_known_results(target))
    try:
        results = target.open("a", encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--output: {target} cannot be written ({error})") from None
    with results:
        run = _BatchRun(llm, params, results)
        for sink in llm.run(run.work(lines.read())):
            run.ended(sink)
    return BatchSummary(run.done, run.failed, lines.skipped)


class _SourceLines:
    """The lines of the input that are still to be computed."""

    def __init__(self, source: Path, known: set[str]) -> None:
        self.skipped = 0
        self._source = source
        self._known = known
        self._seen: dict[str, int] = {}

    def read(self) -> Iterator[tuple[str, object]]:
        """(key, JSON value; an InvalidRequest where the line is bad), blank lines left out."""
        try:
            with self._source.open("rb") as stream:
                for number, text in enumerate(stream, start=1):
                    if text.strip():
                        yield from self._line(number, text)
        except OSError as error:
            raise ConfigError(f"--input: {self._source} cannot be read ({error})") from None

    def _line(self, number: int, text: bytes) -> Iterator[tuple[str, object]]:
        line = _parse_json(text)
        key = _key_of(line, number)
        first = self._seen.setdefault(key, number)
        if key in self._known:
            self.skipped += 1
        elif first != number:
            yield key, InvalidRequest(f"line {number} has the id {key!r} of line {first}")
        else:
            yield key, line


class _BatchRun:
    """Reads lines ahead of the engine and writes results behind it."""

    def __init__(self, llm: LLM, params: SamplingParams, results: TextIO) -> None:
        self.done = 0
        self.failed = 0
        self._llm = llm
        self._params = params
        self._results = results
        self._lines: dict[RequestSink, Line] = {}
        self._left: dict[str, int] = {}

    def work(self, lines: Iterator[tuple[str, object]]) -> Iterator[tuple[Request, RequestSink]]:
        """The requests of every good line; the record of a bad one is written at once."""
        for key, value in lines:
            try:
                line = self._parse(key, value)
            except KveikError as error:
                self._fail(failure_record(key, value, error))
                continue
            if not line.work:
                self._end(line)
                continue
            self._left[key] = len(line.work)
            self._lines.update((sink, line) for _, sink in line.work)
            yield from line.work

    def ended(self, sink: RequestSink) -> None:
        """A request ended; the last one of a line writes its record."""
        line = self._lines.pop(sink)
        self._left[line.key] -= 1
        if self._left[line.key]:
            return
        del self._left[line.key]
        self._end(line)

    def _end(self, line: Line) -> None:
        """All that a line asks for is computed."""
        error = line.error()
        if error is not None:
            self._fail(line.failure(error))
        else:
            self._write(line.record())
            self.done += 1

    def _parse(self, key: str, value: object) -> Line:
        if isinstance(value, InvalidRequest):
            raise value
        if not isinstance(value, Mapping):
            raise InvalidRequest("expected a JSON object on every line")
        return parse_line(self._llm, key, value, self._params)

    def _fail(self, record: Mapping[str, Any]) -> None:
        self._write(record)
        self.failed += 1

    def _write(self, record: Mapping[str, Any]) -> None:
        self._results.write(json.dumps(record, ensure_ascii=False) + "\n")
        self._results.flush()


def _parse_json(text: bytes) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        return InvalidRequest(f"the line is not JSON ({type(error).__name__})", code="invalid_json")


def _key_of(line: object, number: int) -> str:
    """`id` or `custom_id` as text; the line number where there is none."""
    if isinstance(line, Mapping):
        for name in ("custom_id", "id"):
            if isinstance(line.get(name), str | int):
                return str(line[name])
    return str(number)


def _known_results(target: Path) -> set[str]:
    """Keys of the results that are complete; a last line that was cut off is removed."""
    if not target.exists():
        return set()
    try:
        content = target.read_bytes()
        whole = content.rfind(b"\n") + 1
        records = [json.loads(line) for line in content[:whole].splitlines() if line.strip()]
        keys = {str(record.get("custom_id", record.get("id"))) for record in records}
        if whole < len(content):
            with target.open("r+b") as stream:
                stream.truncate(whole)
    except OSError as error:
        raise ConfigError(f"--output: {target} cannot be read ({error})") from None
    except (ValueError, AttributeError):
        raise ConfigError(
            f"--output: {target} holds lines that are no results; choose another file"
        ) from None
    return keys
