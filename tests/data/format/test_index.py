from __future__ import annotations

import contextlib
import json
import re
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cdt.data.format import rows
from cdt.data.format.index import Index, Row, ShardInfo, write_index
from cdt.data.format.unpacked import unpacked_bytes
from cdt.errors import InputError

ROWS = [
    Row("train", 0, "a", "png", 512, 100, 0),
    Row("train", 1, "b", "npy", 1024, 7, 2),
    Row("train", 0, "c", "png", 2048, 90, 2),
    Row("test", 0, "d", "jpg", 512, 10, 1),
]
SHARDS = {
    "train": [ShardInfo("train/000000.tar", 2, 10240, "f" * 64), ShardInfo("train/000001.tar", 1, 10240, "e" * 64)],
    "test": [ShardInfo("test/000000.tar", 1, 10240, "d" * 64)],
}


def write(root: Path, rows: list[Row] = ROWS, names: tuple[str, ...] = ("x", "y", "z")) -> Path:
    root.mkdir(exist_ok=True)
    write_index(
        root,
        rows,
        SHARDS,
        attributes={"male": np.arange(len(rows)) % 2, "age": np.linspace(0, 1, len(rows))},
        shape=(1, 4, 5),
        dtype="uint8",
        class_names=list(names),
        source={"name": "by hand"},
    )
    return root


def test_a_written_index_loads_split_by_split(tmp_path: Path) -> None:
    train, test = Index.load(write(tmp_path)), Index.load(str(tmp_path), "test")
    assert (len(train), train.count, test.count) == (3, 3, 1)
    assert (train.shape, train.dtype, train.class_names) == ((1, 4, 5), "uint8", ["x", "y", "z"])
    assert train.shards == SHARDS["train"]
    assert train.shard.tolist() == [0, 1, 0]
    assert train.offset.tolist() == [512, 1024, 2048]
    assert train.size.tolist() == [100, 7, 90]
    assert train.classes.tolist() == [0, 2, 2]
    assert train.class_counts.tolist() == [1, 0, 2]
    assert [train.extensions[code] for code in train.ext] == ["png", "npy", "png"]
    assert train.keys() == ["a", "b", "c"]
    assert test.keys() == ["d"]
    assert train.attributes["male"].tolist() == [0, 1, 0]
    np.testing.assert_allclose(train.attributes["age"], [0, 1 / 3, 2 / 3], rtol=1e-6)
    kinds = (train.shard, train.offset, train.size, train.classes, *train.attributes.values())
    assert [str(array.dtype) for array in kinds] == ["int32", "int64", "int64", "int32", "int32", "float64"]


def test_writing_leaves_only_the_two_files_and_the_same_bytes(tmp_path: Path) -> None:
    one, other = write(tmp_path / "one"), write(tmp_path / "other")
    for name in ("index.arrow", "index.json"):
        assert (one / name).read_bytes() == (other / name).read_bytes()
    assert sorted(path.name for path in one.iterdir()) == ["index.arrow", "index.json"]


def test_rows_of_several_batches_and_a_foreign_column_load(tmp_path: Path) -> None:
    table = pa.ipc.open_file(str(write(tmp_path) / "index.arrow")).read_all()
    table = table.append_column("caption", pa.array(["p", "q", "r", "s"]))
    with pa.ipc.new_file(str(tmp_path / "index.arrow"), table.schema) as writer:
        writer.write_table(table, max_chunksize=1)
    assert Index.load(tmp_path).keys() == ["a", "b", "c"]
    assert list(Index.load(tmp_path).attributes) == ["male", "age"]


def edit_json(**changes: object) -> Callable[[Path], None]:
    def apply(root: Path) -> None:
        header = json.loads((root / "index.json").read_text())
        (root / "index.json").write_text(json.dumps(header | changes))

    return apply


def edit_train(**changes: object) -> Callable[[Path], None]:
    def apply(root: Path) -> None:
        header = json.loads((root / "index.json").read_text())
        header["splits"]["train"] |= changes
        (root / "index.json").write_text(json.dumps(header))

    return apply


def edit_column(name: str, values: list, kind: pa.DataType | None = None) -> Callable[[Path], None]:
    def apply(root: Path) -> None:
        table = pa.ipc.open_file(str(root / "index.arrow")).read_all()
        position = table.column_names.index(name)
        column = pa.array(values, kind or table.schema.field(name).type)
        table = table.set_column(position, name, column)
        with pa.ipc.new_file(str(root / "index.arrow"), table.schema) as writer:
            writer.write_table(table)

    return apply


def drop_column(root: Path) -> None:
    table = pa.ipc.open_file(str(root / "index.arrow")).read_all().drop_columns(["offset", "size"])
    with pa.ipc.new_file(str(root / "index.arrow"), table.schema) as writer:
        writer.write_table(table)


def double_column(root: Path) -> None:
    table = pa.ipc.open_file(str(root / "index.arrow")).read_all()
    with pa.ipc.new_file(
        str(root / "index.arrow"), schema := pa.schema([*table.schema, table.schema.field("shard")])
    ) as writer:
        writer.write_table(pa.table([*table.columns, table["shard"]], schema=schema))


def null_word(root: Path) -> None:
    words = pa.DictionaryArray.from_arrays(pa.array([0, 1, 0, 0], pa.int32()), pa.array(["png", None]))
    table = pa.ipc.open_file(str(root / "index.arrow")).read_all()
    table = table.set_column(table.schema.get_field_index("ext"), "ext", words)
    with pa.ipc.new_file(str(root / "index.arrow"), table.schema) as writer:
        writer.write_table(table)


def tar(count: int, name: str = "train/000000.tar") -> dict[str, object]:
    return {"name": name, "count": count, "bytes": 10240, "sha256": ""}


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda root: (root / "index.json").unlink(), "has no index.json: it was not written by `cdt shard`"),
        (lambda root: (root / "index.json").write_text("{"), "not a valid index"),
        (lambda root: (root / "index.json").write_text("[1]"), "has format None"),
        (lambda root: (root / "index.json").write_bytes(b"\xff"), "not a valid index"),
        (edit_json(format=3), "has format 3; this version of cdt reads formats 1 and 2"),
        (edit_json(shape=[1, 4]), "not a valid index: shape"),
        (edit_json(shape=[1, 0, 4]), "shape \\[1, 0, 4\\] has an empty side"),
        (edit_json(dtype="float64"), "not a valid index: dtype"),
        (edit_json(class_names=["x", "y", "x"]), "class_names are not unique"),
        (edit_json(splits={"../up": {"count": 0, "class_counts": [0, 0, 0], "shards": []}}), "split name '../up'"),
        (edit_train(class_counts=[1, 1, 2]), "class_counts are not 3 samples of 3 classes"),
        (edit_train(class_counts=[1, 2]), "class_counts are not 3 samples of 3 classes"),
        (edit_train(shards=[tar(2)]), "shards' counts do not add up to 3"),
        (edit_train(shards=[tar(3, "../x.tar")]), "'../x.tar' lies outside"),
        (edit_train(shards=[tar(1), tar(2)]), "a shard is there twice"),
        (edit_train(shards=[tar(3, "a\0b")]), "has a zero byte"),
        (edit_train(shards=[tar(3, "/x.tar")]), "'/x.tar' lies outside"),
        (edit_train(count=4, class_counts=[1, 0, 3], shards=[tar(4)]), "4 rows, index.json promises 5"),
        (edit_train(class_counts=[1, 1, 1]), "other numbers of samples per class"),
        (edit_train(shards=[tar(1), tar(2, "train/000001.tar")]), "other numbers of samples per shard"),
        (edit_train(shards=[tar(3)]), "shards numbered 0 to 1, but there are 1"),
        (lambda root: (root / "index.arrow").unlink(), "no index.arrow"),
        (lambda root: (root / "index.arrow").write_bytes(b"ARROW1"), "index.arrow cannot be read"),
        (drop_column, "no column offset, size"),
        (edit_column("offset", [1, 2, 3, 4], pa.int32()), "column offset is int32; expected int64"),
        (
            edit_column("attr.male", [1, 2, 3, 4], pa.int16()),
            "column attr.male is int16; expected int32 or int64 or float",
        ),
        (edit_column("size", [1, None, 1, 1]), "column size has empty cells"),
        (double_column, "two columns have one name"),
        (null_word, "column ext has empty cells"),
        (edit_column("class", [0, 3, 2, 1]), "labels from 0 to 3, but there are 3 classes"),
        (edit_column("class", [0, -1, 2, 1]), "labels from -1 to 2"),
        (edit_column("shard", [0, 2, 0, 0]), "shards numbered 0 to 2, but there are 2"),
        (edit_column("split", ["train", "test", "train", "test"]), "2 rows instead of 3"),
        (edit_column("ext", ["png", "pkl", "png", "jpg"]), "images of type pkl; allowed are png, jpg, webp, npy"),
        (edit_column("offset", [-1, 1024, 10200, 512]), "images that lie outside their shards: 2"),
        (edit_column("size", [0, 2**62, 1, 1]), "images that lie outside their shards: 2"),
    ],
)
def test_a_wrong_index_is_one_clear_line(tmp_path: Path, spoil: Callable[[Path], None], told: str) -> None:
    spoil(write(tmp_path))
    with pytest.raises(InputError, match=told) as caught:
        Index.load(tmp_path)
    assert "\n" not in str(caught.value)


def test_missing_directories_and_splits_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=re.escape(f"no such directory: {tmp_path / 'nowhere'}")):
        Index.load(tmp_path / "nowhere")
    with pytest.raises(InputError, match="has no split 'val'; it has train, test"):
        Index.load(write(tmp_path), "val")


def test_sizes_are_checked_against_the_files(tmp_path: Path) -> None:
    index = Index.load(write(tmp_path))
    (tmp_path / "train").mkdir()
    for number in range(2):
        (tmp_path / f"train/00000{number}.tar").write_bytes(bytes(10240))
    index.check_sizes()
    (tmp_path / "train/000000.tar").unlink()
    (tmp_path / "train/000001.tar").write_bytes(b"short")
    (tmp_path / "train/000002.tar").touch()
    told = "000000.tar is missing; train/000001.tar has 5 bytes instead of 10240; train/000002.tar is not in the index"
    with pytest.raises(InputError, match=told):
        index.check_sizes()
    with pytest.raises(InputError, match=told):
        index.check_sizes(spare=0.9)
    (tmp_path / "train/000001.tar").write_bytes(bytes(10240))
    index.check_sizes(spare=0.9)


def test_format_1_is_read(tmp_path: Path) -> None:
    """What earlier versions wrote: no checksums of samples, and the order that there was."""
    root = write(tmp_path)
    table = pa.ipc.open_file(str(root / "index.arrow")).read_all().drop_columns(["crc"])
    with pa.ipc.new_file(str(root / "index.arrow"), table.schema) as writer:
        writer.write_table(table)
    header = json.loads((root / "index.json").read_text())
    for name in ("order", "base", "resize"):
        del header[name]
    (root / "index.json").write_text(json.dumps(header | {"format": 1}))
    index = Index.load(root)
    assert index.order == "shuffled"
    assert index.crc.tolist() == [-1, -1, -1]
    assert index.keys() == ["a", "b", "c"]
    assert index.keys([2, 0]) == ["c", "a"]


def test_an_index_that_would_fill_the_memory_is_refused_before_it_is_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hundreds of megabytes of zeros in some ten thousand bytes; they are counted, and not unpacked."""
    root = write(tmp_path)
    schema = pa.ipc.open_file(str(root / "index.arrow")).schema
    nothing = {name: "" if name in ("split", "key", "ext") else 0 for name in schema.names}
    one = pa.Table.from_pylist([nothing], schema=schema)
    bomb = pa.table({name: one[name].take(pa.array(np.zeros(1 << 20, np.int8))) for name in schema.names})
    with pa.ipc.new_file(
        str(root / "index.arrow"), bomb.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")
    ) as writer:
        for _ in range(6):
            writer.write_table(bomb)
    del bomb
    assert (root / "index.arrow").stat().st_size < 200_000
    assert unpacked_bytes(root / "index.arrow") > 6 * 40 << 20
    monkeypatch.setattr(rows, "_memory", lambda: 1 << 29)
    before = pa.total_allocated_bytes()
    with pytest.raises(
        InputError, match=r"^[^\n]*index.arrow unpacks to [\d,]+ bytes, more than a quarter of the memory"
    ):
        Index.load(root)
    assert pa.total_allocated_bytes() < before + 1_000_000


@pytest.mark.parametrize("compression", ["zstd", "lz4", None])
def test_the_memory_that_an_arrow_file_needs(tmp_path: Path, compression: str | None) -> None:
    rng = np.random.default_rng(0)
    names = pa.array(["train", "test"]).take(pa.array(rng.integers(0, 2, 5000))).dictionary_encode()
    table = pa.table({"split": names, "key": [f"k{n}" for n in range(5000)], "class": rng.integers(0, 9, 5000)})
    options = pa.ipc.IpcWriteOptions(compression=compression)
    with pa.ipc.new_file(str(tmp_path / "x.arrow"), table.schema, options=options) as writer:
        writer.write_table(table, max_chunksize=1500)
    found = unpacked_bytes(tmp_path / "x.arrow")
    assert 0.95 * table.nbytes < found < 1.1 * table.nbytes + 1000


@settings(max_examples=60)
@given(st.integers(0, 2**32), st.integers(1, 30))
def test_damaged_arrow_metadata_are_no_more_than_an_error(seed: int, flips: int) -> None:
    rng = np.random.default_rng(seed)
    with tempfile.TemporaryDirectory() as folder:
        path = write(Path(folder)) / "index.arrow"
        content = bytearray(path.read_bytes())
        for place in rng.integers(0, len(content), flips):
            content[place] = rng.integers(256)
        path.write_bytes(content[: rng.integers(len(content) // 2, len(content) + 1)])
        with contextlib.suppress(ValueError):
            assert unpacked_bytes(path) >= 0
