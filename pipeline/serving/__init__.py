"""A trained model as a server: one engine on one thread, and the wire formats of clients that people have already.

`batcher.py` and `answering.py` know no web framework. No path, URL or code in a request is ever opened or run.
"""
