"""Trained models in the form of others: conversions of weights, and the proof that they compute the same.

One file a form; `export.py` has the table and the story. Not here: what runs an export (`inference/engines/`).
"""
