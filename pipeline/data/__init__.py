"""From files, the Hub or a generator to collated batches, in one order that every rank and every resumed run shares.

    splits.py + readers/  ->  rows with agreed columns        hub_reading.py: retries, pinned commits, downloads
    rows.py               ->  a feature or a `BadRow` each     (a task encodes them)
    batch_stream.py       ->  batches, and a position behind each; length_grouping.py cuts a window into batches
    batch_loader.py       ->  batches as tensors, made here or by worker processes

text_noise.py changes texts, augmentation.py tokens, word_vectors.py reads vectors for an embedding. Here may be
whatever reads, orders or changes data; no model, no metric, and no task's name: what is of a task comes in as a
function (`encode`, `collate`).
"""
