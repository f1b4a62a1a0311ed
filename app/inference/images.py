"""From PNG and JPEG to the rows that a model takes."""

import base64
import binascii
import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from app.engine_client.catalogue import InputSpec
from app.http.errors import Refusal, expected
from app.inference.inputs import Rows, check_count

MAX_PIXELS = 2**25
"""Of one image, before it is resized; more is refused before it is decoded. 33 million are 100 MB in memory."""


def from_base64(value: object, spec: InputSpec, max_rows: int) -> Rows:
    """Rows from a list of base64 strings, each a PNG or JPEG file.

    Raises:
        Refusal: 422 for anything else, an empty list or a model that takes no images; 413 for more than ``max_rows``.
    """
    if not isinstance(value, list):
        raise expected("images", "a list of base64 strings", value)
    check_count("images", len(value), max_rows)
    return np.stack([from_file(f"images[{i}]", _file(f"images[{i}]", text), spec) for i, text in enumerate(value)])


def from_file(field: str, file: bytes, spec: InputSpec) -> NDArray[np.float32]:
    """One input from the bytes of a PNG or JPEG file.

    The image is turned upright (EXIF), converted to the model's channels, resized with antialiasing to its height and width,
    and scaled from [0, 255] to [low, high]. Transparency is dropped.

    Returns:
        Shape ``spec.shape``.

    Raises:
        Refusal: 422 for what is not a whole PNG or JPEG of at most ``MAX_PIXELS``, or a model that takes no images.
    """
    if spec.kind != "image" or spec.low is None or spec.high is None:
        raise Refusal(422, f"{field}: expected numbers, the model takes vectors of shape {list(spec.shape)}, got an image")
    channels, height, width = spec.shape
    try:
        with Image.open(io.BytesIO(file), formats=("PNG", "JPEG")) as image:
            size = image.size
            if size[0] * size[1] <= MAX_PIXELS:
                pixels = _pixels(image, "L" if channels == 1 else "RGB", (width, height))
    except Image.DecompressionBombError as error:
        raise Refusal(422, f"{field}: expected an image of at most {MAX_PIXELS} pixels, got far more") from error
    except Exception as error:  # Pillow raises a dozen kinds (SyntaxError among them) for what is broken in a file
        raise Refusal(422, f"{field}: expected a whole PNG or JPEG image, got {len(file)} bytes that cannot be read") from error
    if size[0] * size[1] > MAX_PIXELS:
        raise Refusal(422, f"{field}: expected an image of at most {MAX_PIXELS} pixels, got {size[0]} x {size[1]}")
    scaled = spec.low + pixels.reshape(height, width, channels).transpose(2, 0, 1) * ((spec.high - spec.low) / 255)
    if spec.dtype == "uint8":
        scaled = np.rint(scaled)
    return np.clip(scaled, spec.low, spec.high).astype(np.float32)


def to_file(row: NDArray[Any], spec: InputSpec) -> bytes:
    """The PNG file of one input of a model that takes images: what ``from_file`` undoes, but for rounding to 256 levels.

    Args:
        row: shape ``spec.shape``, within ``spec``'s range.
    """
    assert spec.low is not None
    assert spec.high is not None
    pixels = np.rint((row - spec.low) * (255 / (spec.high - spec.low))).astype(np.uint8).transpose(1, 2, 0)
    file = io.BytesIO()
    Image.fromarray(pixels[:, :, 0] if len(row) == 1 else pixels).save(file, "PNG")
    return file.getvalue()


def _pixels(image: Image.Image, mode: str, size: tuple[int, int]) -> NDArray[np.float64]:
    if image.mode.startswith("I"):  # 16 bits of grey, which convert() would cut off at 255 instead of scaling
        image = Image.fromarray((np.asarray(image, dtype=np.float64) / 257).round().astype(np.uint8))
    upright = ImageOps.exif_transpose(image).convert(mode)
    if upright.size != size:
        upright = upright.resize(size, Image.Resampling.BILINEAR)
    return np.asarray(upright, dtype=np.float64)


def _file(field: str, text: object) -> bytes:
    if not isinstance(text, str):
        raise expected(field, "a base64 string", text)
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise expected(field, "a base64 string", text) from error
