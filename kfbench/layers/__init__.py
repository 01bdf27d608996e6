"""What a layer gives: its rows, its moments, and the forms in which these are kept."""
