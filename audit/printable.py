"""Text for people: harmless to a terminal, without passwords, and no wider than the line (SPEC section 4).

This module knows neither containers nor verdicts, and prints nothing.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta, tzinfo
from functools import lru_cache
from itertools import accumulate, takewhile

from audit.policy import HOUR, UTC

LONGEST = 4_000
"""How many characters of a text are looked at to put it on one line."""

_CUT = "..."
_WORD = re.compile(r"(?:\(?\d[\d.,]{0,9} )?\S+")
"""What is not broken in two: a word, and a number with its unit."""
_COLOURS = {0: "32", 1: "33", 2: "31;1"}
_SECRET_VALUE = r"""(\\{0,4}"[^"]*"?|\\{0,4}'[^']*'?|(?!(?:YES|NO)\b)\S+)"""  # noqa: S105  # finds them
# every repetition is limited or ends the match, so that the time grows with the length of a text and not its square
_PASSWORDS = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        # password=..., "DB_PASS": "...", PASSWORD '...', but not MySQL's (using password: YES)
        r"""((?:password|passwd|passphrase|pass|pwd|secret|token|access_key|_auth)(?!\w{0,9}fil)\w{0,40}\\{0,4}["']?"""
        rf"""(?:\s{{0,9}}[=:]\s{{0,9}}|\s{{1,9}}(?=["'])))(?!\*){_SECRET_VALUE}""",
        rf"(--password\s{{1,9}}|identified\s(?:with\s\S{{1,60}}\s)?by\s(?:password\s)?)(?!\*){_SECRET_VALUE}",
        r"((?<!\S)-p)([^\s-]\S*)",  # mysqldump's -pSECRET
        r"((?<!\S)-p\s{1,9})(?!\d{1,9}(?!\S))([^\s-]\S*)",  # mongodump's -p SECRET, but not pg_dump's -p 5432
        r"(://[^\s:/@]{0,99}:)(\S{1,200})(?=@)",  # scheme://user:SECRET@host
    )
)


@dataclass(frozen=True)
class Style:
    """How to print for one reader."""

    zone: tzinfo = UTC
    """The zone of times."""
    width: int = 80
    """Columns of a line."""
    colour: bool = False
    ascii: bool = False
    """Whether nothing but ASCII can be printed."""


# --- Harmless ------------------------------------------------------------------------------------------


def one_line(text: str | None) -> str:
    """Text on one line, harmless to a terminal and with passwords masked; the beginning of a very long text."""
    text = (text or "").lstrip()
    folded = " ".join(text[:LONGEST].split())
    if len(text) <= LONGEST:
        return spell_out(mask(folded))
    # the end may cut a password in two: with an @ after it, the first half is recognised by every pattern
    return spell_out(mask(f"{folded}@").removesuffix("@")) + _CUT


def spell_out(text: str) -> str:
    """Text in which whatever a terminal might obey, or reorder a line for, is spelled out as in Python source."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def mask(text: str) -> str:
    """Text with whatever looks like a password replaced by `*****`."""
    for pattern in _PASSWORDS:
        text = pattern.sub(r"\1*****", text)
    return text


# --- Lengths and widths --------------------------------------------------------------------------------


def shorten(text: str, limit: int) -> str:
    """Text of at most `limit` characters; what is cut off is replaced by `...`."""
    return text if len(text) <= limit else text[: limit - len(_CUT)] + _CUT


def columns(text: str) -> int:
    """How many columns of a terminal a text takes: wide characters two, combining ones none."""
    return len(text) if text.isascii() else sum(map(_columns_of, text))


@lru_cache(maxsize=1024)
def _columns_of(character: str) -> int:
    if unicodedata.category(character) in ("Mn", "Me") or "\u1160" <= character <= "\u11ff":
        return 0  # the latter are the inner parts of a Korean syllable
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def cut(text: str, width: int) -> str:
    """Text of at most `width` columns; what is cut off is replaced by `...`."""
    text, longer = text[: 4 * width], len(text) > 4 * width  # there may be no end of combining characters
    if columns(text) <= width and not longer:
        return text
    taken = accumulate(map(columns, text))
    return text[: sum(1 for _ in takewhile(lambda so_far: so_far <= width - len(_CUT), taken))] + _CUT


def fit(text: str, width: int) -> str:
    """Text cut or padded to exactly `width` columns."""
    text = cut(text, width)
    return text + " " * (width - columns(text))


def wrap(text: str, width: int, indent: str = "") -> Iterator[str]:
    """Text in lines of at most `width` columns, each with the indent (`textwrap` would count characters)."""
    room = width - len(indent)
    line, taken = "", 0
    for piece in (piece for word in _WORD.findall(text) for piece in _pieces(word, room)):
        wide = columns(piece)
        if line and taken + 1 + wide > room:
            yield indent + line
            line, taken = "", 0
        line, taken = (f"{line} {piece}", taken + 1 + wide) if line else (piece, wide)
    if line:
        yield indent + line


def _pieces(word: str, room: int) -> Iterator[str]:
    """A word in pieces that fit into a line; mostly one."""
    if columns(word) <= room:
        yield word
        return
    start = taken = 0
    for place, wide in enumerate(map(columns, word)):
        if taken + wide > room and place > start:
            yield word[start:place]
            start, taken = place, 0
        taken += wide
    yield word[start:]


def paint(text: str, severity: int, style: Style) -> str:
    """Text in the colour of a severity, for a reader who wants colours."""
    return f"\033[{_COLOURS[severity]}m{text}\033[0m" if style.colour else text


def duration_text(duration: timedelta | None) -> str:
    """A duration as people say it: `42 s`, `31 min`, `2.5 h`; `-` if it is unknown."""
    if duration is None:
        return "-"
    seconds = duration.total_seconds()
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{duration / HOUR:,.1f} h"
