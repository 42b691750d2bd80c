"""What runs an export in place of the model: one file a runtime, on the contract in `base`.

Nothing here converts a model: that is `exporting/`. A runtime is imported when an export is loaded, so that its extra
is needed by nobody else.
"""
