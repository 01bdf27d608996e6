"""One run on several processes: who sees which rows, what is joined, who refreshes what, and how they end together."""
