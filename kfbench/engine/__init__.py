"""When things happen: the only place that counts steps or reads clocks."""
