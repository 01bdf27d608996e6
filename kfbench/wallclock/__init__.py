"""What an update costs: interleaved windows, ratios with intervals, multiply-adds."""
