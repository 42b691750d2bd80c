"""What a config makes before training begins: tokenizer, model, training batches.

Each is new, or comes from a checkpoint or the Hub. Not here: training itself, or anything that runs a model.
"""
