"""With which options: the sweep leads, workers train. No torch."""
