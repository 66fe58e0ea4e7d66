"""A conversation as an object: `with llm.session() as s`. Its end is an end for the cache too."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeAlias

from kveik.cache.directive import Receipt
from kveik.engine.forgetting import Forget
from kveik.engine.request import SamplingParams
from kveik.managed import CacheOptions, refuse
from kveik.outputs import RequestOutput, StreamDelta
from kveik.prompting import Message

if TYPE_CHECKING:
    from kveik.llm import LLM


Forgets: TypeAlias = Forget | Mapping[str, Any]
"""As in CacheOptions."""


class Session:
    """A conversation: each turn sends its new message only, and the end frees what was computed
    for it alone. Made by `llm.session()`.

        with llm.session(system="You help with televisions.") as s:
            print(s.chat("How wide is the 55-inch TV?").outputs[0].text)
            print(s.chat("And its warranty?").outputs[0].text)

    messages: what was said so far; a turn that failed or was not read to its end is not in it.

    A turn may `forget` earlier ones (by number, tag or document, see CacheOptions): they are gone
    from `messages`, and what followed is reused as it was computed, with them in sight.

    With a stream window (of its options, or of the engine) it goes on for ever: turns behind the
    first go into the open stream, and `messages` stays what stood before it. An answer that fails
    or is not read to its end takes the stream along: the next turn begins another one."""

    def __init__(self, llm: LLM, options: CacheOptions, messages: Sequence[Message] = ()) -> None:
        self._llm = llm
        self._options = options
        self.messages: list[Message] = list(messages)
        self._is_stream = llm.engine.stream_for(options.window, SamplingParams()) is not None
        self._ended = False
        self._forgets = False  # has it forgotten anything? Then the engine keeps what is left

    @property
    def id(self) -> str:
        assert self._options.session is not None
        return self._options.session

    def chat(
        self,
        message: str | Message | Sequence[Message],
        sampling_params: SamplingParams | None = None,
        *,
        context: str | None = None,
        forget: Forgets | None = None,
    ) -> RequestOutput:
        """The next turn. message: a text of the user, or one or more messages. context: what the
        conversation is about from here on (another codebase, another order). forget: what of the
        turns so far goes, such as {"turns": [2, 3]}; turns keep their numbers."""
        turn = self._turn(message)
        conversation, options = self._next(turn, context, forget)
        output = self._llm.chat(conversation, sampling_params, cache=options)[0]
        self._keep(turn, output.outputs[0].text, options)
        return output

    def stream(
        self,
        message: str | Message | Sequence[Message],
        sampling_params: SamplingParams | None = None,
        *,
        context: str | None = None,
        forget: Forgets | None = None,
    ) -> Iterator[StreamDelta]:
        """The next turn as it is computed; it counts as said once it was read to its end."""
        turn = self._turn(message)
        conversation, options = self._next(turn, context, forget)
        deltas = self._llm.stream(conversation, sampling_params, cache=options)
        return self._read(turn, deltas, options)

    def _read(
        self, turn: list[Message], deltas: Iterator[StreamDelta], options: CacheOptions
    ) -> Iterator[StreamDelta]:
        answer = []
        for delta in deltas:
            if delta.index == 0:
                answer.append(delta.text)
            yield delta
        self._keep(turn, "".join(answer), options)

    def end(self) -> Receipt | None:
        """Free what the session alone computed; what others share stays. None: nothing was kept
        (any more). A second call does nothing."""
        if self._ended:
            return None
        self._ended = True
        return self._llm.end_session(self.id, namespace=self._options.namespace)

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.end()

    def _turn(self, message: str | Message | Sequence[Message]) -> list[Message]:
        if self._ended:
            refuse("session", f"{self.id} has ended; open another one")
        if isinstance(message, str):
            return [{"role": "user", "content": message}]
        return [message] if isinstance(message, Mapping) else list(message)

    def _next(
        self, turn: list[Message], context: str | None, forget: Forgets | None
    ) -> tuple[Sequence[Message], CacheOptions]:
        """What is sent, and how: into an open stream, and behind what was forgotten, only what is
        new."""
        options = self._about(context)
        if self._is_stream and forget is not None:
            refuse("forget", "a stream forgets what leaves its window, and nothing else")
        if self._is_stream and self._llm.engine.has_stream(options.namespace, self.id):
            return turn, replace(options, resumes=True)
        if self._forgets and not self._llm.engine.history.knows(options.namespace, self.id):
            self._forgets = False  # it idled out, and what it had computed went with it
        options = replace(options, forget=forget, continues=self._forgets)
        return turn if self._forgets else [*self.messages, *turn], options

    def _about(self, context: str | None) -> CacheOptions:
        if context is not None:
            self._options = replace(self._options, context=context)
        return self._options

    def _keep(self, turn: list[Message], answer: str, options: CacheOptions) -> None:
        self._forgets = self._forgets or options.forget is not None
        if self._is_stream:
            return
        if options.forget is not None:
            past = self._llm.engine.history.past(options.namespace, self.id)
            self.messages = list(past.messages)
        else:
            self.messages += [*turn, {"role": "assistant", "content": answer}]


def new_session_id() -> str:
    return "session-" + secrets.token_hex(8)
