from __future__ import annotations

import io
import pickle
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from cdt.data.format.decode import decode
from cdt.data.format.picture import MAX_PIXELS

colour = hnp.arrays(np.uint8, st.tuples(st.just(3), st.integers(1, 9), st.integers(1, 9)))
grey = hnp.arrays(np.uint8, st.tuples(st.just(1), st.integers(1, 9), st.integers(1, 9)))


def image_bytes(image: Image.Image, format_: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format_, **options)
    return buffer.getvalue()


def npy_bytes(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


@given(colour)
def test_lossless_colour_comes_back(pixels: np.ndarray) -> None:
    image = Image.fromarray(pixels.transpose(1, 2, 0))
    for ext, options in (("png", {}), ("webp", {"lossless": True})):
        np.testing.assert_array_equal(decode(image_bytes(image, ext, **options), ext), pixels)


@given(grey)
def test_lossless_grey_comes_back(pixels: np.ndarray) -> None:
    np.testing.assert_array_equal(decode(image_bytes(Image.fromarray(pixels[0]), "png"), "png"), pixels)


@given(
    st.sampled_from([np.uint8, np.float32]).flatmap(
        lambda kind: hnp.arrays(kind, hnp.array_shapes(min_dims=3, max_dims=3))
    )
)
def test_npy_comes_back(array: np.ndarray) -> None:
    decoded = decode(npy_bytes(array), "npy")
    assert decoded.dtype == array.dtype
    np.testing.assert_array_equal(decoded, array)


def test_jpg_has_channels_first() -> None:
    orange = Image.new("RGB", (16, 8), (255, 128, 0))
    decoded = decode(image_bytes(orange, "jpeg", quality=95), "jpg")
    assert decoded.shape == (3, 8, 16)
    np.testing.assert_allclose(decoded.mean(axis=(1, 2)), (255, 128, 0), atol=3)


@pytest.mark.parametrize(
    ("payload", "ext"),
    [
        (image_bytes(Image.new("L", (4, 4)), "png"), "png"),
        (image_bytes(Image.new("RGB", (4, 4)), "png"), "png"),
        (npy_bytes(np.zeros((1, 4, 4), np.float32)), "npy"),
    ],
)
def test_arrays_are_writable_and_contiguous(payload: bytes, ext: str) -> None:
    flags = decode(payload, ext).flags
    assert flags.writeable
    assert flags.c_contiguous


@pytest.mark.parametrize("mode", ["P", "CMYK", "1"])
def test_other_modes_without_loss_are_converted(mode: str) -> None:
    image = Image.new("RGB", (3, 2), "white").convert(mode)
    decoded = decode(image_bytes(image, "jpeg" if mode == "CMYK" else "png"), "jpg" if mode == "CMYK" else "png")
    assert decoded.shape == (1 if mode == "1" else 3, 2, 3)
    assert (decoded == 255).all()


@pytest.mark.parametrize("ext", ["pkl", "pyd", "pth", "gif", "PNG", "json", ""])
def test_extensions_are_an_allow_list(ext: str) -> None:
    with pytest.raises(ValueError, match="is not one of png, jpg, webp, npy"):
        decode(b"", ext)


def test_only_some_formats_are_decoded_from_shards() -> None:
    for name in ("bmp", "tiff", "gif", "ppm"):
        with pytest.raises(ValueError, match="not a usable jpg image: it is no or a damaged PNG, JPEG or WEBP"):
            decode(image_bytes(Image.new("L", (2, 2)), name), "jpg")


class Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_pickles_in_npy_are_refused_unread(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    np.save(buffer, np.array([Bomb(tmp_path / "executed")], dtype=object), allow_pickle=True)
    for payload in (buffer.getvalue(), pickle.dumps(Bomb(tmp_path / "executed"))):
        with pytest.raises(ValueError, match="npy array"):
            decode(payload, "npy")
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("payload", "told"),
    [
        (npy_bytes(np.zeros((1, 2, 2))), "holds float64"),
        (npy_bytes(np.zeros((1, 2, 2), ">f4")), "holds >f4"),
        (npy_bytes(np.zeros((2, 2), np.uint8)), "shape \\(2, 2\\)"),
        (npy_bytes(np.asfortranarray(np.zeros((2, 2, 2), np.uint8))), "Fortran"),
        (npy_bytes(np.zeros((1, 0, 2), np.uint8)), "needs 0 bytes"),
        (npy_bytes(np.zeros((1, 2, 2), np.uint8))[:-1], "needs 4 bytes and has 3"),
        (npy_bytes(np.zeros((1, 2, 2), np.uint8)) + b"x", "needs 4 bytes and has 5"),
        (npy_bytes(np.zeros((1, 2, 2), np.uint8))[:20], "not a usable npy array"),
        (npy_bytes(np.zeros((1, 2, 2), np.uint8)).replace(b"(1, 2, 2)", b"(1,9999,99999)"), "pixels|npy array"),
    ],
)
def test_other_npy_arrays_are_refused(payload: bytes, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        decode(payload, "npy")


def png_that_claims(width: int, height: int) -> bytes:
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    chunks = (header, b"IDAT" + zlib.compress(b""))
    framed = (struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) for chunk in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(framed)


@pytest.mark.parametrize("height", [MAX_PIXELS // 8192 + 1, 2**20])
def test_huge_images_are_refused_by_their_header(height: int) -> None:
    with pytest.raises(ValueError, match="pixels"):
        decode(png_that_claims(8192, height), "png")


VALID = {
    "png": image_bytes(Image.effect_noise((12, 10), 50), "png"),
    "jpg": image_bytes(Image.effect_noise((12, 10), 50), "jpeg"),
    "webp": image_bytes(Image.effect_noise((12, 10), 50).convert("RGB"), "webp"),
    "npy": npy_bytes(np.zeros((2, 3, 4), np.float32)),
}


@given(st.sampled_from(list(VALID)), st.data())
def test_damaged_bytes_give_an_image_or_a_value_error(ext: str, data: st.DataObject) -> None:
    payload = bytearray(VALID[ext])
    for _ in range(data.draw(st.integers(1, 4))):
        payload[data.draw(st.integers(0, len(payload) - 1))] = data.draw(st.integers(0, 255))
    try:
        decoded = decode(bytes(payload[: data.draw(st.integers(0, len(payload)))]), ext)
    except ValueError as error:
        assert len(str(error).splitlines()) == 1  # noqa: PT017
    else:
        assert decoded.ndim == 3
