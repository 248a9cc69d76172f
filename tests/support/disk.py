"""A disk that fails: every call that changes it is counted, the n-th one does half of its work and then fails.

`Disk` stands between kdtool and the operating system. It counts every write, fsync, rename and removal, and knows what
would still be there after a loss of power: contents and names that were synced.
"""

import os
import stat
from pathlib import Path


class Killed(BaseException):
    """The process is gone."""


class Disk:
    """Counts the calls that change a disk; the call `fail_at` does half of its work and then fails with `error`."""

    def __init__(self, patch, fail_at=None, error=Killed):
        self.calls, self.fail_at, self.error, self.done = 0, fail_at, error, []
        self.contents, self.names, self._handles = {}, {}, []
        self._open, self._replace, self._unlink = Path.open, os.replace, os.unlink
        patch.setattr(Path, "open", lambda path, mode="r", *rest, **more: self._opened(path, mode, *rest, **more))
        patch.setattr(os, "replace", lambda *paths: self._step() or self._replace(*paths))
        patch.setattr(os, "unlink", lambda *path, **rest: self._step() or self._unlink(*path, **rest))
        patch.setattr(os, "fsync", self._sync)

    def _step(self):
        self.calls += 1
        if self.calls == self.fail_at:
            raise self.error

    def _opened(self, path, mode, *rest, **more):
        if "w" in mode or "a" in mode:
            return _Torn(self._open(path, mode + "+", *rest, **more), self._step)  # readable too, for `_sync`
        return self._open(path, mode, *rest, **more)

    def _sync(self, handle):
        self._step()
        number = os.fstat(handle).st_ino
        self._handles.append(os.dup(handle))  # keeps the number from being given to another file
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            with os.scandir(handle) as entries:
                self.names[number] = {entry.name: (entry.inode(), entry.is_dir()) for entry in entries}
        else:
            self.contents[number] = os.pread(handle, os.fstat(handle).st_size, 0)

    def close(self):
        for handle in self._handles:
            os.close(handle)

    def after_power_loss(self, number, target):
        """Writes what is left of a folder, given by its inode: synced names with synced contents."""
        target.mkdir()
        for name, (child, folder) in self.names.get(number, {}).items():
            if folder:
                self.after_power_loss(child, target / name)
            else:
                (target / name).write_bytes(self.contents.get(child, b""))


class _Torn:
    """A file whose failing write leaves half of what was to be written."""

    def __init__(self, file, step):
        self._file, self._step = file, step

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._file.close()

    def __getattr__(self, name):
        return getattr(self._file, name)

    def write(self, content):
        try:
            self._step()
        except BaseException:
            self._file.write(content[: len(content) // 2])
            self._file.flush()
            raise
        return self._file.write(content)
