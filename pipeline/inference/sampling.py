"""Samples of a model: drawn by seed, and the one of them that is most like the others (minimum Bayes risk)."""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from transformers import GenerationConfig, PreTrainedModel

from pipeline.data.rows import Feature
from pipeline.decoding.sampling import SeededDraws
from pipeline.decoding.search import complete
from pipeline.errors import ConfigError
from pipeline.tasks.base import Batch, Task

EPSILON = 0.02  # the best for MBR of those that Freitag et al. tried, with a temperature of 1
SEQUENCES = 512  # sampled at a time; each draws a number for every token of the vocabulary
ORDER, BETA = 6, 2  # of chrF2: n-grams of up to so many characters, recall so many times as important as precision


@contextmanager
def seeded(
    model: PreTrainedModel, samples: Sequence[Feature], generation: GenerationConfig | None, seed: int | None
) -> Iterator[None]:
    """Draw what is sampled by the random numbers of each sample; by torch's own where there is no seed.

    Raises:
        ConfigError: where it was to be sampled, but was drawn by others.
    """
    if seed is None:
        yield
        return
    draws = SeededDraws(seed, [sample["sample_id"] for sample in samples])
    with draws:
        yield
    if model.can_generate() and complete(generation, model).do_sample and not draws.is_used:
        raise ConfigError(
            f"seed: {type(model).__name__} draws by random numbers of its own, which depend on the batches; leave the "
            "seed out, or take --engine torch"
        )


@dataclass(frozen=True)
class MinimumBayesRisk:
    """Decoding that draws samples, and answers by the one that is most like all of them, by the mean of its chrF2.

    A search looks for the most probable text, which for a translation can be too short, or an odd one. A text that
    many samples are near to is less often wrong (Eikema and Aziz 2020, https://aclanthology.org/2020.coling-main.398).
    The candidates are the different samples, and nothing else; all samples, repeated ones as often as they were drawn,
    stand for what the answer could be.

    Where the generation config samples (`do_sample`), samples are drawn as it says. Else by epsilon sampling, without
    tokens of a probability under 0.02, at a temperature of 1 (Freitag et al. 2023,
    https://aclanthology.org/2023.findings-emnlp.617): a model that was trained with label smoothing gives all wrong
    tokens together a share of each step, so plain sampling says nonsense too often.

    Attributes:
        num_samples: of each source; more give better answers, in as many times the time.
        seed: the random numbers of a row follow from it and the `sample_id` alone, see `SeededDraws`.
    """

    num_samples: int
    seed: int = 0

    @torch.no_grad()
    def predict(
        self,
        model: PreTrainedModel,
        task: Task,
        samples: Sequence[Feature],
        batch: Batch,
        generation: GenerationConfig | None,
    ) -> list[str]:
        """Return the answer to each sample of a batch, as `Task.predict` does.

        Args:
            samples: of `task.encode`.
            batch: of `task.collate(samples)`, on the model's device.
            generation: how a model generates; its own generation config where left out.

        Raises:
            ConfigError: for a model that generates no text, or draws by random numbers of its own.
        """
        if not model.can_generate():
            raise ConfigError(f"mbr: a {type(model).__name__} generates no text; leave it out")
        assert task.tokenizer is not None
        sampling = self._sampling(complete(generation, model))
        texts: list[str] = []
        rows = max(1, SEQUENCES // self.num_samples)
        for first in range(0, len(samples), rows):
            part = slice(first, first + rows)
            with seeded(model, samples[part], sampling, self.seed):
                ids = task.generate(model, {name: tensor[part] for name, tensor in batch.items()}, sampling)
            texts += task.tokenizer.batch_decode(ids, skip_special_tokens=True)
        return [
            most_like_all(texts[first : first + self.num_samples]) for first in range(0, len(texts), self.num_samples)
        ]

    def _sampling(self, generation: GenerationConfig) -> GenerationConfig:
        """Return how samples are drawn, from a config that is complete."""
        if not generation.do_sample:
            unwarped = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": None, "typical_p": 1.0}
            generation.update(do_sample=True, epsilon_cutoff=EPSILON, eta_cutoff=0.0, **unwarped)
        only_beams = {"num_beams": 1, "early_stopping": False, "length_penalty": 1.0}
        generation.update(num_return_sequences=self.num_samples, return_dict_in_generate=False, **only_beams)
        return generation


def most_like_all(texts: Sequence[str]) -> str:
    """Return the text with the best mean chrF2 over all texts, itself included; of equal ones the first."""
    counts = Counter(texts)
    candidates = [*counts]
    expected = pairwise_chrf(candidates) @ np.array([*counts.values()])
    return candidates[int(expected.argmax())]


def pairwise_chrf(texts: Sequence[str]) -> np.ndarray:
    """Return sacreBLEU's sentence chrF2 of each text as a hypothesis with each as its reference: (C, C), 0 to 100.

    The n-grams of a text are counted once, which sacreBLEU's `sentence_score` does anew for each pair.
    """
    joined = ["".join(text.split()) for text in texts]
    precision, recall, orders = (np.zeros((len(texts), len(texts))) for _ in range(3))
    for order in range(1, ORDER + 1):
        counts = _count_ngrams(joined, order)
        matches = np.stack([np.minimum(own, counts).sum(1) for own in counts])  # (C, C)
        sizes = counts.sum(1)
        precision += matches / np.maximum(sizes, 1)[:, None]
        recall += matches / np.maximum(sizes, 1)
        orders += np.logical_and.outer(sizes > 0, sizes > 0)  # of those that both texts are long enough for
    precision, recall = precision / np.maximum(orders, 1), recall / np.maximum(orders, 1)
    weighted = BETA**2 * precision + recall
    return 100 * (1 + BETA**2) * precision * recall / np.where(weighted > 0, weighted, 1)


def _count_ngrams(texts: Sequence[str], order: int) -> np.ndarray:
    """Count the n-grams of one order in each text: (C, different n-grams of all texts)."""
    columns: dict[str, int] = {}
    ngrams = [[text[place : place + order] for place in range(len(text) - order + 1)] for text in texts]
    for ngram in (ngram for row in ngrams for ngram in row):
        columns.setdefault(ngram, len(columns))
    counts = np.zeros((len(texts), len(columns)), np.int32)
    for row, own in zip(counts, ngrams, strict=True):
        np.add.at(row, [columns[ngram] for ngram in own], 1)
    return counts
