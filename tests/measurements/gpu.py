"""Everything that a GPU is to tell, in one command of under six minutes. A measurement, not a test.

    python -m tests.measurements.gpu [device] [seconds] [folder]

In order: whether every method gives the directions of the CPU (``tests/test_devices.py``), then the tables of
configs/foof-4a.yaml, method-costs.yaml, conv-speed-resnet18.yaml and speed-transformer.yaml, each within so many
seconds (50) of windows, then what `train` costs over a bare loop. Every table is printed as it ends, and its
records lie in FOLDER/NAME (runs/gpu), as docs/records has them: a run that is cut off has lost the table it was at.
"""

import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
TABLES = ("foof-4a", "method-costs", "conv-speed-resnet18", "speed-transformer")


def steps(device, seconds, folder):
    """NAME, and the arguments of Python."""
    yield "devices", ["-m", "pytest", "-q", "-x", "-k", device, "tests/test_devices.py"]
    for name in TABLES:
        budget = ["--device", device, "--max-time", seconds, "--out", str(folder / name), "--overwrite"]
        yield name, ["-m", "kfbench", "wallclock", "--config", f"configs/{name}.yaml", *budget]
    yield "loop", ["-m", "tests.measurements.loop_overhead", "7", device]


def main(device="cuda", seconds="50", folder="runs/gpu"):
    """Run them one after another; one that fails is named, and the others follow."""
    failed = []
    for name, arguments in steps(device, seconds, Path(folder)):
        began = time.monotonic()
        print(f"== {name}", flush=True)
        if subprocess.run([sys.executable, *arguments], cwd=ROOT).returncode:
            failed.append(name)
        print(f"== {name}: {time.monotonic() - began:.0f} s", flush=True)
    print(f"failed: {', '.join(failed) or 'none'}", flush=True)
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
