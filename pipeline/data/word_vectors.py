"""Read word vectors from elsewhere: GloVe, word2vec and fastText in their text formats, one word a line.

    cat 0.1 -0.2 0.7        3 numbers here, usually 50 to 300; word2vec and fastText begin with a line "count width"

gensim's `KeyedVectors` reads them as well, but keeps the whole file in memory and names no line where one is broken.
"""

import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from pipeline.data.lines import read_lines
from pipeline.errors import ConfigError, DataError

logger = logging.getLogger(__name__)


def read_words(path: str | Path) -> Iterator[str]:
    """Yield the words of a file of vectors, in its order; any file with one word a line will do."""
    for _, line in _lines(path):
        yield line.split(" ", 1)[0]


def read_vectors(path: str | Path, words: set[str]) -> dict[str, np.ndarray]:
    """Read the vectors of `words` from a file; words that it does not have are left out.

    Returns:
        Word -> its vector, (W); the first line of the file decides on the width W.

    Raises:
        ConfigError: for a file that cannot be read, holds no vectors, or has a line of another width or with something
            that is not a finite number, naming the line.
    """
    vectors: dict[str, np.ndarray] = {}
    width = 0  # until the first line is read
    for number, line in _lines(path):
        is_first = width == 0
        if is_first:
            width = len(line.split(" ")) - 1
        word, *values = line.rsplit(" ", width)  # a word may hold spaces itself, as some of GloVe's do
        if width < 2 or len(values) != width:
            raise ConfigError(f"{path}:{number}: {len(values)} numbers, where the lines before have {width}")
        if word not in words and not is_first:  # the first is looked at anyway, to notice a file that holds no numbers
            continue
        try:
            vector = np.array(values, dtype=np.float32)
        except ValueError as error:
            raise ConfigError(f"{path}:{number}: a word and {width} numbers are needed; {error}") from error
        if not np.isfinite(vector).all():
            raise ConfigError(f"{path}:{number}: the vector of {word!r} holds a number that is not finite")
        if word in words:
            vectors.setdefault(word, vector)
    if not width:
        raise ConfigError(f"{path}: there are no vectors in it")
    return vectors


def load_embeddings(
    embedding: nn.Embedding, tokenizer: PreTrainedTokenizerBase, path: str | Path, seed: int = 0
) -> torch.Tensor:
    """Write the vectors of a file into an embedding, for the tokens that are words of it.

    A token is looked up as it is decoded, then in lower case. Other rows stay as they are. Vectors wider than the
    embedding are projected onto their principal axes, narrower ones by a random orthonormal map, which keeps all
    angles. They are scaled to the spread that the random rows have.

    Returns:
        The numbers of the tokens that have a vector, (N).

    Raises:
        ConfigError: as `read_vectors`; when no token has a vector.
    """
    special = set(tokenizer.all_special_ids)
    tokens = {number: tokenizer.decode([number]).strip() for number in range(len(tokenizer)) if number not in special}
    vectors = read_vectors(path, {form for token in tokens.values() for form in (token, token.lower())})
    by_token = {number: vectors.get(token, vectors.get(token.lower())) for number, token in tokens.items()}
    rows = {number: vector for number, vector in by_token.items() if vector is not None}
    if not rows:
        raise ConfigError(f"model.embeddings.path: {path} has no word of the vocabulary; is it another language?")
    weight = embedding.weight
    values = _project(torch.from_numpy(np.stack(list(rows.values()))), weight.shape[1], seed)
    with torch.no_grad():
        weight[list(rows)] = (values * (weight.std() / values.std())).to(weight)
    coverage = len(rows) / len(tokens)
    logger.info("%s: vectors for %d of %d tokens (%.1f %%)", path, len(rows), len(tokens), 100 * coverage)
    return torch.tensor(list(rows))


def _project(vectors: torch.Tensor, width: int, seed: int) -> torch.Tensor:
    """Bring vectors to another width: (N, W) -> (N, width)."""
    own_width = vectors.shape[1]
    if own_width == width:
        return vectors
    if own_width > width:
        axes = torch.linalg.eigh(torch.cov(vectors.T)).eigenvectors  # (W, W), in the order of rising variance
        return (vectors - vectors.mean(0)) @ axes[:, -width:]
    generator = torch.Generator().manual_seed(seed)
    orthonormal = torch.linalg.qr(torch.randn(width, own_width, generator=generator)).Q  # (width, W)
    return vectors @ orthonormal.T


def _lines(path: str | Path) -> Iterator[tuple[int, str]]:
    """Yield numbered lines, without the header (count and width) that word2vec and fastText write."""
    try:
        for number, content in enumerate(read_lines(path), start=1):
            line = content.decode("utf-8", "replace").rstrip(" \r\n")
            is_header = number == 1 and [field.isdecimal() for field in line.split(" ")] == [True, True]
            if line and not is_header:
                yield number, line
    except DataError as error:
        raise ConfigError(f"no vectors could be read: {error}") from error
