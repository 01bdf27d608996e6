"""What is found, to be quoted: one site of all verdicts, and their tables in the docs. No torch."""
