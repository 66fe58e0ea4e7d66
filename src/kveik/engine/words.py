"""The words that callers give the cache: names, documents with versions, durations, tags, salts.

Every door checks them here, so that what one accepts no other refuses. A function raises ValueError
saying what is expected, never what was given: who knows the field puts its name in front.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from hashlib import blake2b

from kveik.cache.window import StreamWindow
from kveik.config import LIMITS, check_stream_window, parse_duration, parse_stream_window
from kveik.errors import ConfigError

_LONGEST = int(LIMITS["identifier_length"].high)
IDENTIFIER = f"[A-Za-z0-9._:/@+-]{{1,{_LONGEST}}}"
DOCUMENT = f"[A-Za-z0-9._:/+-]{{1,{_LONGEST}}}"


def identifier(value: object) -> str:
    """A session, context, tag, version or name of a cache."""
    if not isinstance(value, str) or not re.fullmatch(IDENTIFIER, value):
        raise ValueError(f"expected 1 .. {_LONGEST} characters of A-Z a-z 0-9 . _ : / @ + -")
    return value


def document_id(value: object) -> str:
    """An identifier without "@", which stands between a document and its version."""
    if not isinstance(value, str) or not re.fullmatch(DOCUMENT, value):
        raise ValueError(f"expected 1 .. {_LONGEST} characters of A-Z a-z 0-9 . _ : / + -")
    return value


def document_version(value: object) -> tuple[str, str]:
    """("handbook", "3") from "handbook@3"."""
    name, at, version = value.partition("@") if isinstance(value, str) else ("", "", "")
    if not at:
        raise ValueError("expected a document and its version, such as handbook@3")
    return document_id(name), identifier(version)


def duration(value: object) -> float:
    """Seconds from 300, "300s", "5m", "1h" or "1d", within LIMITS["ttl"]."""
    low, high = LIMITS["ttl"].low, LIMITS["ttl"].high
    try:
        seconds = parse_duration(value, "ttl") if isinstance(value, int | float | str) else math.nan
    except ConfigError:
        seconds = math.nan
    if not low <= seconds <= high:
        raise ValueError(
            f"expected a duration such as 300, 5m, 1h or 1d, from {low:g} s to {high / 86400:g}d"
        )
    return seconds


def tag_list(value: object) -> tuple[str, ...]:
    """Distinct tags in the order in which they were given."""
    most = int(LIMITS["tag_count"].high)
    if isinstance(value, str) or not isinstance(value, Sequence) or len(value) > most:
        raise ValueError(f"expected a list of at most {most} tags")
    return tuple(dict.fromkeys(map(identifier, value)))


def stream_window(value: object) -> StreamWindow:
    """From "4+1020", "4+1020/64" or {"sinks": 4, "window": 1020, "evict": 64}, of which only the
    window must be said."""
    if isinstance(value, StreamWindow):
        return value
    if isinstance(value, str):
        try:
            return StreamWindow(*parse_stream_window(value, "stream_window"))
        except ConfigError as error:
            raise ValueError(error.message.removeprefix("stream_window: ")) from None
    parts = dict(value) if isinstance(value, Mapping) else {}
    known = {"sinks": parts.pop("sinks", 4), "window": parts.pop("window", None)}
    known["evict"] = parts.pop("evict", 1)
    if parts or not all(type(one) is int for one in known.values()):
        raise ValueError('expected {"sinks": 4, "window": 1020, "evict": 1} in tokens, or "4+1020"')
    check_stream_window(known["sinks"], known["window"], known["evict"])
    return StreamWindow(**known)


def salt_digest(value: object) -> str:
    """What the engine is told instead of a salt."""
    low, high = int(LIMITS["salt_length"].low), int(LIMITS["salt_length"].high)
    if not isinstance(value, str) or not low <= len(value) <= high:
        raise ValueError(f"expected a string of {low} .. {high} characters")
    try:
        data = value.encode()
    except UnicodeEncodeError:
        raise ValueError("expected valid Unicode, got a lone surrogate") from None
    return blake2b(data, digest_size=16, person=b"kveik-salt").hexdigest()
