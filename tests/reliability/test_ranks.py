"""Several processes extract into one cache: disjoint blocks, one writer, the bytes of a single process."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

WORK = """
import sys
sys.path.insert(0, {here!r})
from made_up import made_up, run_extract
from kdtool import data
from kdtool.methods import method
data.DATASETS["made_up"] = made_up
from pathlib import Path
run_extract(Path({folder!r}), dtypes={{"": "float32"}}, block=16, views=3, methods=(method("kda"), method("at")),
            students=("resnet8",))
"""


def files(root: Path) -> dict[str, bytes]:
    found = {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}
    return {name: content for name, content in found.items() if name != "provenance.jsonl"}


def extracted_by(count: int, taught: Path, place: Path) -> dict[str, bytes]:
    folder = Path(shutil.copytree(taught, place / f"by{count}"))
    script = place / f"by{count}.py"
    script.write_text(WORK.format(here=str(Path(__file__).parents[1] / "support"), folder=str(folder)))
    words = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(count)] if count > 1 else []
    command = [sys.executable, *(["-m", *words] if words else []), str(script)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr
    return files(folder / "cache.zarr")


@pytest.mark.slow
def test_two_and_four_ranks_give_the_bytes_of_one(
    made_up_taught: Path, tmp_path: Path, figure: Callable[..., None]
) -> None:
    alone = extracted_by(1, made_up_taught, tmp_path)
    for count in (2, 4):
        together = extracted_by(count, made_up_taught, tmp_path)
        assert together.keys() == alone.keys()
        assert together == alone
    figure("ranks of one torchrun", most=4, files=len(alone), identical=len(alone))
