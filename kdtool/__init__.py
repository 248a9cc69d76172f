"""kdtool: run the teacher once, keep what it said, distil any number of students from the cache."""

from pathlib import Path

__version__ = "0.1.0"

if not Path(__file__).with_name("cli").is_dir():  # a checkout: cli/ and cache/ lie beside this folder
    __path__.append(str(Path(__file__).parents[1]))
