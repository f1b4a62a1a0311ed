"""Images: PNG and JPEG files to rows and back, by one rule for training and serving."""

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from jfb.config import InputSpec

MAX_PIXELS = 2**25
"""Of one file that ``decode`` takes, before it is resized: 33 million, which are 100 MB in memory."""


class ImageError(ValueError):
    """A file that is not an image which the model takes; the message says what it must be, without naming a field."""


def decode(file: bytes, spec: InputSpec) -> NDArray[np.float32]:
    """Decode a PNG or JPEG file into one raw input: ``to_pixels``, scaled from [0, 255] to [low, high].

    Returns:
        Shape ``spec.shape``; whole numbers where the model takes uint8.

    Raises:
        ImageError: for a model that takes vectors, and for a file that is not a complete PNG or JPEG of at most ``MAX_PIXELS``,
            which is rejected before it is decoded.
    """
    if spec.kind != "image" or spec.low is None or spec.high is None:
        raise ImageError(f"must be numbers of shape {list(spec.shape)} (got an image)")
    try:
        with Image.open(io.BytesIO(file), formats=("PNG", "JPEG")) as image:
            size = image.size
            if size[0] * size[1] <= MAX_PIXELS:
                pixels = to_pixels(upright(image), spec.shape)
    except Image.DecompressionBombError as error:
        raise ImageError(f"must have at most {MAX_PIXELS} pixels (got far more)") from error
    except Exception as error:  # Pillow raises a dozen types (SyntaxError among them) for a broken file
        raise ImageError(f"must be a complete PNG or JPEG image (got {len(file)} bytes that cannot be decoded)") from error
    if size[0] * size[1] > MAX_PIXELS:
        raise ImageError(f"must have at most {MAX_PIXELS} pixels (got {size[0]} x {size[1]})")
    scaled = spec.low + pixels * ((spec.high - spec.low) / 255)
    if spec.dtype == "uint8":
        scaled = np.rint(scaled)
    row: NDArray[np.float32] = np.clip(scaled, spec.low, spec.high).astype(np.float32)
    return row


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
        return Image.fromarray((np.asarray(image, dtype=np.float64) / 257).round().astype(np.uint8))
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
