"""``python -m kfbench``: the same as the command ``kfbench``."""

import os
import sys

# ``-m`` puts the working folder in front, where a file called calendar.py is taken for Python's. Before any import that
# could be misled; kfbench itself may lie there, in a checkout, so that it is then searched last.
if not sys.flags.safe_path:
    _folder = sys.path.pop(0)
    if os.path.dirname(os.path.dirname(os.path.abspath(__file__))) == _folder:
        sys.path.append(_folder)

from kfbench.cli.app import main

main()
