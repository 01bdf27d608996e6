"""A user's own data set: from a function or a file, checked, known by its content."""
