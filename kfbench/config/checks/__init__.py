"""Whether what is asked for fits together, where that is more than the range of one value."""
