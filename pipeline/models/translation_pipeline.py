"""`transformers.pipeline("translation", model=..., trust_remote_code=True)`, which transformers 5 no longer has itself.

It lies in the checkpoint, whose config names it in `custom_pipelines`:
https://huggingface.co/docs/transformers/v5.17.0/add_new_pipeline#share-your-pipeline
"""

from transformers import Pipeline


class TranslationPipeline(Pipeline):
    """One text or a list of them in, `{"translation_text": ...}` for each out, in a list."""

    _load_tokenizer = True
    _load_processor = _load_image_processor = _load_feature_extractor = False

    def __call__(self, texts: str | list[str], **generate_kwargs) -> list[dict[str, str]]:
        """Translate one text or a list of texts.

        Keyword arguments go to `model.generate`; all others are those of the model's generation config.
        """
        result = super().__call__(texts, **generate_kwargs)
        return [result] if isinstance(texts, str) else result

    def _sanitize_parameters(self, **generate_kwargs):
        return {}, generate_kwargs, {}

    def preprocess(self, text):
        return self.tokenizer(text, return_tensors="pt")

    def _forward(self, inputs, **generate_kwargs):
        return {"ids": self.model.generate(**inputs, **generate_kwargs)}

    def postprocess(self, outputs):
        return {"translation_text": self.tokenizer.decode(outputs["ids"][0], skip_special_tokens=True)}
