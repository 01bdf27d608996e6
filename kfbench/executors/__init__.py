"""Where jobs run: one kind of place, one file. No torch."""
