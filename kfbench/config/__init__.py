"""What is asked for: YAML, flags and SPECs as one validated, frozen configuration. No torch."""
