"""Pictures in files: what each file is, and its pixels as RGB.

Every file is examined once: read, hashed and decoded whole, so that nothing unreadable is met in the middle of a
training. What is not a plain picture of eight bits in grey, colours of a palette or RGB is told by file. Left out:
orientation by EXIF, which the readers that weights were trained with leave out too, and colour profiles.
"""

import hashlib
import io
import itertools
import stat
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from kdtool.errors import DamageError

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageFile import ImageFile

ENDINGS = {
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".jpe": "JPEG",
    ".jfif": "JPEG",
    ".png": "PNG",
    ".bmp": "BMP",
    ".gif": "GIF",
    ".webp": "WEBP",
    ".ppm": "PPM",
    ".pgm": "PPM",
    ".pbm": "PPM",
    ".pnm": "PPM",
    ".tif": "TIFF",
    ".tiff": "TIFF",
}
FORMATS = tuple(sorted(set(ENDINGS.values())))  # no others are tried: Pillow hands some to other programs
MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "YCbCr")
MOST_PIXELS = 89_478_485  # of one picture, Pillow's own limit; a file of some kilobytes can claim any size
MOST_BYTES = 2**30  # of one file, more than so many pixels take; an archive left among pictures is not read

JPEG_WITH_MORE = "MPO"  # what Pillow calls a JPEG that has a preview or a depth map behind its picture

# What can be wrong with a file, in the order of their numbers in the index. Those after UNREADABLE can be decoded.
FINE, EMPTY, NO_PICTURE, TRUNCATED, TOO_LARGE, UNREADABLE, CMYK, SIXTEEN_BIT, ANIMATED, MISNAMED = range(10)
FINDINGS = {
    EMPTY: "is empty",
    NO_PICTURE: "is no picture of a known format",
    TRUNCATED: "is truncated or damaged",
    TOO_LARGE: f"has more than {MOST_PIXELS:,} pixels",
    UNREADABLE: "cannot be read",
    CMYK: "has the four colours of print (CMYK)",
    SIXTEEN_BIT: "has more than 8 bits a colour",
    ANIMATED: "is animated",
    MISNAMED: "has not the ending of its format",
}


@dataclass(frozen=True)
class Seen:
    """What one look at a file gave. finding: one of those above, by its number."""

    finding: int
    sha256: bytes = bytes(32)
    height: int = 0
    width: int = 0


@dataclass(frozen=True, eq=False)
class Pictures:
    """Files below `root`; sizes (n, 2) height and width, digests (n, 32) uint8, the SHA-256 of each file.

    stamps (n, 3): what `stamp` gave of each when it was examined.
    """

    root: Path
    names: Sequence[str]
    sizes: npt.NDArray[np.int64]
    digests: npt.NDArray[np.uint8]
    stamps: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, row: int) -> "Image":
        """The picture as RGB. DamageError where the file is not the one that was examined, or is gone."""
        path = self.root / self.names[row]
        try:
            picture = rgb(path.read_bytes())
        except Exception as error:  # noqa: BLE001 - decoders of many formats raise what they like
            raise DamageError(f"{path} cannot be read any more ({type(error).__name__}: {error}); restore it") from None
        if stamp(path)[:2] != tuple(self.stamps[row, :2]):
            raise DamageError(f"{path} has changed since it was examined; run the same command again")
        return picture

    def parts(self, *counts: int) -> list["Pictures"]:
        """The first so many pictures, the following ones and so on."""
        cuts = np.cumsum((0, *counts))
        return [
            Pictures(self.root, self.names[i:j], self.sizes[i:j], self.digests[i:j], self.stamps[i:j])
            for i, j in itertools.pairwise(cuts)
        ]


def stamp(path: Path) -> tuple[int, int, int]:
    """Bytes, and in nanoseconds when the content and when anything else changed; -1 for a file that is not there."""
    try:
        found = path.stat()
    except OSError:
        return -1, -1, -1
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns


def picture(images: "npt.NDArray[np.uint8] | Pictures", row: int) -> "Image":
    """One image of a part as an RGB picture."""
    from PIL import Image

    return images[row] if isinstance(images, Pictures) else Image.fromarray(images[row].transpose(1, 2, 0))


def _opened(content: bytes) -> "ImageFile":
    from PIL import Image

    warnings.filterwarnings("ignore", module=r"PIL\.")  # of metadata that nobody reads; findings tell the rest
    return Image.open(io.BytesIO(content), formats=FORMATS)


def rgb(content: bytes) -> "Image":
    """The picture in a file, decoded whole, its first frame; grey and palettes become RGB, transparency is dropped."""
    with _opened(content) as picture:
        if picture.width * picture.height > MOST_PIXELS:
            raise ValueError(FINDINGS[TOO_LARGE])
        if picture.mode == "P" and "transparency" in picture.info:
            return picture.convert("RGBA").convert("RGB")  # else Pillow warns
        if picture.mode != "RGB":
            return picture.convert("RGB")
        picture.load()
        return picture


def examine(path: Path) -> Seen:
    """What a file is; it is read and decoded whole."""
    try:
        about = path.stat()
        if not stat.S_ISREG(about.st_mode):  # a pipe would be waited for
            return Seen(UNREADABLE)
        if about.st_size > MOST_BYTES:
            return Seen(NO_PICTURE)
        content = path.read_bytes()
    except OSError:
        return Seen(UNREADABLE)
    if not content:
        return Seen(EMPTY)
    return _examined(path.suffix.lower(), content)


def _examined(ending: str, content: bytes) -> Seen:
    from PIL import Image, UnidentifiedImageError

    digest = hashlib.sha256(content).digest()
    try:
        with _opened(content) as picture:
            width, height = picture.size
            finding = _finding(picture, ending, content)
        if finding != TOO_LARGE:
            rgb(content)
    except UnidentifiedImageError:
        return Seen(NO_PICTURE, digest)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        return Seen(TOO_LARGE, digest)
    except Exception:  # noqa: BLE001 - decoders of many formats raise what they like
        return Seen(TRUNCATED, digest)
    return Seen(finding, digest, height, width)


def _finding(picture: Any, ending: str, content: bytes) -> int:
    if picture.width * picture.height > MOST_PIXELS:
        return TOO_LARGE
    if picture.mode == "CMYK":
        return CMYK
    if picture.mode not in MODES or _depth(picture, content) > 8:
        return SIXTEEN_BIT
    if picture.format != JPEG_WITH_MORE and getattr(picture, "n_frames", 1) > 1:
        return ANIMATED
    same = "JPEG" if picture.format == JPEG_WITH_MORE else picture.format
    return FINE if ENDINGS.get(ending) == same else MISNAMED


def _depth(picture: Any, content: bytes) -> int:
    """Bits a colour as the header says them; Pillow halves the depth of a picture in colour without a word."""
    if picture.format == "PNG":
        return content[24]
    if picture.format == "TIFF":
        return int(np.max(picture.tag_v2.get(258, 1)))
    if picture.format == "PPM" and isinstance(picture.tile[0][3], tuple):
        return int(picture.tile[0][3][1]).bit_length()
    return 8


def decoder() -> dict[str, str]:
    """The versions on which decoded and resized pixels depend."""
    import PIL
    from PIL import features

    found = {"pillow": PIL.__version__}
    for name in ("libjpeg_turbo", "webp"):
        version = features.version(name)
        if version:
            found[name] = str(version)
    return found
