"""How far the step goes: one rule, one file."""
