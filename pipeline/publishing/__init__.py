"""What leaves for the Hub: the files of a trained model, its card, and the check that no secret goes with them.

Here: uploading with patience (`hub.py`), the card (`card.py` with its template), answers to a corpus as a data set
(`corpora.py`), the search for secrets (`secrets.py`).
Not here: what the model is and how it was trained. Values come from the config, the trainer's state and the task, and
the files from a folder that is already written; nothing here trains, scores or changes a model.
"""
