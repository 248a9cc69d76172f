"""A command as it is typed into a terminal of 80 columns."""

from collections.abc import Callable

import pytest

from kdtool.cli.main import run


@pytest.fixture
def typed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[[str], tuple[int, str, str]]:
    """Runs a line; gives exit code, stdout and stderr."""
    monkeypatch.setenv("COLUMNS", "80")

    def call(line: str) -> tuple[int, str, str]:
        code = run(line.split())
        return code, *capsys.readouterr()

    return call
