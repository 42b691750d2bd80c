"""What the data of a config hold, looked at before anything is trained.

Rows are read as training reads them, once and in order. Nothing stays of them but counts, hashes and a few examples.
Here is no judgement: whether a number is too high is for people to say. How it is printed is for `commands/inspect.py`.
"""
