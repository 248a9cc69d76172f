"""The teacher cache, format 1: written once and durably, read through memory maps, verified to the bit.

`create_or_open` writes, `open_cache` reads, `verify` checks, `info` tells what is there. docs/format.md is its
contract. It knows arrays and files only: no torch, no teacher.
"""

if __name__ != "kdtool.cache":
    raise ImportError("this folder is the package 'kdtool.cache': import that name")

from kdtool.cache.arrays import DTYPES, ArraySpec
from kdtool.cache.blocks import write_block
from kdtool.cache.convert import export_hdf5, import_hdf5, verify_hdf5
from kdtool.cache.drop import Choice, Dropped, drop, would_drop
from kdtool.cache.identity import FORMAT, difference
from kdtool.cache.info import info
from kdtool.cache.layout import PARTS, Contents, FitContents, Layout, default_block
from kdtool.cache.opening import require_space
from kdtool.cache.reader import Cache, open_cache
from kdtool.cache.repair import Repairer, Survey, open_damaged, survey
from kdtool.cache.rows import CachedArray
from kdtool.cache.verify import Problem, verify
from kdtool.cache.writer import CacheWriter, could_open, create_or_open

__all__ = [
    "DTYPES",
    "FORMAT",
    "PARTS",
    "ArraySpec",
    "Cache",
    "CacheWriter",
    "CachedArray",
    "Choice",
    "Contents",
    "Dropped",
    "FitContents",
    "Layout",
    "Problem",
    "Repairer",
    "Survey",
    "could_open",
    "create_or_open",
    "default_block",
    "difference",
    "drop",
    "export_hdf5",
    "import_hdf5",
    "info",
    "open_cache",
    "open_damaged",
    "require_space",
    "survey",
    "verify",
    "verify_hdf5",
    "would_drop",
    "write_block",
]
