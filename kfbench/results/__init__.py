"""What was found: records, statistics, tables, plots. Never touches the model."""
