"""What a cache is and holds, as plain values: the content of `kdtool cache info`."""

from pathlib import Path
from typing import Any

from kdtool.cache.identity import FORMAT
from kdtool.cache.manifest import Manifest
from kdtool.cache.reader import open_cache


def info(path: Path | str) -> dict[str, Any]:
    """Identity, layout, and what every key and fit holds and takes; sizes in bytes, from the manifest.

    Errors as for `open_cache`.
    """
    cache = open_cache(path)
    manifest = cache.manifest
    sizes = _sizes(manifest)
    return {
        "path": str(path),
        "format": FORMAT,
        "identity": cache.identity,
        "identity_digest": cache.identity_digest,
        "layout": cache.layout.to_json(),
        "keys": {key: _key(manifest, sizes, key) for key in sorted(cache.contents)},
        "fits": {key: {**fit.to_json(), "bytes": sizes[f"fitted/{key}"]} for key, fit in sorted(cache.fits.items())},
        "bytes": sum(sizes.values()),
        "unfinished": cache.unfinished,
    }


def _key(manifest: Manifest, sizes: dict[str, int], key: str) -> dict[str, Any]:
    parts = {
        part: {"views": manifest.views(part, key), "bytes": sizes.get(f"{part}/{key}", 0)}
        for part in manifest.parts(key)
    }
    return {**manifest.contents[key].to_json(), "parts": parts}


def _sizes(manifest: Manifest) -> dict[str, int]:
    """Bytes of the recorded chunk files under every folder of the second level, such as train/logits."""
    sizes: dict[str, int] = {}
    for name in manifest.files:
        folder = "/".join(name.split("/")[:2])
        sizes[folder] = sizes.get(folder, 0) + manifest.grid_of(name).file_bytes
    return sizes
