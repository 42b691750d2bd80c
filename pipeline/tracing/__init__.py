"""The page and the picture of a trace.

Here: a template, a style, a script, and the code that fills them from a `Trace`. Not here: a computation. The numbers
come from `pipeline/inference/attention.py`; what is done to them here is picking, rounding and adding up for display.
"""
