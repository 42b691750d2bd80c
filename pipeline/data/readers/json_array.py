"""One JSON array, `[{...}, {...}]` or `{"data": [{...}, ...]}`, read element by element, however long it is.

No more than one element and one block of the file is in memory. An element that is wrong inside is passed over where
its brackets tell its end, so that it makes a bad row and ends nothing. `ijson` cannot go on behind an error, and would
be another dependency: https://github.com/ICRAR/ijson
"""

import json
import re
from collections.abc import Iterator
from typing import Any

from pipeline.data import lines
from pipeline.data.rows import PLACE, shorten
from pipeline.errors import DataError, nearest

DECODER = json.JSONDecoder()
SPACE = re.compile(r"[ \t\r\n]*")
# A string, which never spans lines; a bracket; or the quote of a string that does not end in what was read so far.
TOKEN = re.compile(r'"[^"\\\n]*(?:\\.[^"\\\n]*)*"|[{}\[\]"]')
PLAIN = re.compile(r"[\s,\]}]")  # what ends a number or a word
CLOSING = {"{": "}", "[": "]"}
LONGEST_TOKEN = 20  # characters of what is not a string, or of an escape in one, such as \ud83d\ude00
SHOWN = 40  # characters of what is not an array


def array_rows(
    shards: list[list[str]], column: str, keys: tuple[str, ...], encoding: str | None = None, fingerprint: str = ""
) -> Iterator[Any]:
    """Yield the elements of arrays, not parsed yet: `column` holds a list of one, as bytes.

    Args:
        shards: lists of one file.
        keys: of the objects around the array, the outermost first.
        encoding: of the files.

    Raises:
        DataError: for what is not an array, and where an element is so wrong that its end cannot be told.
    """
    for (file,) in shards:
        text = ArrayText(file, encoding)
        text.enter(keys)
        for place, element in text.elements():
            yield {column: [element.encode("utf-8", "surrogatepass")], PLACE: place}
        if not keys and text.peek():
            raise text.fail("there is more behind the array; correct it, or give one file for each array")


class ArrayText:
    """The text of a file, as far as it is read; `here` is the place of the next character.

    Args:
        file: a path or URL.
        encoding: of the file, as `find_encoding` gives it.
    """

    def __init__(self, file: str, encoding: str | None):
        self.file = file
        self.blocks = lines.read_text(file, encoding)
        self.text, self.here = "", 0
        self.line, self.counted = 1, 0  # the number of the line at `counted`
        self.dropped = 0  # characters before `text`

    def read_more(self) -> bool:
        """Read a block, and forget what is behind; False at the end of the file."""
        block = next(self.blocks, None)
        if block is None:
            return False
        self.find_line(self.here)
        self.dropped += self.here
        self.text, self.here, self.counted = self.text[self.here :] + block, 0, 0
        return True

    def find_line(self, position: int) -> int:
        """Return the number of the line of a position that is not before that of the last call."""
        self.line += self.text.count("\n", self.counted, position)
        self.counted = position
        return self.line

    def peek(self) -> str:
        """Move to the next character that is not a space, and return it; "" at the end of the file."""
        while True:
            self.here = SPACE.match(self.text, self.here).end()  # type: ignore[union-attr]  # it matches "" too
            if self.here < len(self.text):
                return self.text[self.here]
            if not self.read_more():
                return ""

    def take(self, character: str) -> bool:
        """Move behind the next character if it is this one."""
        if self.peek() != character:
            return False
        self.here += 1
        return True

    def fail(self, problem: str) -> DataError:
        """Make the error of what stands here."""
        place = f"{self.file}:{self.find_line(self.here)}, character {self.dropped + self.here + 1:,} of the file"
        return DataError(f"{place}: {problem}")

    def enter(self, keys: tuple[str, ...]) -> None:
        """Move behind the bracket that opens the array.

        Raises:
            DataError: where there is no such key, or something else than an array.
        """
        for key in keys:
            if not self.take("{"):
                raise self.fail(f"data.options.field: there is no object with a key {key!r}")
            known: list[str] = []
            while (name := self._key()) != key:
                if name is None:
                    hint = nearest(key, known) if known else ""
                    raise self.fail(f"data.options.field: there is no key {key!r}{hint}")
                known.append(name)
                self.skip()
                self.take(",")
        if not self.take("["):
            while len(self.text) - self.here < SHOWN and self.read_more():
                pass
            raise self.fail(f"there is no JSON array, but {shorten(self.text[self.here : self.here + SHOWN])}")

    def _key(self) -> str | None:
        """Read the next key of an object, and the colon behind it; None at the end of the object."""
        if self.peek() != '"':
            return None
        key = json.loads(self.skip(is_kept=True), strict=False)
        if not self.take(":"):
            raise self.fail(f"the file is not JSON: there is no colon behind {key!r}")
        return key

    def elements(self) -> Iterator[tuple[str, str]]:
        """Yield place and text of each element; of one that is missing, between two commas, "".

        Raises:
            DataError: where it cannot be told where an element ends.
        """
        number = 0
        while number > 0 or self.peek() != "]":
            number += 1
            is_missing = self.peek() in (",", "]")
            place = f"{self.file}:{self.find_line(self.here)}, element {number}"
            yield place, "" if is_missing else self._read_element()
            if self.peek() == "]":
                break
            if not self.take(","):
                raise self.fail(f"there is neither a comma nor the end of the array behind element {number}")
        self.take("]")

    def _read_element(self) -> str:
        """Return the text of the element that stands here, and move behind it."""
        while True:
            try:
                _, end = DECODER.raw_decode(self.text, self.here)
            except json.JSONDecodeError as error:
                is_cut = error.msg.startswith("Unterminated string") or error.pos > len(self.text) - LONGEST_TOKEN
                if not is_cut or len(self.text) - self.here > lines.LONGEST_LINE:
                    return self.skip(is_kept=True)
            except (RecursionError, ValueError):  # nested too deeply; a number with thousands of digits
                return self.skip(is_kept=True)
            else:
                if end < len(self.text):  # or a number might go on
                    start, self.here = self.here, end
                    return self.text[start:end]
            if not self.read_more():
                return self.skip(is_kept=True)

    def skip(self, is_kept: bool = False) -> str:
        """Move behind the value that stands here, whatever is wrong inside its brackets.

        Args:
            is_kept: return its text, which then may have `LONGEST_LINE` characters.

        Raises:
            DataError: where its end cannot be told.
        """
        is_plain = self.peek() not in ('"', "{", "[")  # a number or a word
        closing: list[str] = []
        position = self.here
        while True:
            match = (PLAIN if is_plain else TOKEN).search(self.text, position)
            if match is None or match[0] == '"':  # nothing more, or a string that does not end here
                position = self._read_on(match.start() if match else len(self.text), is_kept)
                continue
            position = match.end()
            if is_plain:
                position = match.start()
            elif match[0] in CLOSING:
                closing.append(CLOSING[match[0]])
            elif match[0] in ("}", "]") and (not closing or closing.pop() != match[0]):
                raise self.fail("this is not JSON, and its brackets do not tell where it ends; correct it")
            if not closing:
                start, self.here = self.here, position
                return self.text[start:position] if is_kept else ""

    def _read_on(self, position: int, is_kept: bool) -> int:
        """Read a block for a value of which all was looked at up to `position`; return the new place of that.

        Raises:
            DataError: where the value, or its last line, has no end.
        """
        if "\n" in self.text[position:]:
            raise self.fail("this is not JSON, and a string in it does not end in its line; correct it")
        if len(self.text) - self.here > lines.LONGEST_LINE and is_kept:
            raise self.fail(f"this has more than {lines.LONGEST_LINE // 1_000_000} MB; rows need shorter elements")
        if not is_kept:
            self.here = position
        behind = position - self.here
        if not self.read_more():
            raise self.fail("the file ends within this")
        return behind
