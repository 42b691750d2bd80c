"""Searches that give the tokens of transformers' `generate` in less time. Not here: a task, a tokenizer, a text."""
