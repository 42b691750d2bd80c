"""`transformers.pipeline("translation", model=..., trust_remote_code=True)`, which transformers 5 no longer has itself.

It lies in the checkpoint, whose config names it in `custom_pipelines`:
https://huggingface.co/docs/transformers/v5.17.0/add_new_pipeline#share-your-pipeline
"""

import torch
from transformers import Pipeline

SOME_LANGUAGES = "fr_XX, fra_Latn or fr"


class TranslationPipeline(Pipeline):
    """One text or a list of them in, `{"translation_text": ...}` for each out, in a list."""

    _load_tokenizer = True
    _load_processor = _load_image_processor = _load_feature_extractor = False

    def __call__(self, texts: str | list[str], **generate_kwargs) -> list[dict[str, str]]:
        """Translate one text or a list of texts.

        `src_lang` and `tgt_lang` are the languages of all texts, where the model knows several; its tokenizer or its
        config (`languages`) names them. Other keyword arguments go to `model.generate`; all that are left out are those
        of the model's generation config.

        Raises:
            ValueError: for a language that the model does not know, or that is missing.
        """
        result = super().__call__(texts, **generate_kwargs)
        return [result] if isinstance(texts, str) else result

    def _sanitize_parameters(self, src_lang=None, tgt_lang=None, **generate_kwargs):
        given = {name: code for name, code in (("src_lang", src_lang), ("tgt_lang", tgt_lang)) if code is not None}
        return given, {name: given[name] for name in given if name == "tgt_lang"} | generate_kwargs, {}

    def _find_tag(self, tgt_lang: str | None) -> int | None:
        """Return the token of a target language; None for a model that is not told any.

        The config of a model of teacher-forcing has `languages`, code -> token id, and `target_lang_in`, where that
        token stands.
        """
        tags = getattr(self.model.config, "languages", None) or {}
        if not tags and tgt_lang is not None:
            raise ValueError("tgt_lang: this model is not told any language; leave it out")
        if tgt_lang is None and len(tags) == 1:
            return next(iter(tags.values()))
        if tags and tgt_lang not in tags:
            problem = "missing" if tgt_lang is None else f"{tgt_lang!r}, which the model does not know"
            raise ValueError(f"tgt_lang is {problem}; choose from {', '.join(tags)}")
        return tags.get(tgt_lang)

    @property
    def _marks_texts(self) -> bool:
        """Whether the tokenizer marks texts with their language, as those of mBART, M2M100 and NLLB do."""
        return hasattr(self.tokenizer, "_build_translation_inputs")

    def preprocess(self, text, src_lang=None, tgt_lang=None):
        if self._marks_texts:
            named = {
                "src_lang": src_lang or self.tokenizer.src_lang,
                "tgt_lang": tgt_lang or self.tokenizer.tgt_lang,
            }
            for name, code in named.items():
                self._find_token(name, code)
            inputs = self.tokenizer._build_translation_inputs(text, return_tensors="pt", **named)
            return {name: inputs[name] for name in ("input_ids", "attention_mask")}
        inputs = self.tokenizer(text, return_tensors="pt")
        tag = self._find_tag(tgt_lang)
        if tag is not None and self.model.config.target_lang_in == "source":
            for name, value in (("input_ids", tag), ("attention_mask", 1)):
                first = torch.full_like(inputs[name][:, :1], value)
                inputs[name] = torch.cat([first, inputs[name]], 1)
        return inputs

    def _forward(self, inputs, tgt_lang=None, **generate_kwargs):
        told = self._tell(tgt_lang, len(inputs["input_ids"]))
        return {"ids": self.model.generate(**inputs, **told | generate_kwargs)}

    def _tell(self, tgt_lang: str | None, num_rows: int) -> dict:
        """Return the arguments of `generate` by which the decoder is told the target's language."""
        if self._marks_texts:
            return self._begin_with(self._find_token("tgt_lang", tgt_lang or self.tokenizer.tgt_lang))
        tag = self._find_tag(tgt_lang)
        if tag is None or self.model.config.target_lang_in == "source":
            return {}
        read = torch.tensor([[self.model.config.decoder_start_token_id, tag]], device=self.model.device)
        return {"decoder_input_ids": read.expand(num_rows, -1)}

    def _find_token(self, name: str, code: str | None) -> int:
        """Return the id of a language of the tokenizer, whose token may have more than its code: __fr__ for fr."""
        if code is None:
            raise ValueError(f"{name} is missing; give one of the tokenizer's languages, such as {SOME_LANGUAGES}")
        for token in (code, f"__{code}__"):
            token_id = self.tokenizer.convert_tokens_to_ids(token)
            if token_id not in (None, self.tokenizer.unk_token_id) and token in self.tokenizer.all_special_tokens:
                return token_id
        raise ValueError(
            f"{name}: the tokenizer knows no {code!r}; give one of its languages, such as {SOME_LANGUAGES}"
        )

    def _begin_with(self, language: int) -> dict[str, int | None]:
        """Return the arguments of `generate` by which the decoder reads a language first: at its start, or behind it.

        mBART and PLBart start with the language, where their tokenizers put it behind a text.
        """
        is_start = self.model.config.model_type in ("mbart", "plbart") and not self.tokenizer.prefix_tokens
        if is_start:
            return {"decoder_start_token_id": language, "forced_bos_token_id": None}
        return {"forced_bos_token_id": language}

    def postprocess(self, outputs):
        return {"translation_text": self.tokenizer.decode(outputs["ids"][0], skip_special_tokens=True)}
