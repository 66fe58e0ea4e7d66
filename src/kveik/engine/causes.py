"""Why two prompts stop being equal: the cause behind the first difference of two texts.

    before                   old
    |---- both prompts ----|---- what the cached one goes on with (a window)
                           |---- what this one goes on with (all of it)
                             new

The order of the checks is the method: white space; a beginning that comes again further on (dropped
messages, another order); a value whose shape names it (`shapes.py`); the frame that a chat template
puts around the words; and only then other words. What is sure is asked before what is likely. Pure
functions of text; whoever calls them has seen to it that both texts belong to one tenant.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from typing import Literal, TypeAlias

from kveik.engine.shapes import (
    COUNTER_LABELS,
    ID_LABELS,
    TIME_LABELS,
    Value,
    labels_before,
    values_at,
)

TextCause: TypeAlias = Literal[
    "time",
    "random_id",
    "counter",
    "whitespace",
    "order",
    "front_truncation",
    "template_drift",
    "different_text",
    "new_content",
]

_BLANK = re.compile(r"[\s\u200b\u200c\u200d\u2060\ufeff]+")
_ROLE = re.compile(
    r"""(?ix)
      <\|(?:im_start|start_header_id|start|start_of_role)\|>\s*
          (?P<named>system|developer|user|assistant|tool|model|human|ipython)
    | <\|/?(?P<token>system|developer|user|assistant|tool|human|observation)(?:_start)?\|>
    | <start_of_turn>\s*(?P<turn>user|model|system)
    | (?P<llama>\[/?INST\]|<</?SYS>>|\[SYSTEM_PROMPT\])
    | (?m:^)[#*\s]{0,4}(?P<line>system|user|human|assistant|ai|instruction|response|input|bot)
          (?:\s(?:prompt|message))?[*]{0,2}\s?:
    | <(?P<tag>system|user|assistant|human)>
    """
)
_LLAMA_ROLES = {"[inst]": "user", "[/inst]": "assistant", "<<sys>>": "system", "<</sys>>": "user"}
_OTHER_NAMES = {"human": "user", "instruction": "user", "input": "user", "model": "assistant"}
_OTHER_NAMES |= {"ai": "assistant", "response": "assistant", "bot": "assistant"}
_OTHER_NAMES |= {"developer": "system", "[system_prompt]": "system"}
_MARK = re.compile(r"<\|[^|\s]{1,40}\|>|\[/?INST\]|<</?SYS>>|</?s>|<(?:start|end)_of_turn>")
_THINKING = re.compile(
    r"(?i)<\|?/?(?:think|thinking|thought|reasoning|begin_of_thought|scratchpad)\|?>"
    r"|\[/?THINK\]|<\|channel\|>\s*analysis"
)
_TEMPLATE_DATE = re.compile(r"(?i)(?:cutting knowledge date|knowledge cutoff)[^\n]*\n[^\n]*\Z")
_NOTICE = re.compile(
    r"(?i)\b(?:earlier|previous|older|prior|past) (?:messages|conversation|turns|history|context)"
    r"|\bsummary of (?:the |our |what |earlier |previous )"
    r"|\b(?:conversation|chat) (?:so far|history)"
    r"|\bmessages? (?:was |were )?(?:removed|omitted|truncated)|\btruncated\b"
)
_LEXEME = re.compile(r"\w+|[^\w\s]")
_NEAR = 24  # characters that must be equal for a text to be called the same one
_LITTLE = 160  # characters: a question is about so long, a prompt is longer


@dataclass(frozen=True, slots=True)
class Finding:
    """The cause, the differing pieces of both texts, and whose words they are (role or None)."""

    cause: TextCause
    cached: str
    wanted: str
    role: str | None


def find_cause(before: str, old: str, new: str) -> Finding:
    """See the module. old or new may be empty."""
    same = _common(old, new)
    before, old, new = before + old[:same], old[same:], new[same:]
    pair = _Pair(before, old, new)
    if not old or not new:
        return pair.finding("new_content")
    for check in (
        _whitespace,
        _thinking,
        _moved,
        _dropped,
        _shaped,
        _frame,
        _history,
    ):
        cause = check(pair)
        if cause is not None:
            return pair.finding(cause)
    return pair.finding("different_text")


class _Pair:
    """Two texts with a common beginning. `old` and `new` differ in their first character."""

    def __init__(self, before: str, old: str, new: str) -> None:
        self.before, self.old, self.new = before, old, new
        self.place = len(before)
        self.cached = before + old
        self.wanted = before + new
        self.role = role_at(before) or self._before_all_roles()
        self.pieces: tuple[str, str] | None = None

    def _before_all_roles(self) -> str | None:
        """Words before the first marked message are the system's, however a template puts them."""
        inside = any(_mark_at(text, self.place) for text in (self.cached, self.wanted))
        told = _ROLE.search(self.old) and _ROLE.search(self.new)
        return "system" if told and not inside else None

    def finding(self, cause: TextCause) -> Finding:
        cached, wanted = self.pieces or (
            _word(self.cached, self.place),
            _word(self.wanted, self.place),
        )
        return Finding(cause, cached, wanted, self.role)


def role_at(before: str) -> str | None:
    """Whose message the text ends in; None: no role is marked."""
    last = None
    for match in _ROLE.finditer(before):
        last = match
    return _role_of(last) if last is not None else None


def _role_of(match: re.Match[str]) -> str:
    name = next(group for group in match.groups() if group is not None).lower()
    return _LLAMA_ROLES.get(name) or _OTHER_NAMES.get(name, name)


# ---- the checks, in their order


def _whitespace(pair: _Pair) -> TextCause | None:
    """Equal but for white space: at the place itself, and for a while behind it."""
    old, new = _BLANK.match(pair.old), _BLANK.match(pair.new)
    if not (old or new or pair.before[-1:].isspace()):
        return None
    rest_old, rest_new = _BLANK.sub("", pair.old[:400]), _BLANK.sub("", pair.new[:400])
    same = _common(rest_old, rest_new)
    if not (old or new) or same < min(_NEAR // 2, len(rest_old), len(rest_new)):
        return None
    pair.pieces = (old[0] if old else "", new[0] if new else "")
    return "whitespace"


def _thinking(pair: _Pair) -> TextCause | None:
    """Thoughts that stand in one of the two only, from here on: the template takes them out."""
    tails = (pair.old.lstrip(), pair.new.lstrip())
    starts = [_THINKING.search(pair.before[-24:] + tail[:24]) is not None for tail in tails]
    near = [bool(_THINKING.match(_from_mark(pair.before, tail))) for tail in tails]
    if any(near) and not all(near):
        return "template_drift"
    inside = re.search(r"(?i)<think(?:ing)?>\s*\Z", pair.before)
    closed = [re.match(r"(?i)\s*</think(?:ing)?>", tail) is not None for tail in tails]
    if inside and any(closed) and any(starts):
        return "template_drift"
    return None


def _from_mark(before: str, tail: str) -> str:
    """The text from the start of a mark (`<think>`) that the place may lie in."""
    opened = max(before[-20:].rfind("<"), before[-20:].rfind("["))
    return (
        before[-20:][opened:] + tail if opened >= 0 and ">" not in before[-20:][opened:] else tail
    )


def _moved(pair: _Pair) -> TextCause | None:
    """The same items in another order: what stands here in one stands further on in the other."""
    old, new = _words_from(pair.cached, pair.place), _words_from(pair.wanted, pair.place)
    old_item, new_item = _item(old), _item(new)
    if _permuted(old, new):
        return "order"
    if min(len(old_item), len(new_item)) < 3 or old_item == new_item:
        return None
    there, here = new.find(old_item, 1), old.find(new_item, 1)
    if there < 0:
        return None
    if here < 0 and _common(old, new[there:]) >= 0.9 * len(old):
        return None  # something was put in before; the order stayed
    share = _shared(old, new)
    if here >= 0 and share >= 0.75 and _swapped(old, new, here, there):
        return "order"
    if here < 0 and share >= 0.85 and len(old) > 300 and old[:60] in new:
        return "order"
    return None


def _permuted(old: str, new: str) -> bool:
    """A piece of the same words in another order, and both go on equal behind it."""
    for length in range(2, min(len(old), len(new), 400)):
        if old[length : length + _NEAR] == new[length : length + _NEAR]:
            words = [sorted(_LEXEME.findall(text[:length])) for text in (old, new)]
            return words[0] == words[1] and len(set(words[0])) > 1
    return False


def _swapped(old: str, new: str, here: int, there: int) -> bool:
    """Not only a piece that one of the two lacks: where one goes on as the other does further on,
    what is left out there comes again elsewhere."""
    if _common(old[here:], new) >= min(len(old) - here, len(new), 400):
        return old[: max(8, min(here - 6, 60))] in new
    if _common(new[there:], old) >= min(len(new) - there, len(old), 400):
        return new[: max(8, min(there - 6, 60))] in old
    return True


def _dropped(pair: _Pair) -> TextCause | None:
    """The new text goes on where the old one is further on: what is between was dropped."""
    found = _found_in(pair.old, pair.new)
    if found is not None and found > 0:
        return _name_dropped(pair, pair.old[:found])
    found = _found_in(pair.new, pair.old)
    if found is not None and found > 0:
        return _name_added(pair, pair.new[:found])
    return None


def _name_dropped(pair: _Pair, dropped: str) -> TextCause | None:
    pair.pieces = (dropped, "")
    roles = _roles_of_dropped(pair.before, dropped)
    if _THINKING.search(dropped):
        return "template_drift"
    if roles and set(roles) != {"system"}:
        return "front_truncation"
    if roles or (pair.role == "system" and len(dropped) > 2):
        return "template_drift" if len(dropped) > _NEAR or roles else None
    if "\n" in dropped and len(dropped) > 2 * _NEAR:
        return "front_truncation"  # whole lines or documents
    pair.pieces = None
    return "different_text" if len(dropped) > _NEAR else None


def _name_added(pair: _Pair, added: str) -> TextCause | None:
    pair.pieces = ("", added)
    if _THINKING.search(added) or "system" in _roles_of_dropped(pair.before, added):
        return "template_drift"
    if pair.role == "system" and len(added) > _NEAR:
        return "template_drift"
    pair.pieces = None
    return "different_text" if len(added) > _NEAR else None


def _roles_of_dropped(before: str, dropped: str) -> list[str]:
    """The roles of the messages that begin in a piece; the place may lie inside the first mark."""
    near = before[-24:]
    head = near[max(near.rfind("<"), near.rfind("\n")) :]
    begun = [match for match in _ROLE.finditer(head + dropped) if match.end() > len(head)]
    return [_role_of(match) for match in begun if "/" not in match[0]]


def _shaped(pair: _Pair) -> TextCause | None:
    """The same shape of value at the place in both."""
    others = {value.shape: value for value in values_at(pair.wanted, pair.place)}
    for value in values_at(pair.cached, pair.place):
        other = others.get(value.shape)
        if other is None or not _varies(pair, value, other):
            continue
        pair.pieces = (
            pair.cached[value.start : value.end],
            pair.wanted[other.start : other.end],
        )
        return _name_value(pair, value, other)
    return None


def _varies(pair: _Pair, value: Value, other: Value) -> bool:
    """A value that changes in a text that stays, and not the words of a question."""
    old, new = pair.cached[value.end :], pair.wanted[other.end :]
    same = _common(old, new)
    again = same >= min(12, len(old), len(new))
    labels = labels_before(pair.wanted, other.start)
    named = (
        labels
        & {
            "time": TIME_LABELS,
            "random_id": ID_LABELS | COUNTER_LABELS,
            "counter": COUNTER_LABELS | ID_LABELS,
        }[value.shape]
    )
    if value.sure and other.sure:
        return value.shape != "counter" or again or same >= 1
    if named and (again or (same >= 1 and value.shape != "random_id")):
        return True
    stays = same >= min(40, len(old), len(new))  # more than the frame of the next message
    return stays and not _is_question(pair, new)


def _is_question(pair: _Pair, rest: str) -> bool:
    """The place lies in the last words of the user, of which little is left."""
    following = _ROLE.search(rest)
    last = following is None or not re.search(r"\w{3}", rest[following.end() :])
    left = rest[: following.start()] if following else rest
    little = _LITTLE if pair.role is not None else _LITTLE // 3
    return last and len(left) < little and pair.role != "system"


def _name_value(pair: _Pair, value: Value, other: Value) -> TextCause:
    if value.shape == "time":
        frame = _TEMPLATE_DATE.search(pair.wanted[: other.start])
        return "template_drift" if frame else "time"
    if value.shape == "random_id":
        return "random_id"
    cached, wanted = pair.pieces or ("", "")
    numbers = [int(re.sub(r"\D", "", piece)) for piece in (cached, wanted)]
    apart, labels = abs(numbers[0] - numbers[1]), labels_before(pair.wanted, other.start, 2)
    if labels & ID_LABELS and (apart > 1000 or (not labels & COUNTER_LABELS and apart > 20)):
        return "random_id"
    if apart > 100_000 and not labels & COUNTER_LABELS:
        return "random_id"
    return "counter"


def _frame(pair: _Pair) -> TextCause | None:
    """The template's own marks differ, or the words of the system message. A text without any role
    is no chat, and has no frame that could differ from that of one."""
    if len({_ROLE.search(text) is None for text in (pair.cached, pair.wanted)}) > 1:
        return None
    marks = [_mark_at(text, pair.place) for text in (pair.cached, pair.wanted)]
    if all(marks) and marks[0] != marks[1]:
        roles = [role_at(mark) for mark in marks]
        chat = {"user", "assistant", "tool"}
        if None not in roles and set(roles) <= chat:
            return "front_truncation"
        return "template_drift"
    if pair.role == "system" or any(role_at(mark) == "system" for mark in marks):
        return "template_drift"
    if pair.role is None and marks != ["", ""] and not pair.before.strip():
        return "template_drift"
    return None


def _mark_at(text: str, place: int) -> str:
    """The mark of a template that covers or begins at the place, its role included."""
    low = max(0, place - 40)
    for match in _ROLE.finditer(text, low):
        if match.start() <= place < match.end():
            return match[0]
        if match.start() > place:
            break
    for match in _MARK.finditer(text, low):
        if match.start() <= place < match.end():
            return match[0]
        if match.start() > place:
            break
    return ""


def _history(pair: _Pair) -> TextCause | None:
    """Chats: later messages are the same again, or a long history begins with other messages.

    A chat that had been going on like this would have been cached turn by turn; so many turns
    behind the first difference mean that the history before them was changed."""
    starts = [match.start() for match in _ROLE.finditer(pair.new)]
    for start in starts[:8]:
        found = _found_in(pair.old, pair.new[start:])
        if found is not None and found > 0 and _goes_on(pair.old[found:], pair.new[start:]):
            messages = len(_roles_of_dropped("", pair.old[:found]))
            pair.pieces = (pair.old[:found], pair.new[:start])
            fewer = messages > starts.index(start) + 1 or _NOTICE.search(pair.new[:start])
            return "front_truncation" if fewer else "different_text"
    turns = sum(_role_of(match) == "user" for match in _ROLE.finditer(pair.new))
    roles = [_role_of(match) for match in _ROLE.finditer(pair.before)]
    first = "system" in roles[-2:] or len(roles) <= 1
    old_chat = len(_ROLE.findall(pair.old)) >= 1
    if first and old_chat and (turns >= 2 or (turns and _NOTICE.search(pair.new[:_LITTLE]))):
        return "front_truncation"
    return None


def _goes_on(old: str, new: str) -> bool:
    """Not only one message that happens to be the same, or its frame at the end of the window."""
    same = _common(old, new)
    return same >= 200 or (same >= 60 and same == min(len(old), len(new)))


# ---- texts


def _found_in(text: str, wanted: str) -> int | None:
    """Where the beginning of `wanted` stands in `text`; a window may cut it off at its end."""
    if len(wanted) >= 12:
        found = text.find(wanted[: 2 * _NEAR])
        for _ in range(4):  # the same question may have been asked before
            if found < 0:
                break
            if _common(text[found:], wanted) >= min(len(text) - found, len(wanted), 80):
                return found
            found = text.find(wanted[: 2 * _NEAR], found + 1)
    if len(wanted) >= 6 and text.endswith(wanted):
        return len(text) - len(wanted)
    for length in range(min(2 * _NEAR, len(wanted), len(text)), 15, -1):
        if text.endswith(wanted[:length]):
            return len(text) - length
    return None


def _words_from(text: str, place: int) -> str:
    """The text from the start of the word at the place."""
    start = place
    while start > 0 and text[start - 1].isalnum() and place - start < 40:
        start -= 1
    return text[start:]


def _item(text: str) -> str:
    """A beginning that tells one item of a list from another; of prose it takes more words."""
    least, end = (2 if re.search(r'["{\[(:]', text[:40]) else 4), 0
    for count, match in enumerate(re.finditer(r"\w+", text[:120]), 1):
        end = match.end()
        if count >= least and end >= 8:
            break
    return text[:end]


def _shared(old: str, new: str) -> float:
    """Share of the old text's runs of three lexemes that the new text has as well."""
    runs = [Counter(_runs(text)) for text in (old, new)]
    total = sum(runs[0].values())
    return sum((runs[0] & runs[1]).values()) / total if total else 0.0


def _runs(text: str) -> list[tuple[str, ...]]:
    words = _LEXEME.findall(text)
    return list(zip(words, words[1:], words[2:], strict=False))


def _word(text: str, place: int) -> str:
    """The word at the place, with what belongs to it on both sides."""
    start = end = place
    while start > 0 and not text[start - 1].isspace() and place - start < 40:
        start -= 1
    while end < len(text) and not text[end].isspace() and end - place < 40:
        end += 1
    return text[start:end]


def _common(left: str, right: str) -> int:
    """Length of the common prefix."""
    length = min(len(left), len(right))
    if left[:length] == right[:length]:
        return length
    return next(index for index in range(length) if left[index] != right[index])
