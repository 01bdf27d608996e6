"""``python -m kfbench``: the same as the command ``kfbench``."""

from kfbench.cli.app import main

main()
