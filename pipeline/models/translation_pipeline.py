"""`transformers.pipeline("translation", model=..., trust_remote_code=True)`, which transformers 5 no longer has itself.

It lies in the checkpoint, whose config names it in `custom_pipelines`:
https://huggingface.co/docs/transformers/v5.17.0/add_new_pipeline#share-your-pipeline
"""

import torch
from transformers import Pipeline


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
        if not hasattr(self.tokenizer, "_build_translation_inputs"):
            told = self._tell(tgt_lang)
            return {"mark": told.pop("mark", None)}, told | generate_kwargs, {}
        # A tokenizer of transformers that marks texts with their language.
        source, target = src_lang or self.tokenizer.src_lang, tgt_lang or self.tokenizer.tgt_lang
        if source is None or target is None:
            raise ValueError("give src_lang and tgt_lang, such as en_XX and fr_XX: the tokenizer marks texts with them")
        return {"languages": {"src_lang": source, "tgt_lang": target}}, generate_kwargs, {}

    def _tell(self, tgt_lang: str | None) -> dict:
        """Return the token in front of sources ("mark") or the arguments of `generate` that say what to translate into.

        The config of a model of teacher-forcing has `languages`, code -> token id, and `target_lang_in`, where that
        token stands.
        """
        config = self.model.config
        tags = getattr(config, "languages", None) or {}
        if not tags and tgt_lang is not None:
            raise ValueError("tgt_lang: this model is not told any language; leave it out")
        if not tags:
            return {}
        if tgt_lang is None and len(tags) == 1:
            tgt_lang = next(iter(tags))
        if tgt_lang not in tags:
            problem = "missing" if tgt_lang is None else f"{tgt_lang!r}, which the model does not know"
            raise ValueError(f"tgt_lang is {problem}; choose from {', '.join(tags)}")
        if config.target_lang_in == "source":
            return {"mark": tags[tgt_lang]}
        return {"decoder_input_ids": torch.tensor([[config.decoder_start_token_id, tags[tgt_lang]]])}

    def preprocess(self, text, mark=None, languages=None):
        if languages is not None:
            return self.tokenizer._build_translation_inputs(text, return_tensors="pt", **languages)
        inputs = self.tokenizer(text, return_tensors="pt")
        if mark is not None:
            for name, value in (("input_ids", mark), ("attention_mask", 1)):
                first = torch.full_like(inputs[name][:, :1], value)
                inputs[name] = torch.cat([first, inputs[name]], 1)
        return inputs

    def _forward(self, inputs, decoder_input_ids=None, **generate_kwargs):
        forced = inputs.pop("forced_bos_token_id", None)
        if forced is not None:
            forced = forced[0] if isinstance(forced, list) else forced  # one for each text of a batch
            generate_kwargs = self._begin_with(forced) | generate_kwargs
        if decoder_input_ids is not None:
            rows = decoder_input_ids.to(self.model.device).expand(len(inputs["input_ids"]), -1)
            generate_kwargs = {"decoder_input_ids": rows} | generate_kwargs
        return {"ids": self.model.generate(**inputs, **generate_kwargs)}

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
