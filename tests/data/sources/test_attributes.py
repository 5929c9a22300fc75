"""Attributes of images from a CSV file."""

from __future__ import annotations

from pathlib import Path

import pytest
from sources import save

from cdt.data.format.index import Index
from cdt.data.inspect.verify import verify
from cdt.data.sources.attributes import read_attributes
from cdt.data.sources.folder import open_folder
from cdt.data.write.shard import shard
from cdt.errors import InputError

FILES = ["a/1.png", "a/2.png", "b/1.png"]


def write_csv(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_attributes_take_the_order_of_the_files(tmp_path: Path) -> None:
    csv = write_csv(tmp_path / "t.csv", "\ufefffile,male, age\nb/1.png,-1,0.5\n2.png,1,7\n\n./a/1.png,0,1e3\n")
    attributes = read_attributes(csv, FILES)
    assert {name: (str(values.dtype), values.tolist()) for name, values in attributes.items()} == {
        "male": ("int64", [0, 1, -1]),
        "age": ("float64", [1000.0, 7.0, 0.5]),
    }


def test_an_accent_may_be_written_in_either_form(tmp_path: Path) -> None:
    csv = write_csv(tmp_path / "t.csv", "file,x\ncafe\u0301.png,1\n")
    assert read_attributes(csv, ["a/caf\u00e9.png"])["x"].tolist() == [1]


def test_attributes_are_kept_exactly(tmp_path: Path) -> None:
    """Ids that float32 would round, beside fractions that it would round, too."""
    for number, file in enumerate(FILES):
        save(tmp_path / "in" / file, colour=number)
    rows = ["file,id,x", "a/1.png,16777217,0.1", f"a/2.png,{2**53},1e-9", "b/1.png,-3,16777217"]
    csv = write_csv(tmp_path / "t.csv", "\n".join(rows))
    shard(open_folder(tmp_path / "in", csv), tmp_path / "out")
    index = Index.load(tmp_path / "out")
    by_key = {key: [values[row].item() for values in index.attributes.values()] for row, key in enumerate(index.keys())}
    assert by_key == {"a-1": [16777217, 0.1], "a-2": [2**53, 1e-9], "b-1": [-3, 16777217.0]}
    assert verify(tmp_path / "out").problems == []


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "begins with ''; expected the columns file,<attribute>"),
        ("name,male\na/1.png,1\n", "begins with 'name,male'; expected the columns file,<attribute>"),
        ("file\na/1.png\n", "begins with 'file'; expected the columns"),
        ("file,x,x\n", "columns x, x need names that differ"),
        ("file,x,\na/1.png,1,2\n", "columns x,  need names that differ"),
        ("file,x\na/1.png,1\na/2.png\nb/1.png,1,2\n", "rows with other than 2 cells .2.: a/2.png, b/1.png"),
        ("file,x\na/1.png,1\na/2.png,1\n", "images without a row .1.: b/1.png"),
        ("file,x\na/1.png,1\n2.png,1\nb/1.png,1\nc.png,1\n", "rows that name no image or more than one .1.: c.png"),
        (
            "file,x\na/1.png,1\n2.png,1\n1.png,1\n",
            "name no image or more than one .1.: 1.png; images without a row .1.: b",
        ),
        ("file,x\na/1.png,1\n2.png,1\na/2.png,1\nb/1.png,1\n", "images with a second row .1.: a/2.png"),
        (
            "file,x\na/1.png,1\na/2.png,red\nb/1.png,blue\n",
            "column 'x' has 'red' for a/2.png .such cells: 2.; .*code categ",
        ),
        ("file,x\na/1.png,1\na/2.png,\nb/1.png,1\n", "column 'x' has '' for a/2.png .such cells: 1"),
        ("file,x\na/1.png,nan\na/2.png,1\nb/1.png,1\n", "column 'x' has 'nan' for a/1.png"),
        ("file,x\na/1.png,1e309\na/2.png,1\nb/1.png,1\n", "column 'x' has '1e309'"),
        ("file,x\na/1.png,1_000\na/2.png,1\nb/1.png,1\n", "column 'x' has '1_000'"),
        (f"file,x\na/1.png,{2**53 + 1}\na/2.png,1\nb/1.png,1\n", f"column 'x' has '{2**53 + 1}'"),
        ("file,x\x07\na/1.png,1\n", "the name of the column 'x.x07' has control characters"),
    ],
)
def test_wrong_attributes_are_told(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(InputError, match=told):
        read_attributes(write_csv(tmp_path / "t.csv", text), FILES)


def test_attribute_files_that_cannot_be_read_are_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No such file"):
        read_attributes(tmp_path / "t.csv", FILES)
    (tmp_path / "t.csv").write_bytes(b"file,x\n\xff,1\n")
    with pytest.raises(InputError, match="it is not text in UTF-8: byte 7"):
        read_attributes(tmp_path / "t.csv", FILES)


def test_many_missing_rows_are_counted(tmp_path: Path) -> None:
    files = [f"a/{number}.png" for number in range(10)]
    with pytest.raises(InputError, match=r"images without a row \(9\): a/1\.png, a/2\.png, a/3\.png and 6 more"):
        read_attributes(write_csv(tmp_path / "t.csv", "file,x\na/0.png,1\n"), files)


def test_empty_rows_and_commas_at_the_end_cost_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("\n,,,\nfile,age,,\na/1.png,3,,\n,,\n  , \na/2.png,4\n,,,\n")
    assert read_attributes(tmp_path / "a.csv", ["a/1.png", "a/2.png"])["age"].tolist() == [3, 4]


def test_names_may_begin_with_a_space(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("file, age\n cat/1.png, 3\n dog/1.png, 4\ncat/1.png, 5\n")
    assert read_attributes(tmp_path / "a.csv", [" cat/1.png", "cat/1.png", "dog/1.png"])["age"].tolist() == [3, 5, 4]
