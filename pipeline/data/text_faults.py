"""What texts show of wrong encodings and of careless conversion; each is counted by `teacher-forcing inspect`.

Nothing here is certain: a fault is a reason to look at a text, and not to drop it.
"""

import re
import unicodedata
from collections.abc import Iterator

from pipeline.data.rows import UNDECODABLE

MOJIBAKE, DECOMPOSED = "mojibake", "decomposed letters"
FAULTS = {  # what is found -> what it means
    "U+FFFD": "stands in the place of bytes that could not be decoded",
    MOJIBAKE: "UTF-8 that was read in another encoding, as Ã© for é",
    "control characters": "other than tab and line ends",
    "invisible characters": "of no width, byte order and direction marks, soft hyphens",
    "private use": "characters that only one font has, as of a PDF",
    DECOMPOSED: "an accent is a character by itself: not in normal form NFC",
    "HTML entities": "&amp; in the place of &",
    "double HTML entities": "&amp;amp; or &amp;lt;, escaped twice",
}

# A byte from 80 to BF as Latin-1 has it, or as Windows-1252 has those up to 9F.
_REST = "[\x80-\xbf€‚ƒ„…†‡ˆ‰Š‹ŒŽ‘’“”•–—˜™š›œžŸ]"
_QUOTE = "[»”’“‘‹›«…]"  # of those, what stands behind a capital as well: MANHÃ»
_MOJIBAKE = re.compile(
    f"(?<![A-ZÀ-Þ])[ÂÃÄÅ]{_REST}|[ÂÃÄÅ](?!{_QUOTE}){_REST}"  # letters with accents, no-break spaces
    f"|â[€‚\x80-\x9f]{_REST}"  # dashes, quotes, the euro
    f"|ð[Ÿ\x9f]{_REST}{_REST}"  # emoji
    f"|(?:[ÎÏÐÑ×Ø-Û]{_REST}){{3,}}|(?:[à-í]{_REST}{_REST}){{2,}}"  # Greek, Cyrillic, Hebrew, Arabic; Asia
    "|(?:[РС][\u0400-\u040f\u0450-\u045fІіҐґ°±µ¶·»]){2,}"  # Cyrillic that was read as Windows-1251
    "|锟斤拷"  # U+FFFD that was read as GBK
)
_BEGINNING = re.compile("[ÂÃÄÅâðÎÏÐÑ×Ø-Ûà-íРС][^\x00-\x7f]|锟")  # of all these, and found much faster
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
_INVISIBLE = re.compile("[\u00ad\u200b\u200e\u200f\u202a-\u202e\u2060-\u2064\u2066-\u206f\ufeff\ufff9-\ufffb]")
_PRIVATE = re.compile("[\ue000-\uf8ff\U000f0000-\U0010fffd]")
_UNPRINTABLE = {"control characters": _CONTROL, "invisible characters": _INVISIBLE, "private use": _PRIVATE}
_ENTITY = re.compile(r"&(?:[A-Za-z][A-Za-z0-9]{1,7}|#\d{1,7}|#[xX][0-9A-Fa-f]{1,6});")
_TWICE = re.compile(r"&(?:amp;)+(?:[A-Za-z][A-Za-z0-9]{1,7}|#\d{1,7}|#[xX][0-9A-Fa-f]{1,6});")
_COMBINING = re.compile("[\u0300-\u036f]")


def find_faults(text: str) -> Iterator[tuple[str, int]]:
    """Yield what is suspicious in a text: a key of `FAULTS`, and the place of its first character."""
    if not text.isprintable():  # as nearly all texts are
        for name, pattern in _UNPRINTABLE.items():
            if match := pattern.search(text):
                yield name, match.start()
    if "&" in text:
        yield from _find_entity(text)
    if text.isascii():
        return
    if UNDECODABLE in text:
        yield "U+FFFD", text.index(UNDECODABLE)
    if _BEGINNING.search(text) and (match := _MOJIBAKE.search(text)):
        yield MOJIBAKE, match.start()
    if not unicodedata.is_normalized("NFC", text):
        match = _COMBINING.search(text)
        yield DECOMPOSED, max(0, match.start() - 1) if match else 0


def _find_entity(text: str) -> Iterator[tuple[str, int]]:
    if match := _TWICE.search(text):
        yield "double HTML entities", match.start()
    elif match := _ENTITY.search(text):
        yield "HTML entities", match.start()


def is_composed(text: str) -> bool:
    """Tell whether a text has a letter that is one character with its accent, which normal form NFD takes apart."""
    return not text.isascii() and not unicodedata.is_normalized("NFD", text)
