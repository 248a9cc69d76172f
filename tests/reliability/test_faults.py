"""Every write, fsync, rename and removal of a small extract fails once: an error, the end of the process, or of power.

The next extract gives the bytes of an undisturbed one.
"""

import errno
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import extracts
import pytest
from disk import Disk, Killed

from kdtool.cli.main import run as command
from kdtool.errors import KdtoolError

Fresh = Callable[[], Path]
Trials = Callable[[int, int], int]


@pytest.fixture(scope="module")
def undisturbed(made_up_taught: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, bytes], int]:
    """(the files of an extract that is left alone, the number of calls that it makes)."""
    folder = tmp_path_factory.mktemp("undisturbed") / "work"
    shutil.copytree(made_up_taught, folder)
    with pytest.MonkeyPatch.context() as patch:
        disk = Disk(patch)
        extracts.run(folder, views=1)
        disk.close()
    return extracts.files(folder / "cache.zarr"), disk.calls


def failing(folder: Path, monkeypatch: pytest.MonkeyPatch, fail_at: int, error: BaseException | type) -> Disk:
    """One extract on a disk that fails at a call; gives the disk."""
    with monkeypatch.context() as patch:
        disk = Disk(patch, fail_at, error)
        try:
            extracts.run(folder, views=1)
        except (Killed, KdtoolError, OSError):
            pass
        finally:
            disk.close()
    return disk


def points(calls: int, number: int) -> Iterable[int]:
    """So many of the calls, or all of them, spread evenly."""
    return sorted({1 + round(place * (calls - 1) / max(1, number - 1)) for place in range(min(number, calls))})


def finished(folder: Path) -> dict[str, bytes]:
    """What the next extract comes to."""
    extracts.run(folder, views=1)
    return extracts.files(folder / "cache.zarr")


ERRORS = {"stop": Killed, "OSError": OSError(errno.EIO, "input/output error")}


@pytest.mark.timeout(10_800)
@pytest.mark.parametrize("kind", ERRORS)
def test_a_call_that_fails(
    kind: str,
    undisturbed: tuple[dict[str, bytes], int],
    fresh: Fresh,
    monkeypatch: pytest.MonkeyPatch,
    trials: Trials,
    figure: Callable[..., None],
) -> None:
    wanted, calls = undisturbed
    tried = points(calls, trials(8, calls))
    for fail_at in tried:
        folder = fresh()
        assert failing(folder, monkeypatch, fail_at, ERRORS[kind]).calls >= fail_at
        extracts.assert_nothing_is_wrong(folder / "cache.zarr")
        assert finished(folder) == wanted, f"call {fail_at}"
    figure(f"{kind} at the n-th write, fsync, rename or removal", calls=calls, tried=len(tried), identical=len(tried))


@pytest.mark.timeout(10_800)
def test_what_was_not_synced_is_lost(
    undisturbed: tuple[dict[str, bytes], int],
    fresh: Fresh,
    monkeypatch: pytest.MonkeyPatch,
    trials: Trials,
    figure: Callable[..., None],
) -> None:
    wanted, calls = undisturbed
    tried = points(calls, trials(8, calls))
    for fail_at in tried:
        folder = fresh()
        (folder / "cache.zarr").mkdir()
        number = (folder / "cache.zarr").stat().st_ino
        disk = failing(folder, monkeypatch, fail_at, Killed)
        shutil.rmtree(folder / "cache.zarr")
        disk.after_power_loss(number, folder / "cache.zarr")
        extracts.assert_nothing_is_wrong(folder / "cache.zarr")
        assert finished(folder) == wanted, f"call {fail_at}"
    figure("power lost at the n-th call", calls=calls, tried=len(tried), identical=len(tried))


class Full:
    """A disk that is full from the n-th write on, until it is emptied."""

    def __init__(self, patch: pytest.MonkeyPatch, fail_at: int) -> None:
        self.writes, real = 0, Path.open

        def opened(path: Path, mode: str = "r", *rest: object, **more: object) -> object:
            if "w" in mode or "a" in mode:
                self.writes += 1
                if self.writes >= fail_at:
                    raise OSError(errno.ENOSPC, "No space left on device", str(path))
            return real(path, mode, *rest, **more)  # type: ignore[arg-type]

        patch.setattr(Path, "open", opened)


@pytest.mark.timeout(10_800)
def test_a_full_disk(
    fresh: Fresh,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    trials: Trials,
    figure: Callable[..., None],
) -> None:
    """At every file that an extract opens for writing, so at every block; on the command line."""
    line = "extract --for ab --student resnet8 --views 2 --batch 16 --block 16 --quiet --folder"
    folder = fresh()
    with monkeypatch.context() as patch:
        disk = Full(patch, 10**9)
        assert command([*line.split(), str(folder)]) == 0
    wanted = extracts.files(folder / "cache.zarr")
    tried = points(disk.writes, trials(12, disk.writes))
    for fail_at in tried:
        folder = fresh()
        capsys.readouterr()
        with monkeypatch.context() as patch:
            Full(patch, fail_at)
            code = command([*line.split(), str(folder)])
        out, err = capsys.readouterr()
        assert (code, out) == (5, ""), err
        assert err.count("\n") == 1
        assert "no space left" in err
        extracts.assert_nothing_is_wrong(folder / "cache.zarr")
        assert command([*line.split(), str(folder)]) == 0
        assert extracts.files(folder / "cache.zarr") == wanted, f"write {fail_at}"
    blocks = sum(count_blocks(wanted))
    figure("disk full", writes=disk.writes, blocks=blocks, tried=len(tried), identical=len(tried))


def count_blocks(files: dict[str, bytes]) -> Iterator[int]:
    """A one for every chunk of the logits, which has a chunk in every block."""
    return (1 for name in files if "/logits/values/c/" in name)
