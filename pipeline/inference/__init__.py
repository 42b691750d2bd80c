"""What runs a model without training it: scores, predictions, attention.

`batches` is the one loop; `evaluation` and `generation` go through it; `corpus` answers texts window by
window, `formats` writes the answers, `parts` commits them; `metrics` scores texts; `sampling` draws by seed, and
chooses among samples; `compare` puts several systems side by side, whose answers `prediction_files` reads; `words`
cuts texts; `attention` takes one pair apart; `engines` run what was exported, in place of the model. Not here: an
optimizer, a checkpoint's format, a page.
"""
