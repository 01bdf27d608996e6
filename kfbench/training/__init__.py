"""One run: seeds, records, checkpoints."""
