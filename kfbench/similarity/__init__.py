"""Whose direction it is: one method trains, others are asked on the same batches."""
