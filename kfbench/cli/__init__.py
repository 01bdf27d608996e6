"""One file per command: load the configuration, call one function, print. No torch at import time."""
