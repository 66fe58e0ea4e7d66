"""`kveik chat`: a conversation in the terminal, with a model of its own or a running server.

Ctrl-C stops the answer and not the program; a stopped or failed turn leaves the history as it was,
and forgets nothing.
An endless conversation has no history: only the window of a stream, which a stopped answer ends.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import typer

from kveik.commands.remote import Remote
from kveik.engine.forgetting import forget_words
from kveik.engine.request import SamplingParams
from kveik.errors import Conflict, KveikError
from kveik.llm import LLM
from kveik.managed import CacheOptions
from kveik.outputs import StreamDelta
from kveik.session import Forgets, Session, new_session_id

_USUAL_CONTEXT = 1024
"""Tokens of a stream's window where a server does not say what its model sees."""

_ENDED = "[the server has ended the session: all is read again, also what was forgotten]"

Messages = Sequence[Mapping[str, str]]

HELP = (
    "/reset forgets the conversation, /forget 2 or /forget 2-4 these turns of it, "
    "/exit (or Ctrl-D) leaves, Ctrl-C stops an answer"
)


@dataclass(slots=True)
class Facts:
    """What the last answer cost; tokens None: the server did not say."""

    prompt_tokens: int | None = None
    cached_tokens: int = 0
    completion_tokens: int | None = None
    forgotten_tokens: int | None = None  # by its stream or its session
    approximate_tokens: int = 0


class Partner(Protocol):
    """Who answers. `facts` belongs to the last answer that was read to its end. endless: it keeps
    what was said before in a stream, and is told only what is new; `reset` ends that.

    From the first turn on that is to forget others (see CacheOptions.forget) a session keeps what
    is left, and `messages` are read for what is new alone."""

    name: str
    facts: Facts
    endless: bool

    def answer(self, messages: Messages, forget: Forgets | None = None) -> Iterator[str]: ...

    def reset(self) -> None: ...


class LocalPartner:
    """A model in this process."""

    def __init__(self, llm: LLM, params: SamplingParams, *, endless: bool = False) -> None:
        self.name = llm.engine.info.model_id
        self.facts = Facts()
        self.endless = endless
        self._llm = llm
        self._params = params
        self._session: Session | None = None

    def answer(self, messages: Messages, forget: Forgets | None = None) -> Iterator[str]:
        for delta in self._deltas(messages, forget):
            if (usage := delta.usage) is not None:
                self.facts = Facts(
                    usage.prompt_tokens,
                    usage.cached_tokens,
                    usage.completion_tokens,
                    usage.evicted_tokens or usage.forgotten_tokens,
                    usage.approximate_cached_tokens,
                )
            yield delta.text

    def _deltas(self, messages: Messages, forget: Forgets | None) -> Iterator[StreamDelta]:
        if self._session is None and not self.endless and forget is None:
            return self._llm.stream(messages, self._params)
        if self._session is None:
            window = self._llm.engine.longest_window if self.endless else None
            options = CacheOptions(stream_window=window)
            self._session = self._llm.session(messages=messages[:-1], cache=options)
        return self._session.stream(messages[-1], self._params, forget=forget)

    def reset(self) -> None:
        if self._session is not None:
            self._session.end()
            self._session = None


class RemotePartner:
    """A server with OpenAI's HTTP interface; answers come as server-sent events."""

    def __init__(
        self,
        url: str,
        api_key: str | None,
        sampling: Mapping[str, Any],
        *,
        endless: bool = False,
        stream_window: str | None = None,
    ) -> None:
        self._remote = Remote(url, api_key)
        self._sampling = dict(sampling)
        self.facts = Facts()
        model = self._remote.json("GET", "/v1/models")["data"][0]
        self.name = str(model["id"])
        self.endless = endless
        context = int(model.get("max_model_len", _USUAL_CONTEXT))
        self._window = stream_window or f"4+{max(context - 4, 1)}"
        self._session: str | None = None
        self._goes_on = False

    def answer(self, messages: Messages, forget: Forgets | None = None) -> Iterator[str]:
        body: dict[str, Any] = {
            "model": self.name,
            "messages": list(messages),
            "stream": True,
            "stream_options": {"include_usage": True},
            **self._sampling,
        }
        if not (self.endless or self._goes_on or forget):
            yield from self._told(body)
            return
        self._session = self._session or new_session_id()
        body["kveik"] = {"session": self._session}
        if self._goes_on:
            body["messages"] = [messages[-1]]
            body["kveik"]["continue"] = True
        elif self.endless:
            body["kveik"]["stream_window"] = self._window
        if forget:
            body["kveik"]["forget"] = forget
        went_on = self._goes_on
        if self.endless:
            self._goes_on = False  # a cut answer ends the stream: the next turn begins another one
        try:
            yield from self._told(body)
        except Conflict:  # the session was idle for too long, or the server began anew
            if self.endless or not went_on:
                raise
            typer.secho(_ENDED, dim=True)
            self._session, self._goes_on = None, False
            yield from self.answer(messages, forget)
        else:
            self._goes_on = True

    def reset(self) -> None:
        if self._session is not None:
            with contextlib.suppress(KveikError):
                self._remote.json("DELETE", f"/v1/sessions/{self._session}")
        self._session, self._goes_on = None, False

    def _told(self, body: dict[str, Any]) -> Iterator[str]:
        with self._remote.request("POST", "/v1/chat/completions", body) as response:
            for event in _server_sent_events(response):
                if "error" in event:
                    raise KveikError(str(event["error"].get("message")))
                self._note_usage(event.get("usage"))
                for choice in event.get("choices", ()):
                    yield choice["delta"].get("content") or ""

    def _note_usage(self, usage: Mapping[str, Any] | None) -> None:
        if usage:
            details = usage.get("prompt_tokens_details") or {}
            own = usage.get("kveik") or {}
            self.facts = Facts(
                usage["prompt_tokens"],
                details.get("cached_tokens", 0),
                usage["completion_tokens"],
                own.get("evicted_tokens") or own.get("forgotten_tokens"),
                details.get("approximate_cached_tokens", 0),
            )


def chat(partner: Partner, *, system: str | None = None) -> None:
    """Read lines, answer them, until /exit or the end of input."""
    opening = [{"role": "system", "content": system}] if system else []
    history = list(opening)
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401 (gives input() its line editing)
    if sys.stdin.isatty():
        typer.secho(f"{partner.name}: {HELP}", dim=True)
    forget: Forgets | None = None
    while (line := _read_line()) is not None:
        if line == "/reset":
            history, forget = list(opening), None
            partner.reset()
        elif line.startswith("/forget") and not partner.endless:
            forget = _turns(line.removeprefix("/forget"))
        elif line.startswith("/"):
            typer.secho(HELP, dim=True)
        elif line:
            question = {"role": "user", "content": line}
            answer = say(partner, [*history, question], forget)
            forget = None
            if answer is not None and not partner.endless:
                history += [question, {"role": "assistant", "content": answer}]


def _turns(said: str) -> Forgets | None:
    """What the next turn is to forget, from "2" or "2-4"; None where it is neither."""
    turns = said.strip()
    forget: Forgets = {"turns": [int(turns)] if turns.isdecimal() else turns}
    try:
        forget_words(forget)
    except ValueError:
        typer.secho(HELP, dim=True)
        return None
    typer.secho(
        f"[the next turn forgets turn {turns}; what follows was said with it in mind]", dim=True
    )
    return forget


def _read_line() -> str | None:
    """The next line; None at the end of input or for /exit. Ctrl-C clears the line."""
    while True:
        try:
            line = input("> " if sys.stdin.isatty() else "").strip()
        except EOFError:
            return None
        except KeyboardInterrupt:
            typer.echo()
            continue
        return None if line in ("/exit", "/quit") else line


def say(partner: Partner, messages: Messages, forget: Forgets | None = None) -> str | None:
    """Print the answer as it comes; None when it was stopped or failed."""
    started = time.perf_counter()
    first: float | None = None
    pieces: list[str] = []
    answer = partner.answer(messages, forget)
    try:
        for text in answer:
            first = first or time.perf_counter()
            pieces.append(text)
            sys.stdout.write(text)
            sys.stdout.flush()
    except KeyboardInterrupt:
        answer.close()  # type: ignore[attr-defined]
        typer.secho("\n[stopped; this turn is forgotten]", dim=True)
        return None
    except KveikError as error:
        typer.secho(f"\n[{error.message}; this turn is forgotten]", fg="red", err=True)
        return None
    ended = time.perf_counter()
    typer.secho(f"\n[{_costs(partner.facts, started, first or ended, ended)}]", dim=True)
    return "".join(pieces)


def _costs(facts: Facts, started: float, first: float, ended: float) -> str:
    parts = [f"first token after {first - started:.2f} s"]
    if facts.completion_tokens is not None:
        speed = (facts.completion_tokens - 1) / max(ended - first, 1e-9)
        if facts.completion_tokens > 1:
            parts.append(f"{facts.completion_tokens} tokens, {speed:.1f} tokens/s")
        parts.append(f"{facts.cached_tokens} of {facts.prompt_tokens} prompt tokens cached")
    if facts.approximate_tokens:
        parts.append(f"{facts.approximate_tokens} more approximately")
    if facts.forgotten_tokens:
        parts.append(f"{facts.forgotten_tokens} tokens forgotten")
    return ", ".join(parts)


def _server_sent_events(response: http.client.HTTPResponse) -> Iterator[dict[str, Any]]:
    """The JSON of every `data:` line up to [DONE]."""
    for line in response:
        field, _, value = line.decode("utf-8", errors="replace").strip().partition(":")
        if field == "data" and value.strip() == "[DONE]":
            return
        if field == "data":
            yield json.loads(value)
    raise KveikError("the stream ended in the middle of an answer")
