from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cdt.monitor.pictures import image_grid, save_images, save_picture

LINE = 128


def grey(count: int, side: int = 32) -> torch.Tensor:
    """Image k has the grey value k: [count, 1, side, side]."""
    values = torch.arange(count).float() / 127.5 - 1
    return values[:, None, None, None].expand(count, 1, side, side)


@pytest.mark.parametrize(("count", "columns", "layout"), [(5, None, (2, 3)), (4, None, (2, 2)), (5, 2, (3, 2))])
def test_images_stand_row_by_row_with_lines_between(count: int, columns: int | None, layout: tuple[int, int]) -> None:
    picture = image_grid(grey(count), columns)
    rows, columns = layout
    assert picture.dtype == np.uint8
    assert picture.shape == (33 * rows, 33 * columns, 1)
    for place in range(rows * columns):
        top, left = 33 * (place // columns), 33 * (place % columns)
        tile = picture[top : top + 33, left : left + 33, 0]
        assert (tile[:32, :32] == (place if place < count else LINE)).all()
        assert (tile[32] == LINE).all()
        assert (tile[:, 32] == LINE).all()


def test_small_images_are_enlarged_pixel_by_pixel() -> None:
    image = torch.tensor([[0.0, 1.0], [-1.0, 0.2]])[None, None]
    picture = image_grid(image)[..., 0]
    assert picture.shape == (33, 33)
    expected = np.repeat(np.repeat([[128, 255], [0, 153]], 16, axis=0), 16, axis=1)
    np.testing.assert_array_equal(picture[:32, :32], expected)
    assert image_grid(image, scale=1).shape == (3, 3, 1)


def test_colours_stay_and_latents_show_their_first_channel() -> None:
    colours = torch.tensor([-1.0, 0.0, 1.0])[None, :, None, None].expand(1, 3, 40, 40)
    assert image_grid(colours)[0, 0].tolist() == [0, 128, 255]
    latents = torch.randn(2, 4, 8, 8)
    np.testing.assert_array_equal(image_grid(latents), image_grid(latents[:, :1]))


def test_values_beyond_the_range_are_clipped() -> None:
    images = torch.tensor([3.0, -3.0])[:, None, None, None].expand(2, 1, 32, 32)
    assert image_grid(images)[0, [0, 33], 0].tolist() == [255, 0]


@pytest.mark.parametrize("channels", [1, 3])
def test_pictures_are_saved_as_they_are(tmp_path: Path, channels: int) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (5, 7, channels), dtype=np.uint8)
    save_picture(picture, tmp_path / "new" / "folder" / "grid.png")
    with Image.open(tmp_path / "new" / "folder" / "grid.png") as image:
        np.testing.assert_array_equal(np.asarray(image).reshape(5, 7, channels), picture)


def test_images_are_saved_as_a_grid_or_as_arrays(tmp_path: Path) -> None:
    images = grey(5, side=8)
    save_images(images, tmp_path / "samples.png")
    with Image.open(tmp_path / "samples.png") as image:
        np.testing.assert_array_equal(np.asarray(image), image_grid(images)[..., 0])
    save_images(images, tmp_path / "samples.npz")
    with np.load(tmp_path / "samples.npz") as arrays:
        assert arrays["images"].dtype == np.uint8
        np.testing.assert_array_equal(arrays["images"][:, 0, 0, 0], np.arange(5))
