"""Trained models in the form of others: conversions of weights and configs. No training, no files of a run."""
