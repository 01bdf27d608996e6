"""How a gradient becomes a direction: one method, one file. Import a method from its own file."""
