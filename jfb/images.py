"""Images: PNG and JPEG files to rows and back, by one rule for training and serving."""

import io
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from jfb.config import InputSpec

MAX_PIXELS = 2**25
"""Of one file that ``decode`` takes, before it is resized: 33 million, of which decoding holds 400 MB."""
MAX_SCANS = 100
"""Of a JPEG: each of a progressive one may take as long as the first, and costs a few bytes only."""
MAX_SEGMENTS = 1000
"""Of a JPEG before its size is known."""
MAX_READS = 100_000
"""Of a file while it is decoded; each of the chunks of a PNG takes three."""
_GREY_OF_16_BITS = (np.arange(2**16) / 257).round().astype(np.uint8)


class ImageError(ValueError):
    """A file that is not an image which the model takes; the message says what it must be, without naming a field."""


def count_pixels(file: bytes, spec: InputSpec) -> int:
    """The width times the height that a PNG or JPEG file states, without decoding it.

    Raises:
        ImageError: as ``decode``, for what is known without decoding.
    """
    if spec.kind != "image" or spec.low is None or spec.high is None:
        raise ImageError(f"must be numbers of shape {list(spec.shape)} (got an image)")
    sides = _png_sides(file) or _jpeg_sides(file)
    if sides is None:
        raise _unreadable(file)
    if sides[0] * sides[1] > MAX_PIXELS:
        raise ImageError(f"must have at most {MAX_PIXELS} pixels (got {sides[0]} x {sides[1]})")
    if (scans := file.count(b"\xff\xda")) > MAX_SCANS and file.startswith(b"\xff\xd8"):
        raise ImageError(f"must have at most {MAX_SCANS} scans (got {scans})")
    return sides[0] * sides[1]


def decode(file: bytes, spec: InputSpec, check: Callable[[], None] = lambda: None) -> NDArray[np.float32]:
    """Decode a PNG or JPEG file into one raw input: ``to_pixels``, scaled from [0, 255] to [low, high].

    Args:
        check: called before each piece of the file is decoded; may raise an ``ImageError``.

    Returns:
        Shape ``spec.shape``; whole numbers where the model takes uint8.

    Raises:
        ImageError: for a model that takes vectors, and for a file that is not a complete PNG or JPEG of at most ``MAX_PIXELS``
            and ``MAX_SCANS``, which is rejected before it is decoded.
    """
    counted = count_pixels(file, spec)
    assert spec.low is not None
    assert spec.high is not None
    try:
        with Image.open(_CheckedFile(file, check), formats=("PNG", "JPEG")) as image:
            if image.width * image.height != counted:
                raise _unreadable(file)
            pixels = to_pixels(upright(image), spec.shape)
    except ImageError:
        raise
    except Exception as error:  # Pillow raises a dozen types (SyntaxError among them) for a broken file
        raise _unreadable(file) from error
    scaled = spec.low + pixels * ((spec.high - spec.low) / 255)
    if spec.dtype == "uint8":
        scaled = np.rint(scaled)
    row: NDArray[np.float32] = np.clip(scaled, spec.low, spec.high).astype(np.float32)
    return row


class _CheckedFile(io.BytesIO):
    def __init__(self, file: bytes, check: Callable[[], None]) -> None:
        super().__init__(file)
        self._check = check
        self._reads = 0

    def read(self, size: int | None = -1, /) -> bytes:
        self._reads += 1
        if self._reads > MAX_READS:
            raise ImageError(f"must be in fewer chunks (got an image that takes more than {MAX_READS} reads)")
        self._check()
        return super().read(size)


def _png_sides(file: bytes) -> tuple[int, int] | None:
    if file.startswith(b"\x89PNG\r\n\x1a\n") and file[12:16] == b"IHDR" and len(file) >= 24:
        return int.from_bytes(file[16:20]), int.from_bytes(file[20:24])
    return None


def _jpeg_sides(file: bytes) -> tuple[int, int] | None:
    """Width and height in the header of the first frame (ITU T.81, section B.2)."""
    if not file.startswith(b"\xff\xd8\xff"):
        return None
    start = 2
    for _ in range(MAX_SEGMENTS):
        if file[start : start + 2] == b"\xff\xff":  # a fill byte
            start += 1
            continue
        if start + 9 > len(file) or file[start] != 0xFF:
            break
        if 0xC0 <= file[start + 1] <= 0xCF and file[start + 1] not in (0xC4, 0xC8, 0xCC):
            return int.from_bytes(file[start + 7 : start + 9]), int.from_bytes(file[start + 5 : start + 7])
        start += 2 + int.from_bytes(file[start + 2 : start + 4])
    return None


def _unreadable(file: bytes) -> ImageError:
    return ImageError(f"must be a complete PNG or JPEG image (got {len(file)} bytes that cannot be decoded)")


def encode(row: NDArray[Any], spec: InputSpec) -> bytes:
    """Encode one raw input of an image model as a PNG file: the inverse of ``decode``, up to rounding to 256 levels.

    Args:
        row: shape ``spec.shape``, values in [low, high].
    """
    assert spec.low is not None
    assert spec.high is not None
    pixels = np.rint((row - spec.low) * (255 / (spec.high - spec.low))).astype(np.uint8).transpose(1, 2, 0)
    file = io.BytesIO()
    Image.fromarray(pixels[:, :, 0] if len(row) == 1 else pixels).save(file, "PNG")
    return file.getvalue()


def upright(image: Image.Image) -> Image.Image:
    """Turn an opened image upright by its EXIF orientation, and reduce 16 bits of grey to 8."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # convert() would clip 16 bits at 255 instead of scaling them
        return Image.fromarray(_GREY_OF_16_BITS[np.clip(np.asarray(image), 0, 2**16 - 1)])
    return image


def to_pixels(image: Image.Image, shape: Sequence[int]) -> NDArray[np.uint8]:
    """Convert an ``upright`` image to channels and sides, dropping transparency and resizing with antialiasing.

    Args:
        shape: ``(1 or 3, height, width)``.

    Returns:
        uint8 of that shape.
    """
    channels, height, width = shape
    converted = image.convert("L" if channels == 1 else "RGB")
    if converted.size != (width, height):
        converted = converted.resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(converted).reshape(height, width, channels).transpose(2, 0, 1)
