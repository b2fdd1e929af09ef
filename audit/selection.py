"""Which containers the words of a command line mean (SPEC section 4)."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from datetime import tzinfo
from fnmatch import fnmatchcase

from audit.policy import UTC, Container, minute
from audit.printable import cut, one_line

_SUGGESTED = 3
_COMPARED = 100
"""How many characters of a name count for its similarity to another."""


def select(
    containers: Sequence[Container], words: Iterable[str], deleted: Sequence[Container] = (), zone: tzinfo = UTC
) -> list[Container]:
    """The containers that the words mean, each once: names, `c_id`s or shell patterns, in this order of preference.

    Raises `ValueError` for a word that means none; its text is `<problem>: <what to do>`, with times of `zone`.
    """
    chosen: dict[Container, None] = {}
    for word in words:
        found = _meant(containers, word)
        if not found:
            raise ValueError(_unknown(word, containers, deleted, zone))
        chosen |= dict.fromkeys(found)
    return list(chosen)


def _meant(containers: Sequence[Container], word: str) -> list[Container]:
    found = [container for container in containers if container.name == word]
    found = found or [container for container in containers if str(container.c_id) == word]
    if not found and _is_pattern(word):
        found = [container for container in containers if fnmatchcase(container.name, word)]
    return found


def _is_pattern(word: str) -> bool:
    return re.search(r"[*?[]", word) is not None


def _unknown(word: str, containers: Iterable[Container], deleted: Sequence[Container], zone: tzinfo) -> str:
    shown = cut(one_line(word), 40)
    for gone in reversed(_meant(deleted, word)):
        when = f" after its last backup run, of {minute(gone.last_logged, zone)}" if gone.last_logged else ""
        called = f"{cut(one_line(gone.name), 40)} (c_id {gone.c_id})"
        return f"{called} was deleted{when}: --history DAYS --all shows its past"
    close = _close({container.name for container in containers}, word)
    names = " or ".join(cut(one_line(name), 40) for name in close)
    hint = f"did you mean {names}?" if close else "-v lists all names"
    return f"no active container {'matches' if _is_pattern(word) else 'is called'} {shown}: {hint}"


def _close(names: Iterable[str], word: str) -> list[str]:
    """The names that a mistaken word probably means, letter case aside: beginnings before what is alike."""
    wanted = word.casefold()[:_COMPARED]
    folded = {name: name.casefold()[:_COMPARED] for name in sorted(names)}
    equal = [name for name, text in folded.items() if text == wanted or fnmatchcase(text, wanted)]
    beginning = [name for name, text in folded.items() if wanted and text.startswith(wanted)]
    alike = difflib.get_close_matches(wanted, folded.values(), n=_SUGGESTED)
    return (equal or beginning or [name for name, text in folded.items() if text in alike])[:_SUGGESTED]
