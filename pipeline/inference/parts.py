"""The answers to a corpus on their way into a file: committed part by part, so that a killed process goes on.

Beside the file OUTPUT lie, while it is made,

    OUTPUT.parts/000000.jsonl ...   the answers to one window each; there as a whole or not at all
    OUTPUT.manifest.json            what they were made of: model, data, settings

At the end the parts are joined into OUTPUT, which is there as a whole or not at all, the manifest says so, and the
parts are removed. The manifest stays: it tells where the file comes from. The windows depend on the texts and the size
of a batch only, so any number of processes can share them, and what was killed goes on with the same bytes.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from pipeline.data.corpus import Text
from pipeline.errors import ConfigError, RunError, explain_path
from pipeline.inference.corpus import Answer, Summary, windows
from pipeline.inference.formats import write_answers
from pipeline.inference.hypotheses import Hypothesis, Wanted
from pipeline.manifest import describe, flush_to_disk

LOCK_FILE = ".lock"
REMEDY = "remove it, or name another --output"
Facts = dict[str, dict[str, Any]]  # model, data, settings -> name -> value


@dataclass(frozen=True)
class Output:
    """A file of answers, and what lies beside it.

    Attributes:
        path: of the file.
        facts: of what it is made; another model, corpus or setting does not go on with it.
    """

    path: Path
    facts: Facts

    @property
    def parts(self) -> Path:
        return self.path.with_name(f"{self.path.name}.parts")

    @property
    def manifest(self) -> Path:
        return self.path.with_name(f"{self.path.name}.manifest.json")

    def begin(self, resume: bool) -> None:
        """Make the folder of the parts, or go on with it; called by one process, before the others use it.

        Raises:
            ConfigError: where there is something that would be overwritten, was made of something else, or cannot be
                written.
            RunError: where there is no room.
        """
        there = next((path for path in (self.path, self.parts, self.manifest) if path.exists()), None)
        if there is not None and not resume:
            raise ConfigError(f"--output: {there} exists; go on with it by --resume, {REMEDY}")
        with self._explained():
            known = self._read_manifest()
            if there is None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._write_manifest({})  # first: without it, parts would be of nobody knows what
                self.parts.mkdir()
            elif known is None:
                raise ConfigError(
                    f"--resume: {there} exists, but no {self.manifest} says what it was made of; {REMEDY}"
                )
            elif changed := _differences(known["facts"], self.facts):
                raise ConfigError(f"--resume: {self.path} was begun with another {'; '.join(changed)}; {REMEDY}")
            elif "file" not in known:
                self.parts.mkdir(exist_ok=True)
            elif describe(self.path.parent, filter(Path.is_file, [self.path])) != known["file"]:
                raise ConfigError(
                    f"--resume: {self.path} was changed or removed since it was made; remove {self.manifest}"
                )
            else:
                shutil.rmtree(self.parts, ignore_errors=True)

    @property
    def is_finished(self) -> bool:
        """Whether all is answered and joined, once it is begun."""
        return not self.parts.exists()

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other commands away from the parts; the system lifts the lock when this process ends.

        Raises:
            RunError: where another process holds it.
        """
        try:
            lock: Any = FileLock(self.parts / LOCK_FILE).acquire(timeout=0)
        except Timeout as error:
            raise RunError(f"--output: another process writes to {self.path}; wait for it, or stop it") from error
        except (OSError, NotImplementedError):  # a file system without locks
            lock = nullcontext()
        with lock:
            yield

    def has(self, number: int, texts: Sequence[Text]) -> bool:
        """Tell whether the answers to a window are there, and whole.

        Raises:
            ConfigError: where they answer other texts.
        """
        with self._explained():
            header, lines = _read_part(self._part(number))
        if lines is None:
            return False
        if header != _fingerprint(texts):
            raise ConfigError(
                f"--resume: {texts[0].place} and what follows are other texts than those that {self.path} was begun "
                f"with; {REMEDY}"
            )
        return True

    def write(self, number: int, texts: Sequence[Text], answers: Sequence[Answer]) -> None:
        """Commit the answers to a window."""
        lines = "".join(json.dumps(asdict(answer), ensure_ascii=False) + "\n" for answer in answers).encode()
        header = {"texts": _fingerprint(texts), "answers": hashlib.sha256(lines).hexdigest()}
        with self._explained():
            _write_whole(self._part(number), json.dumps(header).encode() + b"\n" + lines)

    def join(self, count: int, format: str, wanted: Wanted) -> Summary:
        """Join the parts into the file, and remove them.

        Args:
            count: of the parts, all of which are there.
            format: of the file, one of `FORMATS`.

        Raises:
            RunError: for a part that is damaged, or where there is no room.
        """
        summary = Summary()
        staged = self.parts / "joined"
        with self._explained():
            write_answers(staged, format, summary.counting(self._answers(count)), wanted)
            flush_to_disk(staged)
            os.replace(staged, self.path)
            flush_to_disk(self.path.parent)
            self._write_manifest({"file": describe(self.path.parent, [self.path]), "answers": asdict(summary)})
            shutil.rmtree(self.parts)
        return summary

    def fill(
        self,
        texts: Iterable[Text],
        size: int,
        answer: Callable[[Sequence[Text]], list[Answer]],
        on_known: Callable[[Sequence[Text]], None],
        rank: int = 0,
        world_size: int = 1,
    ) -> int:
        """Answer the windows of a process that are not answered yet, and commit them.

        Args:
            texts: all of the corpus; each process reads them all, and answers its share.
            size: of a window.
            on_known: called with the texts of a window that has answers, or is another process's.

        Returns:
            How many windows the corpus has.
        """
        count = 0
        for number, window in enumerate(windows(texts, size)):
            count += 1
            if number % world_size != rank or self.has(number, window):
                on_known(window)
            else:
                self.write(number, window, answer(window))
        return count

    def read_summary(self) -> Summary:
        """Return the counts of what is finished."""
        return Summary(**(self._read_manifest() or {})["answers"])

    def _answers(self, count: int) -> Iterator[Answer]:
        for number in range(count):
            _, lines = _read_part(self._part(number))
            if lines is None:
                raise RunError(f"{self._part(number)} is damaged or missing; run the same command with --resume")
            for line in lines.splitlines():
                values = json.loads(line)
                hypotheses = [Hypothesis(**hypothesis) for hypothesis in values.pop("hypotheses")]
                yield Answer(hypotheses=hypotheses, **values)

    def _part(self, number: int) -> Path:
        return self.parts / f"{number:06}.jsonl"

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Raise errors of the system as `explain_path` does, and say how to go on where there is no room."""
        place = f"--output {self.path}"
        try:
            with explain_path(place):
                yield
        except RunError as error:
            if not isinstance(error.__cause__, OSError):
                raise
            raise RunError(
                f"{place}: {error.__cause__.strerror}; make room, then the same command goes on with --resume"
            ) from error

    def _read_manifest(self) -> dict[str, Any] | None:
        """Return what the manifest says, None without one.

        Raises:
            ConfigError: for one that is not of this kind.
        """
        try:
            content = json.loads(self.manifest.read_bytes())
            return content if isinstance(content["facts"], dict) else None
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{self.manifest} is not a manifest of answers: {error!r}; {REMEDY}") from error

    def _write_manifest(self, more: dict[str, Any]) -> None:
        content = json.dumps({"facts": self.facts, **more}, indent=1, ensure_ascii=False)
        _write_whole(self.manifest, content.encode())


def _differences(known: Facts, facts: Facts) -> list[str]:
    """Name what differs, and both values; the same content under another name is the same."""
    changed = []
    for section in sorted({*known, *facts}):
        before, now = known.get(section, {}), facts.get(section, {})
        for name in sorted({*before, *now}):
            if name != "name" and before.get(name) != now.get(name):
                changed.append(f"{section}.{name} ({before.get(name)}, now {now.get(name)})")
    return changed


def _fingerprint(texts: Iterable[Text]) -> str:
    content = "\n".join(json.dumps([text.content, text.problem]) for text in texts)
    return hashlib.sha256(content.encode()).hexdigest()


def _read_part(path: Path) -> tuple[str, bytes | None]:
    """Return the fingerprint of the texts that a part answers, and its lines; None where it is missing or damaged."""
    try:
        first, _, lines = path.read_bytes().partition(b"\n")
        header = json.loads(first)
        is_whole = header["answers"] == hashlib.sha256(lines).hexdigest()
        return header["texts"], lines if is_whole else None
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return "", None


def _write_whole(path: Path, content: bytes) -> None:
    """Write a file that is there as a whole or not at all, whatever ends this process or the machine."""
    staged = path.with_name(f"{path.name}.staged")
    staged.write_bytes(content)
    flush_to_disk(staged)
    os.replace(staged, path)
    flush_to_disk(path.parent)
