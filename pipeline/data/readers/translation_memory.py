"""TMX, the exchange format of translation memories: a unit is a row, and its languages are the columns.

Read as TMX 1.4b says (https://www.gala-global.org/tmx-14b): the text of a segment is what stands in `<seg>` and in
`<hi>` inside. The content of `<bpt>`, `<ept>`, `<it>`, `<ph>` and `<ut>` is code of the original format, and left out,
with the `<sub>` inside, which is a text of its own. A line break in a segment is a space. The column en takes the
variant `en` of a unit, or else its first of en-US, en_GB and the like; case makes no difference.

The parser is that of the standard library, fed piece by piece. It never loads a DTD or anything else by its address, as
no handler asks it to. A file that has rules of its own in its DOCTYPE is refused, so that no entity can be declared and
expanded. What a piece of markup, a unit, and the depth and names of elements take in memory is bounded. Characters that
XML does not allow, and bytes that are not of the encoding that the file declares, become U+FFFD, so that they end one
row and not the file.
"""

import io
import re
import sys
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import IO, Any
from xml.parsers import expat

from datasets import Features, Value

from pipeline.data.lines import BUFFER, LONGEST_LINE, MARKS, find_encoding, open_text, open_unpacked
from pipeline.data.readers.base import Rows, SplitRequest
from pipeline.data.readers.text_lines import find_files, has_suffix, open_files
from pipeline.data.rows import PLACE, PROBLEM, UNDECODABLE, shorten
from pipeline.errors import ConfigError, DataError, nearest

SUFFIXES = (".tmx",)
OPTIONS = {"encoding"}
CODE = {"bpt", "ept", "it", "ph", "ut"}
BEGINNINGS = ((b"<\0\0\0", "utf-32-le"), (b"\0\0\0<", "utf-32-be"), (b"<\0", "utf-16-le"), (b"\0<", "utf-16-be"))
DEEPEST = 100  # elements inside each other
MOST_NAMES = 1_000  # of elements and attributes, which the parser keeps
COST = 200  # bytes of a variant, whatever its text
DECLARATION = re.compile(rb"""\s*<\?xml[^>]*?\sencoding\s*=\s*["']([\w.:-]+)["']""")
LONGEST_DECLARATION = 200  # bytes
FORBIDDEN = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")  # XML 1.0, production 2
REFERENCE = re.compile(r"&#(x[0-9a-fA-F]{1,8}|[0-9]{1,10});")
LINE_BREAK = re.compile(r"\s*\n\s*")
LONGEST_REFERENCE = 16  # characters, of which one that a piece of the file cuts is kept for the next


def accepts(request: SplitRequest) -> bool:
    return bool(files(request))


def read(request: SplitRequest) -> Rows:
    """Open the files.

    Raises:
        ConfigError: for an option that is unknown here.
    """
    for option in request.options:
        if option not in OPTIONS:
            raise ConfigError(f"data.options.{option}: unknown for TMX{nearest(option, OPTIONS)}")
    features = Features({name: Value("string") for name in (*request.columns, PLACE, PROBLEM)})
    shards = [[file] for file in files(request)]
    columns = tuple(request.columns.items())
    encoding = request.encoding or ("utf-8" if "encoding" in request.options else None)
    return open_files(request, shards, _rows, features, columns=columns, encoding=encoding)


def files(request: SplitRequest) -> list[str]:
    """Return the files of the split; where nothing is called train, the only one of the folder."""
    found = [file for file in find_files(request) if has_suffix(file, SUFFIXES)]
    folder, name = Path(request.path), request.split.name
    if found or name != "train" or not folder.is_dir() or any(folder.glob("train*")):
        return found
    paths = [str(path) for path in folder.iterdir() if path.is_file()]
    return [path for path in paths if has_suffix(path, SUFFIXES)] if len(paths) == 1 else []


def _rows(
    shards: list[list[str]], columns: tuple[tuple[str, str], ...], encoding: str | None, fingerprint: str = ""
) -> Iterator[dict[str, Any]]:
    nothing = dict.fromkeys(agreed for agreed, _ in columns)
    for (file,) in shards:
        with open_unpacked(file) as stream:
            for line, texts, problem in _units(stream, file, encoding):
                values = {agreed: _text_in(language, texts) for agreed, language in columns}
                missing = next((name for agreed, name in columns if values[agreed] is None), None)
                if missing is not None:
                    there = ", ".join(texts) or "none"
                    problem = problem or f"the unit has no text in {missing!r}; its languages: {there}"
                yield {**(nothing if problem else values), PLACE: f"{file}:{line}", PROBLEM: problem}


def _text_in(language: str, texts: dict[str, str]) -> str | None:
    """Return the text in a language, or else in the first of its variants; None where there is neither."""
    wanted = language.lower().replace("_", "-")
    names = {name.lower().replace("_", "-"): name for name in reversed(texts)}
    variants = [name for name in reversed(names) if name == wanted or name.startswith(f"{wanted}-")]
    name = wanted if wanted in names else next(iter(variants), None)
    return None if name is None else texts[names[name]]


Unit = tuple[int, dict[str, str], str | None]  # its line, language -> text, and what is wrong with it


def _units(stream: IO[bytes], file: str, encoding: str | None) -> Iterator[Unit]:
    """Yield the units of an open file.

    Args:
        encoding: in place of the one that the file declares.

    Raises:
        DataError: for a file that is not TMX, that is cut off, or that would take memory without bound.
    """
    buffered = io.BufferedReader(stream, BUFFER)  # type: ignore[type-var]
    text = open_text(buffered, file, encoding or _find_declared(buffered.peek(LONGEST_DECLARATION), file))
    memory = _Memory(file)
    size, cut = 0, ""
    for number in count():
        chunk = text.read(BUFFER)
        piece = cut + (chunk if number else chunk.removeprefix("\ufeff"))
        begin = max(piece.rfind("&"), len(piece) - LONGEST_REFERENCE)
        begin = begin if chunk and piece[begin:].startswith("&") else len(piece)
        piece, cut = piece[:begin], piece[begin:]
        content = REFERENCE.sub(_check_reference, FORBIDDEN.sub(UNDECODABLE, piece)).encode()
        size += len(content)
        try:
            memory.parser.Parse(content, not chunk)
        except expat.ExpatError as error:
            problem = "the file is not well-formed XML" if chunk else "the file ends before its last element does"
            reason = expat.ErrorString(error.code)
            raise DataError(f"{file}:{error.lineno}: {problem} ({reason}); get it again") from error
        if size - memory.parser.CurrentByteIndex > LONGEST_LINE:
            raise memory.error(f"a piece of markup has more than {LONGEST_LINE // 1_000_000} MB")
        yield from memory.units
        memory.units.clear()
        if not chunk:
            return


def _find_declared(head: bytes, file: str) -> str:
    """Return the encoding of a file by its first bytes; UTF-8 if they do not say.

    Raises:
        DataError: for one that is unknown.
    """
    if marked := next((marked for mark, marked in (*MARKS, *BEGINNINGS) if head.startswith(mark)), None):
        return marked
    declared = DECLARATION.match(head)
    try:
        encoding = find_encoding(declared and declared[1].decode()) or "utf-8"
    except ConfigError as error:
        raise DataError(f"{file}: the file declares an encoding that is unknown; {error}") from error
    # A file whose declaration can be read as ASCII was converted, and its declaration left as it was.
    return "utf-8" if encoding.startswith(("utf-16", "utf-32")) else encoding


def _check_reference(reference: re.Match[str]) -> str:
    """Return the reference to a character, unless XML does not allow that character."""
    digits = reference[1]
    number = int(digits[1:], 16) if digits.startswith("x") else int(digits)
    is_allowed = number <= sys.maxunicode and not FORBIDDEN.match(chr(number))
    return reference[0] if is_allowed else UNDECODABLE


class _Memory:
    """What the parser has seen of a translation memory.

    Attributes:
        units: that ended and were not taken yet.
    """

    def __init__(self, file: str) -> None:
        self.file = file
        self.units: list[Unit] = []
        self._depth = 0
        self._line = 0  # of the unit
        self._texts: dict[str, str] = {}
        self._problem: str | None = None
        self._size = 0  # of the unit
        self._language = ""
        self._text: list[str] | None = None  # of the segment; None outside
        self._codes = 0  # elements of code around what is read
        self.parser = expat.ParserCreate(encoding="utf-8")
        self.parser.buffer_text = True
        self.parser.StartElementHandler = self._start
        self.parser.EndElementHandler = self._end
        self.parser.CharacterDataHandler = self._take
        self.parser.StartDoctypeDeclHandler = self._check_doctype
        self.parser.SkippedEntityHandler = self._skip_entity  # type: ignore[attr-defined]

    def error(self, problem: str) -> DataError:
        return DataError(f"{self.file}:{self.parser.CurrentLineNumber}: {problem}; a TMX file is needed")

    def _start(self, tag: str, attributes: dict[str, str]) -> None:
        self._depth += 1
        if self._depth == 1 and tag != "tmx":
            raise self.error(f"the file is not TMX, but has the root <{shorten(tag)[1:-1]}>")
        if self._depth > DEEPEST or len(self.parser.intern) > MOST_NAMES:
            raise self.error(f"there are more than {DEEPEST} elements inside each other, or {MOST_NAMES:,} names")
        if tag == "tu":
            self._line, self._texts, self._problem, self._size = self.parser.CurrentLineNumber, {}, None, 0
        elif tag == "tuv":
            self._language = attributes.get("xml:lang") or attributes.get("lang") or ""
            self._grow(len(self._language) + COST)
        elif tag == "seg":
            self._text, self._codes = [], 0
        elif tag in CODE:
            self._codes += 1

    def _end(self, tag: str) -> None:
        self._depth -= 1
        if tag == "tu":
            self.units.append((self._line, self._texts, self._problem))
        elif tag == "seg" and self._text is not None:
            self._texts.setdefault(self._language, LINE_BREAK.sub(" ", "".join(self._text)).strip())
            self._text = None
        elif tag in CODE:
            self._codes -= 1

    def _take(self, text: str) -> None:
        if self._text is not None and not self._codes:
            self._grow(len(text))
            self._text.append(text)

    def _grow(self, size: int) -> None:
        self._size += size
        if self._size > LONGEST_LINE:
            raise self.error(f"a unit has more than {LONGEST_LINE // 1_000_000} MB")

    def _check_doctype(self, name: str, system_id: str | None, public_id: str | None, has_own_rules: bool) -> None:
        if has_own_rules:
            raise self.error(
                "the file declares entities or other rules in its <!DOCTYPE>, which are refused for safety"
            )

    def _skip_entity(self, name: str, is_parameter: bool) -> None:
        if not is_parameter:
            self._problem = f"the unit refers to &{name};, which only the DTD would explain; it is not loaded"
