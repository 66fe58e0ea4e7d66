"""What kind of value stands at one place of a text: a time, a random id, a counter.

Two prompts that differ in one value are told apart by the shape that the value has in both. Only
a few dozen characters around the place are looked at, and no pattern backtracks far, since the
texts are users'. Knows nothing of caches or prompts.
"""

from __future__ import annotations

import itertools
import re
from typing import Literal, NamedTuple, TypeAlias

Shape: TypeAlias = Literal["time", "random_id", "counter"]

REACH = 120  # characters on either side of the place


class Value(NamedTuple):
    """`start .. end` of the text. sure: nothing but such a value is written so."""

    shape: Shape
    start: int
    end: int
    sure: bool


_MONTHS = """
january february march april may june july august september october november december jan feb
mar apr jun jul aug sep sept oct nov dec januar februar märz mai juni juli oktober dezember jän
mär okt dez janvier février mars avril juin juillet août septembre octobre novembre décembre
janv févr juil déc enero febrero marzo abril mayo junio julio agosto septiembre octubre
noviembre diciembre ene abr ago dic gennaio febbraio aprile maggio giugno luglio settembre
ottobre dicembre gen mag giu lug set ott janeiro fevereiro março maio junho julho setembro
outubro novembro dezembro fev out januari februari maart mei augustus mrt stycznia lutego marca
kwietnia maja czerwca lipca sierpnia września października listopada grudnia maj augusti
tammikuuta helmikuuta maaliskuuta huhtikuuta toukokuuta kesäkuuta heinäkuuta elokuuta syyskuuta
lokakuuta marraskuuta joulukuuta января февраля марта апреля мая июня июля августа сентября
октября ноября декабря ocak şubat mart nisan mayıs haziran temmuz ağustos eylül ekim kasım
aralık
"""
_WEEKDAYS = """
monday tuesday wednesday thursday friday saturday sunday montag dienstag mittwoch donnerstag
freitag samstag sonnabend sonntag lundi mardi mercredi jeudi vendredi samedi dimanche lunes
martes miércoles jueves viernes sábado domingo lunedì martedì mercoledì giovedì venerdì sabato
domenica segunda-feira terça-feira quarta-feira quinta-feira sexta-feira maandag dinsdag
woensdag donderdag vrijdag zaterdag zondag poniedziałek wtorek środa czwartek piątek sobota
niedziela måndag tisdag onsdag torsdag fredag lördag söndag понедельник вторник среда четверг
пятница суббота воскресенье
"""
_SHORT_DAYS = (
    "mon tue tues wed thu thur thurs fri sat sun lun mar mer jeu ven sam dim mo di mi do fr"
)


def _words(words: str) -> str:
    return "|".join(sorted(map(re.escape, set(words.split())), key=len, reverse=True))


_CLOCK = r"\d{1,2}:\d{2}(?::\d{2}(?:[.,]\d{1,9})?)?"
_YEAR = r"(?:19|20)\d\d"
_AP = r"(?:Uhr|o'clock|[ap]\.?m\b)"
_ATOM = re.compile(
    rf"""
      (?P<stamp> (?<!\d) {_YEAR} -?[01]\d -?[0-3]\d T? [0-2]\d :?[0-5]\d (?::?[0-5]\d)? Z? (?!\d) )
    | (?P<date> (?<!\d)
               (?: \d{{4}}[-/.]\d{{1,2}}[-/.]\d{{1,2}}
               | \d{{1,2}}[-/]\d{{1,2}}[-/]\d{{2,4}}
               | \d{{1,2}}\.\s?\d{{1,2}}\.\s?(?:19|20)?\d\d
               | {_YEAR}-[01]\d
               | {_YEAR}-?W[0-5]\d
               | {_YEAR}[01]\d[0-3]\d ) (?!\d) )
    | (?P<clock> (?<![\d:])
               (?: {_CLOCK} | [0-2]?\dh[0-5]\d | [0-2]?\d\.[0-5]\d(?=\s?{_AP})
               | \d{{1,2}}(?=\s?{_AP}) )
               (?!\d) )
    | (?P<cjk> \d{{1,4}}\s?[年月日時时点分秒년월일시분초] | 星期[一二三四五六日天]
               | [月火水木金土日]曜日? | 上午|下午|午前|午後|오전|오후 )
    | (?P<weekday> \b(?:{_words(_WEEKDAYS)})\b )
    | (?P<month> \b(?:{_words(_MONTHS)})\b\.? )
    | (?P<short> \b(?:{_words(_SHORT_DAYS)})\b\.? )
    | (?P<zone> \b(?:UTC|GMT|CES?T|[ECMP][SD]T|BST|JST|IST|Z)\b (?:[+-]\d{{1,2}}(?::?\d\d)?)?
               | (?<=[\d\s])[+-]\d\d:?\d\d\b | (?<=\d)Z\b | \b[A-Z][a-z]+/[A-Z][a-z_A-Z]+\b )
    | (?P<part> \b(?:[ap]m\b|[ap]\.m\.|uhr|o'clock|morning|afternoon|evening|night|noon|midnight) )
    | (?P<year> (?<![\d.,]) (?:19|20)\d\d (?![\d]) )
    | (?P<day> (?<![\d.,]) [0-3]?\d (?:st|nd|rd|th|er|º|ª|\.(?=\s))? (?![\d\w]) )
    """,
    re.VERBOSE | re.IGNORECASE,
)
_GAP = re.compile(
    r"[\s,.;:/()\[\]T@|·•—–-]{0,4}"
    r"(?:(?:of|the|at|on|in|um|den|am|der|le|la|las|les|à|a|de|del|di|alle|ore|às|as|kl|o|klo|i)\b"
    r"[\s,.]{1,2}){0,2}",
    re.IGNORECASE,
)
_SURE = {"stamp", "date", "cjk"}
_EPOCH = re.compile(r"(?<![\w.-])1\d{9}(?:\d{3}|\d{6}|\d{9}|\.\d{1,9})?(?![\w-])")
_WORD = re.compile(r"[A-Za-z0-9_+=-]+")
_SEGMENT = re.compile(r"[A-Za-z0-9]+")
_NUMBER = re.compile(r"\d{1,3}(?:[,'’]\d{3})+(?!\d)|\d+(?:st|nd|rd|th)?")
_UUID = re.compile(r"(?i)[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_SENTENCE_END = re.compile(r"\n|[.!?]\s|\|>")
_LABEL = re.compile(r"[^\W\d_]+")


def _set(words: str) -> frozenset[str]:
    return frozenset(word.removesuffix("s") or word for word in words.split())


TIME_LABELS = _set("""
time date now timestamp ts clock today epoch unix datetime day hour when current generated datum
uhrzeit zeit heute heure fecha hora data ora
""")
ID_LABELS = _set("""
id ids uuid guid session sess trace span correlation nonce key token conversation thread conv
hash sha commit salt seed ref reference uid rid txn transaction ticket cid sid build etag
fingerprint run job
""")
COUNTER_LABELS = _set("""
request req turn message msg messages step iteration iter attempt try call query count counter
number no nr num seq sequence index idx round retry visit n interaction exchange question
item entry total visits calls requests turns times
""")


def values_at(text: str, place: int) -> list[Value]:
    """The readings of what stands at `place`, the likeliest first; each covers it or ends there."""
    low = max(0, place - REACH)
    around = text[low : place + REACH]
    found = [_time(around, place - low), _random_id(around, place - low)]
    found.append(_counter(around, place - low))
    return [
        value._replace(start=value.start + low, end=value.end + low)
        for value in found
        if value is not None
    ]


def labels_before(text: str, start: int, count: int = 4) -> set[str]:
    """The words that name a value: those before it in its line, the last few."""
    line = text[max(0, start - 48) : start]
    line = _SENTENCE_END.split(line)[-1]
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", line)
    return _singular(_LABEL.findall(spaced)[-count:])


def _singular(words: list[str]) -> set[str]:
    return {word.lower().removesuffix("s") or word.lower() for word in words}


def _time(text: str, place: int) -> Value | None:
    epoch = _covering(_EPOCH, text, place)
    if epoch is not None:
        ids = labels_before(text, epoch[0], 1) & ID_LABELS
        return None if ids else Value("time", *epoch, True)
    group: list[re.Match[str]] = []
    for atom in _ATOM.finditer(text):
        if group and not _GAP.fullmatch(text, group[-1].end(), atom.start()):
            if group[-1].end() >= place:
                break
            group = []
        group.append(atom)
    while group and group[0].lastgroup in ("part", "zone"):
        group = group[1:]
    if not group or not group[0].start() <= place <= group[-1].end():
        return None
    kinds = [atom.lastgroup for atom in group]
    dated = {"month", "short"} & {*kinds} and {"day", "year", "clock"} & {*kinds}
    years = kinds == ["year"] and labels_before(text, group[0].start()) & (TIME_LABELS | {"year"})
    if not ({"clock", "weekday"} | _SURE) & {*kinds} and not dated and not years:
        return None
    sure = bool(_SURE & {*kinds}) or (len(kinds) > 1 and not {*kinds} <= {"clock", "day", "part"})
    return Value("time", group[0].start(), group[-1].end(), sure)


def _random_id(text: str, place: int) -> Value | None:
    span = _covering(_UUID, text, place)
    if span is not None:
        return Value("random_id", *span, True)
    span = _covering(_WORD, text, place)
    if span is None:
        return None
    word = text[span[0] : span[1]]
    if looks_random(word):
        return Value("random_id", *span, True)
    named = labels_before(text, span[0]) & ID_LABELS and re.search(r"\d{4}|[A-Za-z0-9]{6}", word)
    if named or any(_case_changes(segment) >= 4 for segment in _SEGMENT.findall(word)):
        return Value("random_id", *span, False)
    return None


def looks_random(word: str) -> bool:
    """Letters and digits as no language mixes them, or many hexadecimal digits."""
    segments = _SEGMENT.findall(word)
    return any(_is_noise(segment) for segment in segments) or (
        len(segments) > 2
        and sum(bool(re.search(r"\d", s)) for s in segments) >= 3
        and len(word) > 11
    )


def _is_noise(segment: str) -> bool:
    if len(segment) < 6:
        return False
    changes = sum(a.isdigit() != b.isdigit() for a, b in itertools.pairwise(segment))
    if segment.isdigit():
        return len(segment) >= 8
    if changes >= 2:
        return True
    if re.fullmatch(r"(?i)[0-9a-f]{8,}", segment) and changes:
        return True
    return len(segment) >= 16 and _case_changes(segment) >= 6


def _case_changes(segment: str) -> int:
    return sum(a.isupper() != b.isupper() for a, b in itertools.pairwise(segment))


def _counter(text: str, place: int) -> Value | None:
    span = _covering(_NUMBER, text, place)
    if span is None or span[1] - span[0] > 9:
        return None
    start, end = span
    before, after = text[max(0, start - 2) : start], text[end : end + 2]
    if re.search(r"[\w][.]$|[$€£¥.]$", before) or re.match(r"[.,]\d|[°%€$£]", after):
        return None
    follows = _singular(_LABEL.findall(text[end : end + 24].partition("\n")[0])[:1])
    signed = before.endswith(("#", "№")) and before != "##"
    counted = signed or bool((labels_before(text, start) | follows) & COUNTER_LABELS)
    return Value("counter", start, end, counted)


def _covering(pattern: re.Pattern[str], text: str, place: int) -> tuple[int, int] | None:
    """The match that holds `place`, or starts or ends there."""
    for match in pattern.finditer(text):
        if match.start() > place:
            return None
        if match.end() >= place:
            if match.end() == place and (after := pattern.match(text, place)):
                return after.span()
            return match.span()
    return None
