"""`python -m kdtool` is the `kdtool` command."""

from kdtool.cli.main import main

main()
