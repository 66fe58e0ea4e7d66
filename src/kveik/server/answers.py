"""Events of the engine as OpenAI's objects: chat and text completions, whole and in chunks.

Both ways go through the same pieces, so the joined chunks are the whole answer.
Choice index = prompt index * n + choice.
"""

from __future__ import annotations

import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from kveik.engine.plan import TokenLogprobs
from kveik.engine.request import (
    ChoiceDelta,
    ChoiceFinished,
    MissReason,
    PromptReady,
    RequestFinished,
    Usage,
)
from kveik.engine.tokenizer import Tokenizer
from kveik.server.bridge import Tagged
from kveik.server.cache_report import cache_report, explanation
from kveik.server.jobs import Job
from kveik.server.logprobs import (
    CompletionLogprobs,
    HeldLogprobs,
    chat_logprobs,
    joined,
    prompt_logprobs,
)

Json = dict[str, Any]


@dataclass(slots=True)
class Totals:
    """Usage of all prompts of one HTTP request; a prompt counts once, whatever n is."""

    usages: list[Usage] = field(default_factory=list)
    misses: list[MissReason | None] = field(default_factory=list)
    explanation: Json | None = None

    def add(self, event: RequestFinished) -> None:
        self.usages.append(event.usage)

    def json(self) -> Json:
        """Extensions: `miss` (where the cache stopped serving this prompt, and why), `kveik`,
        `approximate_cached_tokens` (reused in modules, never counted as cached)."""
        prompt = sum(usage.prompt_tokens for usage in self.usages)
        completion = sum(usage.completion_tokens for usage in self.usages)
        details: Json = {"cached_tokens": sum(usage.cached_tokens for usage in self.usages)}
        approximate = sum(usage.approximate_cached_tokens for usage in self.usages)
        if approximate:
            details["approximate_cached_tokens"] = approximate
        if len(self.misses) == 1 and (miss := self.misses[0]) is not None:
            details["miss"] = {"position": miss.position, "reason": miss.reason}
        return {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
            "prompt_tokens_details": details,
            "kveik": cache_report(self.usages, self.explanation),
        }


@dataclass(slots=True)
class Choice:
    """One choice while it grows."""

    index: int
    prompt: int
    held: HeldLogprobs
    text: list[str] = field(default_factory=list)
    logprobs: list[Any] = field(default_factory=list)  # blocks in the shape of the API
    finish_reason: str | None = None
    stop_reason: str | int | None = None


class Answer(ABC):
    """What both APIs share. `take` returns the choice objects that an event adds to a stream."""

    prefix: str
    whole_object: str
    chunk_object: str

    def __init__(self, job: Job, model: str, tokenizer: Tokenizer) -> None:
        params = job.params
        ends = () if params.ignore_eos else tokenizer.eos_token_ids
        cut = frozenset((*ends, *params.stop_token_ids))
        if params.include_stop_str_in_output:
            cut = frozenset()
        self.job = job
        self.tokenizer = tokenizer
        self.keeps = True  # False: every piece is sent, and nobody asks for the whole
        self.totals = Totals()
        self.with_logprobs = params.logprobs is not None
        self.prompt_rows: dict[int, Sequence[TokenLogprobs | None]] = {}
        self.choices = [
            Choice(index, index // params.n, HeldLogprobs(cut))
            for index in range(len(job.requests) * params.n)
        ]
        self._id = f"{self.prefix}-{uuid.uuid4().hex}"
        self._created = int(time.time())
        self._model = model

    def take(self, tagged: Tagged) -> list[Json]:
        prompt, event = tagged
        if isinstance(event, PromptReady):
            self.totals.misses.append(event.miss)
            remembered = self.job.remembered[prompt] if self.job.remembered else 0
            request = self.job.requests[prompt]
            self.totals.explanation = explanation(event, request, self.tokenizer, remembered)
            if event.prompt_logprobs is not None:
                self.prompt_rows[prompt] = event.prompt_logprobs
            first = prompt * self.job.params.n
            return self._open(self.choices[first : first + self.job.params.n])
        if isinstance(event, ChoiceDelta):
            choice = self._choice(prompt, event.choice)
            return self._grow(choice, event.text, choice.held.add(event))
        if isinstance(event, ChoiceFinished):
            choice = self._choice(prompt, event.choice)
            rest = choice.held.finish(event)
            choice.finish_reason, choice.stop_reason = event.finish_reason, event.stop_reason
            pieces = self._grow(choice, "", rest) if rest else []
            return [*pieces, self._chunk_choice(choice, "", None)]
        if isinstance(event, RequestFinished):
            self.totals.add(event)
        return []

    def whole(self) -> Json:
        """The answer in one piece, after every event was taken."""
        return {
            **self._head(self.whole_object),
            "choices": [self._whole_choice(choice) for choice in self.choices],
            "usage": self.totals.json(),
        }

    def chunk(self, choices: list[Json], *, usage: Json | None, with_usage: bool) -> Json:
        """with_usage: the client asked for usage, so every chunk has the field."""
        return {
            **self._head(self.chunk_object),
            "choices": choices,
            **({"usage": usage} if with_usage else {}),
        }

    def _grow(self, choice: Choice, text: str, entries: Sequence[TokenLogprobs]) -> list[Json]:
        if not text and not entries:
            return []
        logprobs = self._logprobs(choice, entries) if self.with_logprobs else None
        if self.keeps:
            choice.text.append(text)
            if logprobs is not None:
                choice.logprobs.append(logprobs)
        return [self._chunk_choice(choice, text, logprobs)]

    def _choice(self, prompt: int, choice: int) -> Choice:
        return self.choices[prompt * self.job.params.n + choice]

    def _head(self, kind: str) -> Json:
        return {
            "id": self._id,
            "object": kind,
            "created": self._created,
            "model": self._model,
        }

    @abstractmethod
    def _open(self, choices: Sequence[Choice]) -> list[Json]:
        """The prompt of these choices is computed."""

    @abstractmethod
    def _chunk_choice(self, choice: Choice, text: str, logprobs: Any) -> Json: ...

    @abstractmethod
    def _whole_choice(self, choice: Choice) -> Json: ...

    @abstractmethod
    def _logprobs(self, choice: Choice, entries: Sequence[TokenLogprobs]) -> Any: ...


class ChatAnswer(Answer):
    """chat.completion; the first chunk of a choice has the role, none after it."""

    prefix = "chatcmpl"
    whole_object = "chat.completion"
    chunk_object = "chat.completion.chunk"

    def _open(self, choices: Sequence[Choice]) -> list[Json]:
        delta = {"role": "assistant", "content": ""}
        return [self._delta(choice, dict(delta), None) for choice in choices]

    def _chunk_choice(self, choice: Choice, text: str, logprobs: Any) -> Json:
        return self._delta(choice, {"content": text} if text or logprobs else {}, logprobs)

    def _delta(self, choice: Choice, delta: Json, logprobs: Any) -> Json:
        block: Json = {
            "index": choice.index,
            "delta": delta,
            "logprobs": logprobs,
            "finish_reason": choice.finish_reason,
        }
        if choice.finish_reason is not None:
            block["stop_reason"] = choice.stop_reason
        return block

    def _whole_choice(self, choice: Choice) -> Json:
        logprobs = None
        if self.with_logprobs:
            content = [item for block in choice.logprobs for item in block["content"]]
            logprobs = {"content": content, "refusal": None}
        return {
            "index": choice.index,
            "message": {"role": "assistant", "content": "".join(choice.text), "refusal": None},
            "logprobs": logprobs,
            "finish_reason": choice.finish_reason,
            "stop_reason": choice.stop_reason,
        }

    def whole(self) -> Json:
        answer = super().whole()
        if self.job.params.prompt_logprobs is not None:
            rows = self.prompt_rows.get(0, ())
            answer["prompt_logprobs"] = prompt_logprobs(self.tokenizer, rows)
        return answer

    def _logprobs(self, choice: Choice, entries: Sequence[TokenLogprobs]) -> Json:
        return chat_logprobs(self.tokenizer, entries)


class CompletionAnswer(Answer):
    """text_completion; with `echo` each choice begins with its prompt."""

    prefix = "cmpl"
    whole_object = "text_completion"
    chunk_object = "text_completion"

    def __init__(
        self, job: Job, model: str, tokenizer: Tokenizer, *, show_prompt_logprobs: bool
    ) -> None:
        super().__init__(job, model, tokenizer)
        self._show_prompt_logprobs = show_prompt_logprobs
        unseen = tokenizer.special_token_ids if job.params.skip_special_tokens else ()
        self._blocks = [CompletionLogprobs(tokenizer, unseen) for _ in self.choices]

    def _open(self, choices: Sequence[Choice]) -> list[Json]:
        if not self.job.prompts:
            return []
        return [self._echo(choice) for choice in choices]

    def _echo(self, choice: Choice) -> Json:
        text, logprobs = self.job.prompts[choice.prompt], None
        choice.text.append(text)
        if self.with_logprobs:
            ids = self.job.requests[choice.prompt].prompt_token_ids
            rows = self.prompt_rows.get(choice.prompt) or [None] * len(ids)
            limit = self.job.params.logprobs or 0
            entries = [
                token if row is None else row._replace(top=row.top[:limit])
                for token, row in zip(ids, rows, strict=True)
            ]
            logprobs = self._blocks[choice.index].piece(entries)
            choice.logprobs.append(logprobs)
        return self._chunk_choice(choice, text, logprobs)

    def _chunk_choice(self, choice: Choice, text: str, logprobs: Any) -> Json:
        return {
            "index": choice.index,
            "text": text,
            "logprobs": logprobs,
            "finish_reason": choice.finish_reason,
            "stop_reason": choice.stop_reason,
        }

    def _whole_choice(self, choice: Choice) -> Json:
        logprobs = None
        if self.with_logprobs:
            logprobs = joined([self._blocks[choice.index].piece(()), *choice.logprobs])
        whole = self._chunk_choice(choice, "".join(choice.text), logprobs)
        if self._show_prompt_logprobs:
            rows = self.prompt_rows.get(choice.prompt, ())
            whole["prompt_logprobs"] = prompt_logprobs(self.tokenizer, rows)
        return whole

    def _logprobs(self, choice: Choice, entries: Sequence[TokenLogprobs]) -> Json:
        return self._blocks[choice.index].piece(entries)
