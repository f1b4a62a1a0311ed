import io
import struct
import zlib

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from torch import from_numpy
from torch.nn.functional import interpolate

from jfb.config import InputSpec
from jfb.images import ImageError, decode, encode

RNG = np.random.default_rng(3)


def spec(channels: int = 1, side: int = 8, low: float = 0, high: float = 255) -> InputSpec:
    return InputSpec(shape=(channels, side, side), kind="image", low=low, high=high)


def png(image: Image.Image, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG", **options)
    return file.getvalue()


def noise(*shape: int) -> NDArray[np.uint8]:
    return RNG.integers(0, 256, size=shape).astype(np.uint8)


def test_pixels_keep_their_places_and_are_scaled_into_the_range() -> None:
    pixels = noise(8, 8)
    row = decode(png(Image.fromarray(pixels)), spec(low=-1, high=3))
    assert row.dtype == np.float32
    np.testing.assert_allclose(row[0], pixels / 255 * 4 - 1, atol=1e-6)
    assert row.min() >= -1
    assert row.max() <= 3


def test_colours_become_channels_in_front() -> None:
    pixels = noise(8, 8, 3)
    np.testing.assert_array_equal(decode(png(Image.fromarray(pixels)), spec(3)), pixels.transpose(2, 0, 1))


def test_colours_become_grey_by_their_luma_and_grey_becomes_three_equal_channels() -> None:
    pixels = noise(8, 8, 3)
    grey = decode(png(Image.fromarray(pixels)), spec())[0]
    np.testing.assert_allclose(grey, pixels @ [0.299, 0.587, 0.114], atol=1)
    three = decode(png(Image.fromarray(pixels[..., 0])), spec(3))
    np.testing.assert_array_equal(three, np.stack([pixels[..., 0]] * 3))


def test_palettes_transparency_and_single_bits_are_converted() -> None:
    pixels = np.repeat(RNG.integers(0, 2, size=(8, 8, 1)).astype(np.uint8) * 255, 3, axis=2)
    image = Image.fromarray(pixels)
    for mode in ("P", "RGBA", "LA", "1"):
        np.testing.assert_array_equal(decode(png(image.convert(mode)), spec(3)), pixels.transpose(2, 0, 1))


def test_sixteen_bits_of_grey_are_scaled_and_not_cut_off() -> None:
    deep = np.arange(64, dtype=np.uint16).reshape(8, 8) * 1040
    np.testing.assert_allclose(decode(png(Image.fromarray(deep)), spec())[0], deep / 257, atol=0.51)


@pytest.mark.parametrize(("width", "height", "side"), [(64, 48, 8), (28, 28, 8), (5, 3, 8)])
def test_resizing_is_antialiased_as_pytorch_does_it(width: int, height: int, side: int) -> None:
    pixels = noise(height, width)
    row = decode(png(Image.fromarray(pixels)), spec(side=side))
    reference = interpolate(
        from_numpy(pixels)[None, None].double(), size=(side, side), mode="bilinear", antialias=True, align_corners=False
    )
    np.testing.assert_allclose(row, reference[0], atol=1.5)


def test_a_fine_pattern_becomes_its_mean_and_not_a_pick_of_its_pixels() -> None:
    pixels = np.zeros((64, 64), np.uint8)
    pixels[:, ::2] = 255
    row = decode(png(Image.fromarray(pixels)), spec())
    np.testing.assert_allclose(row[0, :, 1:-1], 127.5, atol=1.5)


def test_a_photo_is_turned_upright() -> None:
    pixels = np.zeros((8, 8), np.uint8)
    pixels[:4] = 255
    lying = Image.fromarray(np.rot90(pixels))
    exif = Image.Exif()
    exif[0x0112] = 6  # "rotate by 90 degrees clockwise to see it"
    np.testing.assert_array_equal(decode(png(lying, exif=exif), spec())[0], pixels)


def test_a_model_of_bytes_gets_whole_numbers() -> None:
    bytes_of_16 = InputSpec(shape=(1, 8, 8), kind="image", dtype="uint8", low=0, high=16)
    row = decode(png(Image.fromarray(noise(8, 8))), bytes_of_16)
    np.testing.assert_array_equal(row, np.rint(row))


@pytest.mark.parametrize("channels", [1, 3])
def test_encoding_undoes_decoding(channels: int) -> None:
    pixels = noise(channels, 8, 8)
    wanted = spec(channels, low=-1, high=3)
    np.testing.assert_allclose(decode(encode(pixels / 255 * 4 - 1, wanted), wanted), pixels / 255 * 4 - 1, atol=1e-6)


def test_the_orientation_of_sixteen_bits_of_grey_is_respected() -> None:
    deep = np.zeros((8, 8), np.uint16)
    deep[:4] = 65535
    exif = Image.Exif()
    exif[0x0112] = 6
    row = decode(png(Image.fromarray(np.rot90(deep).copy()), exif=exif), spec())
    np.testing.assert_array_equal(row[0], deep / 257)


def jpeg(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG")
    return file.getvalue()


def test_what_is_no_complete_png_or_jpeg_is_rejected() -> None:
    image = Image.fromarray(noise(8, 8))
    bitmap = io.BytesIO()
    image.save(bitmap, "BMP")
    for file in (b"", b"text", bitmap.getvalue(), png(image)[:60], jpeg(image)[:300]):
        with pytest.raises(ImageError, match=rf"^must be a complete PNG or JPEG image \(got {len(file)} bytes"):
            decode(file, spec())


def test_an_image_of_too_many_pixels_is_rejected_before_it_is_decoded() -> None:
    for side, got in ((8000, "8000 x 8000"), (20000, "20000 x 20000")):
        head = png(Image.new("1", (1, 1)))
        header = struct.pack(">II", side, side) + head[24:29]
        large = head[:16] + header + struct.pack(">I", zlib.crc32(b"IHDR" + header)) + head[33:]
        with pytest.raises(ImageError, match=rf"^must have at most 33554432 pixels \(got {got}\)"):
            decode(large, spec())


def test_a_model_of_vectors_takes_no_image() -> None:
    with pytest.raises(ImageError, match=r"^must be numbers of shape \[3\] \(got an image\)"):
        decode(png(Image.new("L", (8, 8))), InputSpec(shape=(3,), kind="vector"))
