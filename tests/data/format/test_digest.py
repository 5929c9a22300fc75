"""The digest of an index: equal for the same samples wherever they lie, another for any other."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny

from cdt.data.format.digest import digest_of
from cdt.data.format.index import Index


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_shards(tmp_path_factory.mktemp("data") / "shards")


def test_it_does_not_depend_on_the_place_or_on_names(root: Path, tmp_path: Path) -> None:
    index = Index.load(root)
    moved = Index.load(Path(shutil.copytree(root, tmp_path / "moved")))
    named = replace(index, base="https://example.org", shards=[replace(shard, name="x") for shard in index.shards])
    other_split = replace(index, extensions=["jpg", *index.extensions], ext=index.ext + np.int32(1))
    assert digest_of(index) == digest_of(moved) == digest_of(named) == digest_of(other_split)
    assert len(digest_of(index)) == 64


def test_other_samples_of_the_same_counts_have_another(root: Path, tmp_path: Path) -> None:
    index, others = Index.load(root), Index.load(tiny.write_shards(tmp_path / "others", seed=1))
    assert others.class_counts.tolist() == index.class_counts.tolist()
    swapped = index.offset.copy()
    swapped[[0, 1]] = swapped[[1, 0]]
    found = [
        index,
        others,
        replace(index, offset=swapped),
        replace(index, class_names=index.class_names[::-1]),
        replace(index, attributes={"age": np.zeros(index.count, np.float32)}),
        replace(index, order="shuffled"),
        replace(index, resize=True),
        replace(index, shards=[replace(shard, sha256="0" * 64) for shard in index.shards]),
    ]
    assert len({digest_of(each) for each in found}) == len(found)
