"""CTranslate2 (https://github.com/OpenNMT/CTranslate2): its own kernels and its own search, on CPUs and NVIDIA GPUs.

Its greedy search gives the tokens of `generate`. Its beam search is that of `generate` with other bounds:

    early_stopping true     both end when as many sequences are finished as there are beams
    early_stopping "never"  both go on until no sequence could become better; CTranslate2 then to the greatest length
    early_stopping false    `generate` goes on while the best beam scores higher than the worst finished sequence, which
                            CTranslate2 cannot; it ends at `PATIENCE` times as many finished sequences as beams

Where tokens are ruled out, as by `no_repeat_ngram_size`, it shares their probability among the others, as `generate`
does with `renormalize_logits`; that changes nothing but scores of beams, which are refused without this setting. The
start token is no part of what has been generated for it, so it may be repeated. A source of nothing but special tokens
is answered by nothing.
"""

import json
import logging
from pathlib import Path
from typing import Any, Self

import ctranslate2
import torch
from accelerate import PartialState
from torch import Tensor
from transformers import GenerationConfig, PreTrainedConfig
from transformers.utils import ModelOutput

from pipeline.errors import ConfigError
from pipeline.inference.engines.base import Engine
from pipeline.models.modeling_seq2seq import IGNORED

PATIENCE = 2.0
# What `generate` takes for a setting that is left out.
DEFAULTS: dict[str, Any] = {
    "do_sample": False,
    "early_stopping": False,
    "length_penalty": 1.0,
    "num_beams": 1,
    "num_return_sequences": 1,
    "no_repeat_ngram_size": 0,
    "repetition_penalty": 1.0,
    "temperature": 1.0,
    "top_k": 50,
    "top_p": 1.0,
}
HONOURED = {
    *DEFAULTS,
    *("max_length", "max_new_tokens", "min_length", "min_new_tokens"),
    *("bad_words_ids", "suppress_tokens", "forced_bos_token_id", "eos_token_id", "pad_token_id"),
    "renormalize_logits",  # which it always does
    # These decide how tokens are computed, not which.
    *("bos_token_id", "use_cache", "cache_implementation", "remove_invalid_values", "transformers_version"),
}
# With beams, it penalises and samples by other numbers than `generate`.
GREEDY_ONLY = {"do_sample", "repetition_penalty"}
# Of beams it gives the scores of sequences, but of no answer those of each step.
BEAMS_ONLY = {"return_dict_in_generate", "output_scores"}
BANS = {"bad_words_ids", "suppress_tokens", "no_repeat_ngram_size", "min_length", "min_new_tokens"}
OFF: dict[str, Any] = {  # values that ask for nothing
    "encoder_no_repeat_ngram_size": 0,
    "encoder_repetition_penalty": 1.0,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
    "min_p": 0.0,
    "num_beam_groups": 1,
    "repetition_penalty": 1.0,
    "typical_p": 1.0,
}
ENDLESS = 1e6  # patience


class CTranslate2Engine(Engine):
    """A sequence-to-sequence model; it gives losses and no logits."""

    def __init__(self, folder: Path, config: PreTrainedConfig, generation: GenerationConfig | None):
        device = PartialState().device
        super().__init__(config, generation, device if device.type == "cuda" else torch.device("cpu"))
        try:
            self.tokens: list[str] = json.loads((folder / "shared_vocabulary.json").read_bytes())
            positions = json.loads((folder / "config.json").read_bytes())["max_positions"]
            self.translator = self._load_translator(folder)
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            raise ConfigError(f"{folder}: CTranslate2 cannot load it: {error}; export again") from error
        self.folder = folder
        self.max_positions = (positions, positions)
        self.ids = {token: number for number, token in enumerate(self.tokens)}

    @classmethod
    def load(cls, folder: Path, config: PreTrainedConfig, generation: GenerationConfig | None) -> Self:
        return cls(folder, config, generation)

    def _load_translator(self, folder: Path) -> ctranslate2.Translator:
        ctranslate2.set_log_level(logging.ERROR)  # it warns of a precision that the CPU has not
        return ctranslate2.Translator(
            str(folder),
            device=self.device.type,
            device_index=self.device.index or 0,
            intra_threads=torch.get_num_threads(),
        )

    def __call__(self, **batch: Any) -> ModelOutput:
        """Score `labels` (B, T) under the sources `input_ids` (B, S), where `attention_mask` (B, S) is not 0.

        Returns:
            `losses` (B, T), the cross-entropy of each label in nats, 0 where it is ignored.
        """
        labels = batch["labels"]
        is_real = labels != IGNORED
        is_told = torch.zeros_like(is_real)
        if "decoder_input_ids" in batch:  # where a language stands behind the start token
            is_told = is_real.cumsum(1) == 0
            labels = torch.where(is_told, batch["decoder_input_ids"].roll(-1, 1), labels)
        sources = self._sources(batch["input_ids"], batch["attention_mask"])
        targets = [self._to_tokens(*row) for row in zip(labels, is_real | is_told, strict=True)]
        scored = self.translator.score_batch(sources, targets, max_input_length=0)
        # It scores one more end behind the target, which has its own.
        logs = [log for row, target in zip(scored, targets, strict=True) for log in row.log_probs[: len(target)]]
        losses = torch.zeros(labels.shape, device=self.device)
        losses[is_real | is_told] = -torch.tensor(logs, device=self.device)
        return ModelOutput(losses=losses * is_real)

    def generate(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        custom_generate: None = None,
        decoder_input_ids: Tensor | None = None,
        **settings: Any,
    ) -> Tensor | ModelOutput:
        generation = self._settings(generation_config, settings)
        if attention_mask is None:
            attention_mask = input_ids.ne(self.config.pad_token_id)
        forced = generation.get("forced_bos_token_id")
        prefix = None if forced is None else [[self.tokens[forced]]] * len(input_ids)
        num_told = 0  # of tokens in the prefix that are no part of the answer
        if decoder_input_ids is not None:
            told = decoder_input_ids[:, 1:]
            prefix, num_told = [self._to_tokens(row, row != IGNORED) for row in told], told.shape[1]
        options = self._options(generation, num_told)
        translator = self.translator
        if generation["do_sample"]:
            # Each of its threads has a generator of random numbers, which is seeded once, when it is first used.
            ctranslate2.set_random_seed(int(torch.randint(2**31, ())))
            translator = self._load_translator(self.folder)
        try:
            results = translator.translate_batch(self._sources(input_ids, attention_mask), prefix, **options)
        except ValueError as error:
            raise ConfigError(f"--engine ctranslate2: generation: {error}") from error
        answers = [
            torch.tensor([self.config.decoder_start_token_id, *(self.ids[token] for token in hypothesis)])
            for result in results
            for hypothesis in result.hypotheses
        ]
        padding = generation.get("pad_token_id", self.config.pad_token_id)
        ids = torch.nn.utils.rnn.pad_sequence(answers, batch_first=True, padding_value=padding).to(self.device)
        if not generation.get("return_dict_in_generate"):
            return ids
        scores = torch.tensor([score for result in results for score in result.scores], device=self.device)
        return ModelOutput(sequences=ids, sequences_scores=scores)

    def _settings(self, generation: GenerationConfig | None, changes: dict[str, Any]) -> dict[str, Any]:
        """Return what is set, or else the engine's own, or else the default, by the names of a generation config.

        Raises:
            ConfigError: for a setting that CTranslate2 cannot honour.
        """
        own, given = ({} if config is None else vars(config) for config in (self.generation_config, generation))
        filled = own | {name: value for name, value in given.items() if value is not None} | changes
        asked = {name: value for name, value in filled.items() if _asks_for_something(name, value)}
        beams = asked.get("num_beams", 1)
        refused = [
            f"{name}={asked[name]}" + (f" beside num_beams={beams}" if name in GREEDY_ONLY else "")
            for name in sorted(asked)
            if not self._honours(name, asked[name], beams)
        ]
        if refused:
            raise ConfigError(
                f"--engine ctranslate2: generation: it has no {', '.join(refused)}; change it by --set, or "
                "take --engine torch"
            )
        bans = sorted(BANS & asked.keys())
        if bans and asked.get("return_dict_in_generate") and not asked.get("renormalize_logits"):
            raise ConfigError(
                f"--engine ctranslate2: scores: those of beams are others beside {', '.join(bans)} than with --engine "
                "torch; take that, or set renormalize_logits=true, with which they are the same"
            )
        return DEFAULTS | asked

    def _honours(self, name: str, value: Any, num_beams: int) -> bool:
        if name == "decoder_start_token_id":
            return value == self.config.decoder_start_token_id
        if name in BEAMS_ONLY:
            return num_beams > 1
        return name in HONOURED and (num_beams == 1 or name not in GREEDY_ONLY)

    def _options(self, settings: dict[str, Any], num_told: int) -> dict[str, Any]:
        """Return what `translate_batch` takes, from the settings of a generation config.

        Args:
            num_told: tokens behind the start that are given, and that it counts among those of the answer.
        """
        new_tokens, least = settings.get("max_new_tokens"), settings.get("min_new_tokens", 0)
        longest = num_told + new_tokens if new_tokens else settings.get("max_length", 20) - 1
        if longest > self.max_positions[1]:
            raise ConfigError(
                f"--engine ctranslate2: generation: {longest} new tokens are more than the {self.max_positions[1]} "
                "positions of the export; lower max_new_tokens"
            )
        beams, early_stopping = settings["num_beams"], settings["early_stopping"]
        banned = [[number] for number in settings.get("suppress_tokens", [])]
        ends = settings.get("eos_token_id", [])
        ends = ends if isinstance(ends, list) else [ends]
        # `generate` passes over an end among the bad words, too.
        banned += [ids for ids in settings.get("bad_words_ids", []) if ids not in [[end] for end in ends]]
        sampling = {
            "sampling_topk": min(settings["top_k"], len(self.tokens)),
            "sampling_topp": settings["top_p"],
            "sampling_temperature": settings["temperature"],
        }
        return {
            "beam_size": beams,
            "patience": {True: 1.0, False: PATIENCE, "never": ENDLESS}[early_stopping],
            "length_penalty": settings["length_penalty"],
            "num_hypotheses": settings["num_return_sequences"],
            "max_decoding_length": longest,
            "min_decoding_length": max(num_told + least if least else 0, settings.get("min_length", 0) - 1),
            "max_input_length": 0,
            "repetition_penalty": settings["repetition_penalty"],
            "no_repeat_ngram_size": settings["no_repeat_ngram_size"],
            "suppress_sequences": [[self.tokens[number] for number in ids] for ids in banned],
            "end_token": ends,
            "return_end_token": True,
            "return_scores": bool(settings.get("return_dict_in_generate")),
            **(sampling if settings["do_sample"] else {}),
        }

    def _sources(self, input_ids: Tensor, attention_mask: Tensor) -> list[list[str]]:
        return [self._to_tokens(ids, mask.bool()) for ids, mask in zip(input_ids, attention_mask, strict=True)]

    def _to_tokens(self, ids: Tensor, is_real: Tensor) -> list[str]:
        return [self.tokens[number] for number in ids[is_real].tolist()]


def _asks_for_something(name: str, value: Any) -> bool:
    # Not by its truth, as the token 0 can be asked for.
    is_off = value is None or value is False or value == [] or (name in OFF and value == OFF[name])
    return not is_off and name[0] != "_"
