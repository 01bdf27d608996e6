"""Families of methods whose options and rows of the table stand in a file of their own. Plain data, without torch."""
