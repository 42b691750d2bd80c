"""HTML pages that need no network and no other file: of a trace, and of a comparison.

Here: templates, styles, scripts, and the code that fills them; `base.*` is shared with the page of `serving/`. Not
here: a computation. The numbers come from `pipeline/inference/attention.py` and `compare.py`; what is done to them here
is picking, rounding and adding up for display.
"""
