"""What goes into a checkpoint: the configuration and modeling files of each model, and what they need.

These files are copied beside the weights, so that others can load them without this package. Hence the rules: one flat
folder, imports of one another as `from .sibling import X` only, and of nothing else of this project.
"""
