"""Who wins: trains what is missing, gathers runs, ranks and pairs them."""
