"""Batch inference from and to JSONL files, resumable.

Two forms of line, told apart by their fields, may be mixed:

    {"prompt" | "messages" | "prompt_token_ids": ..., "id": optional, sampling fields ...}
        -> {"id", "choices": [{"index", "text", "finish_reason", ...}], "usage"} or {"id", "error"}
    {"custom_id", "method": "POST", "url": "/v1/chat/completions" | "/v1/completions", "body"}
        -> {"id", "custom_id", "response": {"status_code", "request_id", "body"}, "error"}

Results are written as they end, one whole line at a time; `id` (the line number where none is
given) tells which line they belong to. A second run skips what the output holds, repairs a last
line that was cut off, and computes the rest. A bad line gets an error record and stops nothing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, TextIO

from kveik.engine.request import Request, SamplingParams
from kveik.errors import ConfigError, InvalidRequest, KveikError
from kveik.llm import LLM
from kveik.openai_batch import OPENAI_FIELDS, OpenAiLine, openai_line, openai_result
from kveik.outputs import OutputCollector, RequestOutput

_PROMPT_FIELDS = ("prompt", "messages", "prompt_token_ids")
_SAMPLING_FIELDS = frozenset(field.name for field in fields(SamplingParams))


@dataclass(frozen=True, slots=True)
class BatchSummary:
    """Lines of this run. failed are among the written ones; skipped were in the output before."""

    done: int
    failed: int
    skipped: int


@dataclass(frozen=True, slots=True)
class _Line:
    """One line of the input that is to be computed."""

    key: str
    request: Request
    openai: OpenAiLine | None = None


class _BatchRun:
    """Reads lines ahead of the engine and writes results behind it."""

    def __init__(self, llm: LLM, params: SamplingParams, results: TextIO) -> None:
        self._llm = llm
        self._params = params
        self._results = results
        self._lines: dict[str, _Line] = {}
        self.done = 0
        self.failed = 0

    def requests(self, lines: Iterator[tuple[str, object]]) -> Iterator[Request]:
        """The request of every good line; the record of a bad one is written at once."""
        for number, (key, record) in enumerate(lines):
            try:
                line = self._parse(key, record)
            except KveikError as error:
                self._write(_failure(key, record, error), failed=True)
                continue
            internal = str(number)
            self._lines[internal] = line
            yield replace(line.request, request_id=internal)

    def write(self, ended: OutputCollector) -> None:
        line = self._lines.pop(ended.output.request_id)
        if ended.error is not None:
            record = _line_failure(line, ended.error)
        elif line.openai is not None:
            record = openai_result(line.openai, ended.output, self._llm.engine.info.model_id)
        else:
            record = _native_result(line.key, ended.output)
        self._write(record, failed=ended.error is not None)

    def _parse(self, key: str, record: object) -> _Line:
        if isinstance(record, InvalidRequest):
            raise record
        if not isinstance(record, Mapping):
            raise InvalidRequest("expected a JSON object on every line")
        if OPENAI_FIELDS & record.keys():
            line = openai_line(key, record)
            return _Line(key, self._request(line.question, line.sampling), line)
        return _Line(key, self._native_request(record))

    def _native_request(self, record: Mapping[str, Any]) -> Request:
        question = [name for name in _PROMPT_FIELDS if name in record]
        if len(question) != 1:
            raise InvalidRequest(f"expected one of {', '.join(_PROMPT_FIELDS)}", param="prompt")
        sampling = {name: record[name] for name in record if name not in (*question, "id")}
        return self._request({question[0]: record[question[0]]}, sampling)

    def _request(self, question: Mapping[str, Any], sampling: Mapping[str, Any]) -> Request:
        params = _changed(self._params, sampling)
        if "messages" in question:
            return self._llm.chat_request(question["messages"], params)
        return self._llm.request(question, params)  # type: ignore[arg-type]

    def _write(self, record: Mapping[str, Any], *, failed: bool) -> None:
        self._results.write(json.dumps(record, ensure_ascii=False) + "\n")
        self._results.flush()
        self.done += not failed
        self.failed += failed


def run_batch(llm: LLM, source: Path, target: Path, params: SamplingParams) -> BatchSummary:
    """Compute every line of `source` that `target` does not hold yet. params: for fields that a
    line does not set. Raises ConfigError when a file cannot be read or written."""
    known = _known_results(target)
    skipped = 0
    seen: dict[str, int] = {}

    def lines() -> Iterator[tuple[str, object]]:
        nonlocal skipped
        for number, record in _read_lines(source):
            key = _key_of(record, number)
            if key in seen:
                yield key, InvalidRequest(f"line {number}: the id of line {seen[key]} again")
                continue
            seen[key] = number
            if key in known:
                skipped += 1
            else:
                yield key, record

    try:
        results = target.open("a", encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--output: {target} cannot be written ({error})") from None
    with results:
        run = _BatchRun(llm, params, results)
        for ended in llm.run(run.requests(lines())):
            run.write(ended)
    return BatchSummary(run.done, run.failed, skipped)


def _read_lines(source: Path) -> Iterator[tuple[int, object]]:
    """(line number, its JSON; an InvalidRequest where it is none), blank lines left out."""
    try:
        with source.open("rb") as stream:
            for number, line in enumerate(stream, start=1):
                if line.strip():
                    yield number, _parse_json(line)
    except OSError as error:
        raise ConfigError(f"--input: {source} cannot be read ({error})") from None


def _parse_json(line: bytes) -> object:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        return InvalidRequest(f"not JSON: {type(error).__name__}", code="invalid_json")


def _key_of(record: object, number: int) -> str:
    """`id` or `custom_id` as text; the line number where there is none."""
    if isinstance(record, Mapping):
        for name in ("custom_id", "id"):
            if isinstance(record.get(name), str | int):
                return str(record[name])
    return str(number)


def _known_results(target: Path) -> set[str]:
    """Keys of the results that are complete; a last line that was cut off is removed."""
    if not target.exists():
        return set()
    try:
        content = target.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            with target.open("r+b") as stream:
                stream.truncate(whole)
        records = [json.loads(line) for line in content[:whole].splitlines() if line.strip()]
        return {str(record.get("custom_id", record.get("id"))) for record in records}
    except OSError as error:
        raise ConfigError(f"--output: {target} cannot be read ({error})") from None
    except (ValueError, AttributeError):
        raise ConfigError(
            f"--output: {target} holds lines that are no results; choose another file"
        ) from None


def _changed(params: SamplingParams, sampling: Mapping[str, Any]) -> SamplingParams:
    """`params` with the fields of one line. Raises InvalidRequest naming the field."""
    for name in sampling:
        if name not in _SAMPLING_FIELDS:
            raise InvalidRequest(f"{name}: unknown field", param=name, code="unknown_field")
    changes = {name: value for name, value in sampling.items() if value is not None}
    for name, check in _SHAPES.items():
        if name in changes:
            changes[name] = check(name, changes[name])
    return replace(params, **changes)


def _strings(name: str, value: object) -> tuple[str, ...]:
    items = (value,) if isinstance(value, str) else value
    if isinstance(items, list | tuple) and all(isinstance(item, str) for item in items):
        return tuple(items)
    raise InvalidRequest(f"{name}: expected a string or a list of strings", param=name)


def _integers(name: str, value: object) -> tuple[int, ...]:
    if isinstance(value, list) and all(type(item) is int for item in value):
        return tuple(value)
    raise InvalidRequest(f"{name}: expected a list of integers", param=name)


def _biases(name: str, value: object) -> dict[int, float]:
    if isinstance(value, Mapping):
        try:
            return {int(token_id): bias for token_id, bias in value.items()}
        except (TypeError, ValueError):
            pass
    raise InvalidRequest(f"{name}: expected token ids and their biases", param=name)


def _switch(name: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise InvalidRequest(f"{name}: expected true or false", param=name)
    return value


_SHAPES: Mapping[str, Callable[[str, object], Any]] = {
    "stop": _strings,
    "stop_token_ids": _integers,
    "logit_bias": _biases,
} | dict.fromkeys(
    ("include_stop_str_in_output", "ignore_eos", "skip_special_tokens", "use_cache"), _switch
)


def _native_result(key: str, output: RequestOutput) -> dict[str, Any]:
    assert output.usage is not None
    choices = [
        {"index": choice.index, "text": choice.text, "finish_reason": choice.finish_reason}
        | ({"stop_reason": choice.stop_reason} if choice.stop_reason is not None else {})
        | ({"logprobs": _logprobs(choice.logprobs)} if choice.logprobs is not None else {})
        for choice in output.outputs
    ]
    return {"id": key, "choices": choices, "usage": asdict(output.usage)}


def _logprobs(places: list[Any]) -> list[dict[str, dict[str, Any]]]:
    return [{str(token): asdict(entry) for token, entry in place.items()} for place in places]


def _failure(key: str, record: object, error: KveikError) -> dict[str, Any]:
    """The record of a line that could not even be parsed."""
    if isinstance(record, Mapping) and OPENAI_FIELDS & record.keys():
        return openai_result(OpenAiLine(key), error, "")
    return {"id": key, **error.body()}


def _line_failure(line: _Line, error: KveikError) -> dict[str, Any]:
    if line.openai is not None:
        return openai_result(line.openai, error, "")
    return {"id": line.key, **error.body()}
