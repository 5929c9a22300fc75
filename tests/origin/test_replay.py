"""Replay: drawn once per pretrained model and settings, found again; or shards of the user's own."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from cdt.data.format.index import Index
from cdt.data.inspect.verify import verify
from cdt.data.read.reader import ImageReader
from cdt.data.sources import SOURCES
from cdt.data.write.shard import shard
from cdt.diffusion.config import DiffusionConfig
from cdt.errors import DamagedWarning, InputError
from cdt.networks.build import build_network
from cdt.networks.config import UNetConfig
from cdt.origin import replay
from cdt.origin.config import ReplayConfig
from cdt.origin.pretrained import Pretrained
from cdt.origin.replay import Replay

SHAPE = (1, 8, 8)
UNET = UNetConfig(channels=(8,), layers_per_block=1)


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Replay]:
    """Replay of a tiny network, cached in a place of the test's own."""
    monkeypatch.setenv("CDT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(replay, "FRESH_SAMPLES", 6)
    checkpoint = tmp_path / "checkpoint"
    checkpoint.mkdir()
    torch.manual_seed(0)
    weights = build_network(UNET, SHAPE).state_dict()
    save_file(weights, checkpoint / "ema.safetensors")

    def made(bounded: bool = True, **settings: Any) -> Replay:
        origin = Pretrained(tmp_path, UNET, DiffusionConfig(prediction="v_prediction"), checkpoint)
        tree = {"samples": 10, "sampler": {"steps": 2}} | settings
        return Replay(origin, ReplayConfig.model_validate(tree), SHAPE, bounded)

    return made


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_text("null")])
@pytest.mark.parametrize("file", ["index.json", "index.arrow", "train/000000.tar"])
def test_a_damaged_cache_is_drawn_again(
    make: Callable[..., Replay], damage: Callable[[Path], object], file: str
) -> None:
    make().draw()
    whole = (make().directory / file).read_bytes()
    damage(make().directory / file)
    assert make().missing
    with pytest.warns(DamagedWarning, match=r" cannot be used: .*; replay is drawn again$"):
        make().draw()
    assert (make().directory / file).read_bytes() == whole
    assert not make().missing


def test_what_another_model_drew_is_not_taken_for_it(make: Callable[..., Replay], tmp_path: Path) -> None:
    make().draw()
    own = make().directory
    file = tmp_path / "checkpoint" / "ema.safetensors"
    weights = load_file(file)
    save_file({name: 2 * weight for name, weight in weights.items()}, file)
    assert make().directory != own
    make().draw()
    shutil.rmtree(own)
    make().directory.rename(own)
    save_file(weights, file)
    assert make().missing
    with pytest.warns(DamagedWarning, match="its samples are of another model; replay is drawn again"):
        make().draw()
    assert not make().missing


def test_it_is_drawn_once_and_found_again(make: Callable[..., Replay]) -> None:
    first = make()
    assert first.missing
    assert first.count() == 10
    heard: list[tuple[int, int]] = []
    first.draw(lambda done, total: heard.append((done, total)))
    assert heard == [(16, 16)]
    assert not make().missing
    assert verify(first.directory).ok
    index, fresh = first.index(), first.fresh()
    assert fresh is not None
    assert (index.count, fresh.count, index.dtype) == (10, 6, "uint8")
    assert not set(index.keys()) & set(fresh.keys())
    images = [ImageReader(each, 0).images(np.arange(each.count)) for each in (index, fresh)]
    assert len({image.tobytes() for part in images for image in part}) == 16


def test_its_place_is_a_function_of_all_that_samples_depend_on(make: Callable[..., Replay], tmp_path: Path) -> None:
    same, *others = (
        make(**settings).directory
        for settings in ({}, {"samples": 11}, {"seed": 1}, {"sampler": {"steps": 3}}, {"bounded": False})
    )
    assert same == make(target="noise").directory
    assert same.parent == tmp_path / "cache" / "replay"
    file = tmp_path / "checkpoint" / "ema.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    assert len({same, *others, make().directory}) == 6


def test_latents_stay_as_they_are_drawn(make: Callable[..., Replay]) -> None:
    latents = make(bounded=False)
    latents.draw()
    assert latents.index().dtype == "float32"


def test_steps_that_do_not_suit_the_process_are_refused(make: Callable[..., Replay]) -> None:
    with pytest.raises(InputError, match=r"sampler\.steps: 2000 is more than the 1000 timesteps"):
        make(sampler={"steps": 2000}).check()


def test_shards_of_the_user_s_own(make: Callable[..., Replay], tmp_path: Path) -> None:
    """Original data: nothing is drawn, nothing held out unless there is a split `fresh`."""
    shard(SOURCES["digits"](), tmp_path / "old", only=["2"], split={"train": 0.9, "fresh": 0.1})
    shard(SOURCES["digits"](), tmp_path / "whole", only=["2"])
    theirs = make(shards=str(tmp_path / "old"))
    assert not theirs.missing
    assert theirs.directory == tmp_path / "old"
    assert theirs.count() == Index.load(tmp_path / "old").count
    fresh = theirs.fresh()
    assert fresh is not None
    assert fresh.split == "fresh"
    assert make(shards=str(tmp_path / "whole")).fresh() is None
    with pytest.raises(InputError, match="no such directory"):
        make(shards=str(tmp_path / "nowhere")).count()
