"""What a client may send: one record per request body, every number bounded by config.LIMITS.

The same records give the OpenAPI schema. `parse` turns whatever is wrong into one InvalidRequest
whose `param` is the path of the field. null stands for a field that was left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeAlias, TypeVar

from pydantic import Field, PlainValidator, ValidationError, WithJsonSchema

from kveik.config import LIMITS, check_limit
from kveik.errors import InvalidRequest
from kveik.server import messages
from kveik.server.fields import Body, bounded, refuse
from kveik.server.json_body import shown
from kveik.server.messages import Conversation
from kveik.server.retention_fields import CacheFields, Native
from kveik.server.unserved import CHAT, COMPLETION, refuse_unserved, served

Prompt: TypeAlias = str | tuple[int, ...]
"""One prompt: text, or token ids."""

_INTEGER_IDS = {
    "type": "integer",
    "minimum": int(LIMITS["token_id"].low),
    "maximum": int(LIMITS["token_id"].high),
}


def _stops(value: object) -> tuple[str, ...]:
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list | None):
        refuse("stop", "expected a string or a list of strings")
    for text in texts or ():
        if not isinstance(text, str) or not text:
            refuse("stop", "every stop string must be a string with at least one character")
        check_limit("stop_length", len(text), param="stop")
    check_limit("stop_count", len(texts or ()), param="stop")
    return tuple(texts or ())


def _token_ids(value: object, name: str) -> tuple[int, ...]:
    if not isinstance(value, list) or not all(type(item) is int for item in value):
        refuse(name, "expected a list of token ids")
    low, high = int(LIMITS["token_id"].low), int(LIMITS["token_id"].high)
    if value and not (low <= min(value) and max(value) <= high):
        refuse(name, f"a token id is outside {low} .. {high}")
    return tuple(value)


def _stop_token_ids(value: object) -> tuple[int, ...]:
    ids = _token_ids([] if value is None else value, "stop_token_ids")
    check_limit("stop_token_ids_count", len(ids), param="stop_token_ids")
    return ids


def _logit_bias(value: object) -> dict[int, float]:
    if not isinstance(value, dict | None):
        refuse("logit_bias", "expected an object of token ids and numbers")
    biases: dict[int, float] = {}
    for key, bias in (value or {}).items():
        if not (key.isascii() and key.isdigit() and len(key) <= 10):
            refuse("logit_bias", f"the key {shown(key)} is not a token id")
        check_limit("logit_bias", bias, param="logit_bias")
        biases[int(key)] = float(bias)
    check_limit("logit_bias_count", len(biases), param="logit_bias")
    return biases


def _prompts(value: object, name: str) -> tuple[Prompt, ...]:
    """A string, a list of strings, a list of token ids or a list of such lists."""
    if isinstance(value, str):
        return (value,)
    if not isinstance(value, list) or not value:
        refuse(name, "expected a string, strings, token ids or lists of token ids")
    if isinstance(value[0], int):
        return (_token_ids(value, name),)
    check_limit("prompt_count", len(value), param=name)
    return tuple(_one_prompt(item, f"{name}[{index}]") for index, item in enumerate(value))


def _one_prompt(item: object, place: str) -> Prompt:
    if isinstance(item, str):
        return item
    if not isinstance(item, list):
        refuse(place, "expected a string or a list of token ids")
    return _token_ids(item, place)


_STOP_STRING = {
    "type": "string",
    "minLength": int(LIMITS["stop_length"].low),
    "maxLength": int(LIMITS["stop_length"].high),
}
_ID_LIST = {"type": "array", "minItems": 1, "items": _INTEGER_IDS}

Stops: TypeAlias = Annotated[
    tuple[str, ...],
    PlainValidator(_stops),
    WithJsonSchema(
        {
            "anyOf": [
                _STOP_STRING,
                {
                    "type": "array",
                    "items": _STOP_STRING,
                    "maxItems": int(LIMITS["stop_count"].high),
                },
                {"type": "null"},
            ]
        }
    ),
]
StopTokenIds: TypeAlias = Annotated[
    tuple[int, ...],
    PlainValidator(_stop_token_ids),
    WithJsonSchema(
        {
            "type": ["array", "null"],
            "items": _INTEGER_IDS,
            "maxItems": int(LIMITS["stop_token_ids_count"].high),
        }
    ),
]
LogitBias: TypeAlias = Annotated[
    dict[int, float],
    PlainValidator(_logit_bias),
    WithJsonSchema(
        {
            "type": ["object", "null"],
            "propertyNames": {"pattern": "^[0-9]{1,10}$"},
            "maxProperties": int(LIMITS["logit_bias_count"].high),
            "additionalProperties": {
                "type": "number",
                "minimum": LIMITS["logit_bias"].low,
                "maximum": LIMITS["logit_bias"].high,
            },
        }
    ),
]


def _prompts_schema(text: dict[str, Any]) -> dict[str, Any]:
    """text: the schema of one string."""
    return {
        "anyOf": [
            text,
            {"type": "array", "minItems": 1, "items": text, "maxItems": 1024},
            _ID_LIST,
            {"type": "array", "minItems": 1, "items": _ID_LIST, "maxItems": 1024},
        ]
    }


Prompts: TypeAlias = Annotated[
    tuple[Prompt, ...],
    PlainValidator(lambda value: _prompts(value, "prompt")),
    WithJsonSchema(_prompts_schema({"type": "string"})),
]
Inputs: TypeAlias = Annotated[
    tuple[Prompt, ...],
    PlainValidator(lambda value: _prompts(value, "input")),
    WithJsonSchema(_prompts_schema({"type": "string", "minLength": 1})),
]
TokenIds: TypeAlias = Annotated[
    tuple[int, ...],
    PlainValidator(lambda value: _token_ids(value, "tokens")),
    WithJsonSchema({"type": "array", "items": _INTEGER_IDS}),
]
Messages: TypeAlias = Annotated[
    Conversation,
    PlainValidator(messages.check_messages),
    WithJsonSchema(messages.SCHEMA),
]


ChatMessages: TypeAlias = Annotated[
    Conversation,
    PlainValidator(lambda value: messages.check_messages(value, modules=True)),
    WithJsonSchema(messages.SCHEMA_WITH_MODULES),
]


class StreamOptions(Body):
    """include_obfuscation is accepted as false only: nothing is padded."""

    include_usage: bool | None = None
    include_obfuscation: Annotated[bool | None, WithJsonSchema({"enum": [False, None]})] = None


class Generation(CacheFields):
    """What chat and completions share. `user` is accepted and has no effect on the answer.

    From top_k on: extensions, named as vLLM names them."""

    model: Annotated[str, Field(max_length=512)]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Annotated[int, bounded("n")] | None = None
    temperature: Annotated[float, bounded("temperature")] | None = None
    top_p: Annotated[float, bounded("top_p")] | None = None
    presence_penalty: Annotated[float, bounded("presence_penalty")] | None = None
    frequency_penalty: Annotated[float, bounded("frequency_penalty")] | None = None
    logit_bias: LogitBias = Field(default_factory=dict)
    stop: Stops = ()
    seed: Annotated[int, bounded("seed")] | None = None
    max_tokens: Annotated[int, bounded("max_tokens")] | None = None
    user: Annotated[str, Field(max_length=512)] | None = None
    top_k: Annotated[int, bounded("top_k", low=-1)] | None = None
    min_p: Annotated[float, bounded("min_p")] | None = None
    repetition_penalty: Annotated[float, bounded("repetition_penalty")] | None = None
    min_tokens: Annotated[int, bounded("min_tokens")] | None = None
    ignore_eos: bool | None = None
    stop_token_ids: StopTokenIds = ()
    prompt_logprobs: Annotated[int, bounded("prompt_logprobs")] | None = None
    include_stop_str_in_output: bool | None = None
    skip_special_tokens: bool | None = None

    def check(self) -> None:
        super().check()
        if self.stream_options is not None and not self.stream:
            refuse("stream_options", "is allowed only with stream: true")
        if self.stream_options is not None and self.stream_options.include_obfuscation:
            refuse("stream_options.include_obfuscation", "is not served; send false")
        if self.stream and self.prompt_logprobs is not None:
            refuse("prompt_logprobs", "is not available with stream: true")


class ChatCompletion(Generation):
    """POST /v1/chat/completions"""

    unserved = CHAT
    messages: ChatMessages
    max_completion_tokens: Annotated[int, bounded("max_tokens")] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, bounded("logprobs")] | None = None

    def check(self) -> None:
        super().check()
        if self.kveik is not None and self.kveik.markup is not None:
            refuse("kveik.markup", "goes with prompt only; in messages a part is a module")
        if self.max_tokens is not None and self.max_completion_tokens is not None:
            refuse("max_tokens", "send max_tokens or max_completion_tokens, not both")
        if self.top_logprobs is not None and not self.logprobs:
            refuse("top_logprobs", "needs logprobs: true")


class Completion(Generation):
    """POST /v1/completions"""

    unserved = COMPLETION
    prompt: Prompts
    echo: bool | None = None
    logprobs: Annotated[int, bounded("completion_logprobs")] | None = None

    def check(self) -> None:
        super().check()
        if self.kveik is not None and self.kveik.continues:
            refuse("kveik.continue", "goes with messages only; use /v1/chat/completions")
        if self.kveik is not None and self.kveik.forget:
            refuse("kveik.forget", "is about turns of a chat; use /v1/chat/completions")
        if self.kveik is not None and self.kveik.markup:
            if self.echo or self.cached_content is not None:
                refuse("kveik.markup", "goes neither with echo nor with cached_content")
            if not all(isinstance(one, str) for one in self.prompt):
                refuse("prompt", "markup is a text, no token ids")
        if self.kveik is not None and self.kveik.explain and len(self.prompt) > 1:
            refuse("kveik.explain", "explains one prompt; send one")
        check_limit("choice_count", len(self.prompt) * (self.n or 1), param="n")


class Embeddings(Body):
    """POST /v1/embeddings. `user` is accepted and has no effect on the answer."""

    model: Annotated[str, Field(max_length=512)]
    input: Inputs
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, bounded("dimensions")] | None = None
    user: Annotated[str, Field(max_length=512)] | None = None

    def check(self) -> None:
        for index, one in enumerate(self.input):
            if not one:
                refuse("input" if len(self.input) == 1 else f"input[{index}]", "is empty")


class Tokenize(Body):
    """POST /tokenize: of `prompt`, or of `messages` in the chat template."""

    model: Annotated[str, Field(max_length=512)] | None = None
    prompt: str | None = None
    messages: Messages | None = None
    add_special_tokens: bool | None = None
    add_generation_prompt: bool | None = None
    return_token_strs: bool | None = None

    def check(self) -> None:
        if (self.prompt is None) == (self.messages is None):
            refuse("prompt", "send either prompt or messages")
        if self.prompt is not None and self.add_generation_prompt is not None:
            refuse("add_generation_prompt", "goes with messages only")
        if self.messages is not None and self.add_special_tokens is not None:
            refuse("add_special_tokens", "goes with prompt only")
        if self.messages is not None and (self.messages.documents or self.messages.marks):
            refuse("messages", "labels for the cache have no effect on token ids; leave them out")


class Detokenize(Body):
    """POST /detokenize"""

    model: Annotated[str, Field(max_length=512)] | None = None
    tokens: TokenIds


AnyBody = TypeVar("AnyBody", bound=Body)

_SHORT_BODY = 16  # fields that an error can list


def parse(kind: type[AnyBody], body: Mapping[str, Any]) -> AnyBody:
    """The body as a checked record. Raises InvalidRequest (UnsupportedFeature) naming the field."""
    refuse_unserved(body, kind.unserved)
    fields = served(body, kind.unserved)
    known = {field.alias or name for name, field in kind.model_fields.items()}
    for name in fields:
        if name not in known:
            refuse(shown(name), "unknown field" + _known(kind))
    try:
        record = kind.model_validate(fields)
    except ValidationError as error:
        raise _explained(error) from None
    record.check()
    return record


def _known(kind: type[Body]) -> str:
    """What a short body may hold."""
    names = [field.alias or name for name, field in kind.model_fields.items()]
    return f"; known are {', '.join(names)}" if len(names) <= _SHORT_BODY else ""


def _explained(error: ValidationError) -> InvalidRequest:
    """The first error, with the path of its field. The value is repeated only if it is a number."""
    first = error.errors(include_url=False)[0]
    place = _path(first["loc"])
    value, context = first["input"], first.get("ctx", {})
    if first["type"] == "missing":
        why = "is required"
    elif first["type"] == "extra_forbidden":
        why = "unknown field" + (_known(Native) if first["loc"][0] == "kveik" else "")
    elif first["type"] in ("greater_than_equal", "less_than_equal"):
        bound = f"less than {context['ge']}" if "ge" in context else f"more than {context['le']}"
        why = f"{_number(value)} is {bound}"
    elif first["type"] == "value_error":
        why = str(context["error"])
    else:
        why = first["msg"][:1].lower() + first["msg"][1:]
    return InvalidRequest(f"{place}: {why}", param=place)


def _number(value: object) -> str:
    try:
        text = str(value)
    except ValueError:  # thousands of digits
        return "the number"
    return text if len(text) <= 40 else text[:40] + "..."


def _path(places: tuple[int | str, ...]) -> str:
    path = ""
    for place in places:
        if isinstance(place, int):
            path += f"[{place}]"
        else:
            path += f".{shown(place)}" if path else shown(place)
    return path or "body"
