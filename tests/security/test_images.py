"""Attacks with images: many pixels in few bytes, many scans, many pieces, broken files, and clients that leave."""

import base64
import io
import struct
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import httpx
import numpy as np
import pytest
from PIL import Image

from tests.app.running import RunningServer, rejected
from tests.security.conftest import resident_bytes

MB = 1024 * 1024
PNG = {"content-type": "image/png"}
SIDE = 5792  # a square of that side has just less than the 2**25 pixels that one image may have


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int, height: int, *, bits: int = 16, colours: int = 0, before: bytes = b"", data: bytes | None = None) -> bytes:
    """A black PNG file, compressed well; ``colours`` is 0 for grey, 2 for RGB."""
    bytes_per_row = 1 + width * bits // 8 * (3 if colours == 2 else 1)
    header = struct.pack(">IIBBBBB", width, height, bits, colours, 0, 0, 0)
    content = zlib.compress(bytes(bytes_per_row * height), 1) if data is None else data
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + before + chunk(b"IDAT", content) + chunk(b"IEND", b"")


@cache
def bomb(colours: int) -> bytes:
    return png(SIDE, SIDE, colours=colours)


def jpeg(side: int = 64, *, progressive: bool = False) -> bytes:
    file = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (side, side), dtype=np.uint8)
    Image.fromarray(pixels).save(file, "JPEG", progressive=progressive)
    return file.getvalue()


def with_scans(scans: int, side: int) -> bytes:
    """A progressive JPEG whose last scan is repeated."""
    file = jpeg(8, progressive=True)
    frame = file.index(b"\xff\xc2") + 5
    file = file[:frame] + struct.pack(">HH", side, side) + file[frame + 4 :]
    last = file.rindex(b"\xff\xda")
    return file[:last] + file[last:-2] * scans + file[-2:]


def test_many_large_images_at_once_are_decoded_one_after_the_other(server: RunningServer) -> None:
    before = resident_bytes(server.worker_pid())
    peak = 0

    def send(colours: int) -> int:
        nonlocal peak
        status = server.client.post("/predict", content=bomb(colours), headers=PNG).status_code
        peak = max(peak, resident_bytes(server.worker_pid()))
        return status

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(send, [0, 0, 0, 2])) == [200] * 4
    assert peak - before < 600 * MB


def test_the_pixels_of_a_request_are_bounded_together(server: RunningServer) -> None:
    image = base64.b64encode(bomb(0)).decode()
    rejected(server.predict({"images": [image] * 5}), 413, "images: must have at most 134217728 pixels together (got 167")


@pytest.mark.parametrize("sides", [(2**16, 2**16), (2**31 - 1, 2**31 - 1), (2**25 + 1, 1), (1, 2**31)])
def test_an_image_of_too_many_pixels_is_refused_by_its_header(server: RunningServer, sides: tuple[int, int]) -> None:
    file = png(*sides, data=b"")
    answer = server.client.post("/predict", content=file, headers=PNG)
    rejected(answer, 422, f"body: must have at most 33554432 pixels (got {sides[0]} x {sides[1]})")


def test_the_scans_of_a_jpeg_are_bounded(server: RunningServer) -> None:
    headers = {"content-type": "image/jpeg"}
    rejected(
        server.client.post("/predict", content=with_scans(1500, 4096), headers=headers), 422, "body: must have at most 100 scans"
    )
    assert server.client.post("/predict", content=jpeg(progressive=True), headers=headers).status_code == 200


@pytest.mark.parametrize(
    "make",
    [
        lambda: png(8, 8, before=chunk(b"tEXt", b"a\0b") * 500_000),
        lambda: png(8, 8, before=chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(20 * MB))) * 4),
        lambda: png(8, 8, before=chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(64 * MB)))),
        lambda: png(8, 8, data=zlib.compress(bytes(64 * MB))),
        lambda: png(4096, 4096, data=zlib.compress(bytes(100))),
        lambda: png(0, 8, data=b""),
        lambda: b"\xff\xd8" + b"\xff\xfe\x00\x02" * 2_000_000,
        lambda: b"\xff\xd8" + b"\xff" * 8_000_000,
        lambda: b"\xff\xd8\xff\xe0\x00\x00" * 1000,
        lambda: jpeg()[:-30],
        lambda: jpeg().replace(b"\xff\xc0\x00\x0b\x08\x00\x40\x00\x40", b"\xff\xc0\x00\x0b\x08\x00\x40\x00\x40" * 2),
    ],
    ids=["chunks", "text", "profile", "more data", "less data", "empty", "segments", "fill", "zero", "cut", "two frames"],
)
def test_a_file_that_is_made_to_take_long_is_answered(server: RunningServer, make: Callable[[], bytes]) -> None:
    file = make()
    kind = "image/png" if file.startswith(b"\x89") else "image/jpeg"
    answer = server.client.post("/predict", content=file, headers={"content-type": kind})
    assert answer.status_code in (200, 422), answer.text
    assert answer.status_code == 200 or answer.json()["error"].startswith("body: must be ")


def test_clients_that_have_gone_free_their_places(server: RunningServer) -> None:
    """Otherwise the last image would wait for a minute of decoding."""
    images = {"images": [base64.b64encode(bomb(0)).decode()] * 4}
    for _ in range(8):
        with pytest.raises(httpx.TimeoutException):
            httpx.post(f"{server.url}/predict", json=images, timeout=httpx.Timeout(10, read=0.01))
    answer = httpx.post(f"{server.url}/predict", content=bomb(0), headers=PNG, timeout=15)
    assert answer.status_code == 200


def test_an_image_of_16_bits_is_scaled_to_8(server: RunningServer) -> None:
    values = (np.arange(64).reshape(8, 8) * 1040).astype(">u2")
    wide = png(8, 8, data=zlib.compress(b"".join(b"\0" + row.tobytes() for row in values)))
    narrow = io.BytesIO()
    Image.fromarray((values / 257).round().astype(np.uint8)).save(narrow, "PNG")
    answers = [server.client.post("/predict", content=file, headers=PNG).json() for file in (wide, narrow.getvalue())]
    first, second = (answer["predictions"][0]["probabilities"] for answer in answers)
    assert first == pytest.approx(second, abs=1e-6)
