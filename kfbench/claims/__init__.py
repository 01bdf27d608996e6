"""Does a published claim hold: runs what is missing, measures, judges."""
