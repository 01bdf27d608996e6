"""One update: the only place where order is decided."""
