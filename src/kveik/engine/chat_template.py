"""Chat messages to one text, by the Jinja template of the model or a built-in one.

Templates come from the model's folder or the operator, never from a request. They run in Jinja's
immutable sandbox with the helpers that Hugging Face templates expect (`raise_exception`,
`strftime_now`, `tojson`, loop controls; the `generation` block is passed through), and their
output is bounded.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from kveik.config import LIMITS
from kveik.errors import ConfigError, InvalidRequest, ModelLoadError

_MAX_CHARACTERS = int(LIMITS["chat_characters"].high)

# `opening` is the bos token where the vocabulary opens plain text with it, else empty.
_CHATML = """\
{{- opening -}}
{%- for message in messages -%}
{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
"""

_LLAMA2 = """\
{%- set ns = namespace(system='') -%}
{%- for message in messages -%}
{%- if message['role'] == 'system' -%}
{%- set ns.system = '<<SYS>>\\n' + message['content'] + '\\n<</SYS>>\\n\\n' -%}
{%- elif message['role'] == 'user' -%}
{{- bos_token + '[INST] ' + ns.system + message['content'] | trim + ' [/INST]' -}}
{%- set ns.system = '' -%}
{%- elif message['role'] == 'assistant' -%}
{{- ' ' + message['content'] | trim + ' ' + eos_token -}}
{%- else -%}
{{- raise_exception('the llama2 template knows the roles system, user and assistant') -}}
{%- endif -%}
{%- endfor -%}
"""

_ALPACA = """\
{{- opening -}}
{%- for message in messages -%}
{%- if message['role'] == 'system' -%}
{{- message['content'] | trim + '\\n\\n' -}}
{%- elif message['role'] == 'user' -%}
{%- if loop.first -%}
{{- 'Below is an instruction that describes a task. ' -}}
{{- 'Write a response that appropriately completes the request.\\n\\n' -}}
{%- endif -%}
{{- '### Instruction:\\n' + message['content'] | trim + '\\n\\n' -}}
{%- elif message['role'] == 'assistant' -%}
{{- '### Response:\\n' + message['content'] | trim + eos_token + '\\n\\n' -}}
{%- else -%}
{{- raise_exception('the alpaca template knows the roles system, user and assistant') -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '### Response:\\n' -}}{%- endif -%}
"""

BUILT_IN: Mapping[str, str] = {"chatml": _CHATML, "llama2": _LLAMA2, "alpaca": _ALPACA}


class ChatTemplate:
    """A compiled template. `where` names it in errors (a file, or a built-in name).

    Raises ModelLoadError when the source is not a Jinja template."""

    def __init__(self, source: str, *, where: str, now: Callable[[], datetime] = datetime.now):
        environment = _Sandbox(
            trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationBlock, loopcontrols]
        )
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = lambda form: now().strftime(form)
        environment.filters["tojson"] = _to_json
        try:
            self._template = environment.from_string(source)
        except jinja2.TemplateError as error:
            raise ModelLoadError(
                f"{where}: the chat template is not valid Jinja ({error}); "
                "give another one with --chat-template chatml | llama2 | alpaca | FILE"
            ) from None

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        variables: Mapping[str, str],
        *,
        add_generation_prompt: bool = True,
        moment: datetime | None = None,
    ) -> str:
        """The text of a conversation, as it is rendered now or at another moment.

        Raises InvalidRequest when the template refuses it or the text is longer than
        LIMITS["chat_characters"]."""
        pieces: list[str] = []
        length = 0
        clock = {} if moment is None else {"strftime_now": moment.strftime}
        try:
            for piece in self._template.generate(
                messages=messages,
                add_generation_prompt=add_generation_prompt,
                tools=None,
                documents=None,
                **variables,
                **clock,
            ):
                length += len(piece)
                if length > _MAX_CHARACTERS:
                    raise InvalidRequest(
                        f"messages: the rendered chat is longer than {_MAX_CHARACTERS} characters",
                        param="messages",
                    )
                pieces.append(piece)
        except InvalidRequest:
            raise
        except Exception as error:  # the template is a program of the model's author
            raise InvalidRequest(
                f"messages: the chat template cannot render them: {error}", param="messages"
            ) from None
        return "".join(pieces)


def load_chat_template(choice: str) -> ChatTemplate:
    """The template that `--chat-template` names: a built-in name or a file.

    Raises ConfigError when it is neither."""
    if choice in BUILT_IN:
        return ChatTemplate(BUILT_IN[choice], where=choice)
    try:
        source = Path(choice).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"chat_template: {choice!r} is neither {', '.join(BUILT_IN)} "
            f"nor a readable file ({type(error).__name__})",
            param="chat_template",
        ) from None
    return ChatTemplate(source, where=choice)


class _Sandbox(ImmutableSandboxedEnvironment):
    """Also bounds repetition and powers: 'x' * 10**9 would allocate before any output check."""

    intercepted_binops = frozenset(["*", "**"])

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "**":
            raise SecurityError("powers are not available in a chat template")
        sequence, count = (right, left) if isinstance(left, int) else (left, right)
        repeats = isinstance(sequence, str | list | tuple) and isinstance(count, int)
        if repeats and len(sequence) * count > _MAX_CHARACTERS:
            raise SecurityError("a repeated value is too long")
        return super().call_binop(context, operator, left, right)


class _GenerationBlock(Extension):
    """`{% generation %} ... {% endgeneration %}` marks text for training; it is passed through."""

    tags = {"generation"}  # noqa: RUF012 (declared so by jinja2)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own filter escapes for HTML, which no model was trained on.
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )
