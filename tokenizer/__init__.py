"""Tokenizers: training one, importing a SentencePiece model, and checking what a model needs of one.

May be here: what deals with texts and token ids only. May not: models, configs and data sets. Nothing of `pipeline` is
imported, so this package works without it.
"""
