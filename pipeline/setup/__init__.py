"""What a config makes before training begins: tokenizer, model, generation config, training batches.

Each is new, or comes from a checkpoint or the Hub. Not here: training itself, or anything that runs a model, but for
the one pair by which a pretrained model is asked where its decoder starts.
"""
