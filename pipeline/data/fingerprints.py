"""Fingerprints of data, by which a run that goes on notices that they changed, and caches that they are stale.

Files that together have up to `WHOLE` bytes are hashed whole, whatever their times say: `cp -p` and `rsync -t` put
other content under the same time. Of larger ones names, sizes, times of change and `BLOCKS` blocks are hashed, spread
evenly over all of them. That misses a change which keeps size and time and lies between the blocks.
"""

import hashlib
from collections.abc import Iterable
from pathlib import Path

WHOLE = 256_000_000  # bytes
BLOCKS = 64
BLOCK_SIZE = 65_536  # bytes


def fingerprint_files(files: Iterable[str]) -> str:
    """Return a hash of files: of their names, not of the folder that they lie in, and of their content.

    Args:
        files: paths; of an address elsewhere, such as https://, only the name is known.
    """
    paths = [Path(file) for file in files]
    stats = [path.stat() if path.is_file() else None for path in paths]
    total = sum(stat.st_size for stat in stats if stat)
    digest = hashlib.sha256()
    begin = 0  # of a file, where all follow one another
    for path, stat in zip(paths, stats, strict=True):
        digest.update(f"{path.name if stat else path}\n".encode(errors="surrogateescape"))
        if stat is None:
            continue
        digest.update(f"{stat.st_size}\n".encode())
        with path.open("rb") as stream:
            if total <= WHOLE:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
            else:
                digest.update(f"{stat.st_mtime_ns}\n".encode())
                for offset in _block_offsets(total):
                    if begin <= offset < begin + stat.st_size:
                        stream.seek(offset - begin)
                        digest.update(stream.read(BLOCK_SIZE))
        begin += stat.st_size
    return digest.hexdigest()


def _block_offsets(total: int) -> list[int]:
    """Return where the blocks begin: the first at the beginning, the last at the end."""
    return [number * (total - BLOCK_SIZE) // (BLOCKS - 1) for number in range(BLOCKS)]
