"""`kdtool --help` answers at once: what takes long to import waits until a command needs it."""

import json
import subprocess
import sys
from pathlib import Path

HEAVY = {
    "torch",
    "torchvision",
    "numpy",
    "zarr",
    "numcodecs",
    "h5py",
    "matplotlib",
    "sklearn",
    "scipy",
    "safetensors",
    "timm",
    "PIL",
}

PROGRAM = """
import json, sys
sys.argv = ["kdtool", *sys.argv[1:]]
try:
    from kdtool.cli.main import main
    main()
except SystemExit as end:
    print(json.dumps([end.code or 0, sorted(sys.modules)]), file=sys.stderr)
"""


def test_help_imports_nothing_heavy(tmp_path: Path) -> None:
    words = [sys.executable, "-c", PROGRAM, "--help"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    code, modules = json.loads(done.stderr.splitlines()[-1])
    assert code == 0
    assert "distill" in done.stdout
    assert HEAVY.intersection(modules) == set()
