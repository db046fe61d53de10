"""Tags from every format in which people keep them, and what is said of broken ones."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from wsss_rt.classes import VOC_CLASSES
from wsss_rt.errors import UsageError, WsssError
from wsss_rt.tags import load_tags


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def test_csv_with_tags(tmp_path: Path) -> None:
    table = load_tags(write(tmp_path / "t.csv", "image,tags\na/one.jpg,dog; cat\ntwo.jpg,\nthree.jpg,dog\n"))
    assert table.classes == ("cat", "dog")
    assert table.lookup("a/one.jpg") == ("dog", "cat")
    assert table.lookup("two.jpg") == ()
    assert table.lookup("four.jpg") is None
    assert len(table) == 3 and table.keys() == ("a/one.jpg", "two.jpg", "three.jpg")


@pytest.mark.parametrize(
    "text",
    [
        "\ufeffimage,tags\r\none.jpg,dog;cat\r\n",
        "one.jpg,dog;cat\n",
        "tags,image\ndog;cat,one.jpg\n",
        "image,tag\none.jpg,dog\none.jpg,cat\none.jpg,dog\n",
        'image,tags\n"one.jpg","dog;cat"\n\n',
    ],
    ids=["bom-crlf", "no-header", "other-order", "row-per-tag", "quoted"],
)
def test_csv_dialects_mean_the_same(tmp_path: Path, text: str) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(text.encode())
    assert load_tags(path).lookup("one.jpg") == ("dog", "cat")


def test_tab_separated(tmp_path: Path) -> None:
    assert load_tags(write(tmp_path / "t.tsv", "image\ttags\n1,5.jpg\tdog\n")).lookup("1,5.jpg") == ("dog",)


def test_one_hot_keeps_the_header_order_and_skips_columns_of_words(tmp_path: Path) -> None:
    text = "id,split,zebra,ant\n2007_000063,train,1,0\n2007_000175,val,1,1\n2007_000200,val,0,0\n"
    table = load_tags(write(tmp_path / "labels.csv", text))
    assert table.classes == ("zebra", "ant")
    assert table.lookup("JPEGImages/2007_000175.jpg") == ("zebra", "ant")
    assert table.lookup("2007_000200.jpg") == ()


def test_json_mapping_and_list(tmp_path: Path) -> None:
    mapping = write(tmp_path / "a.json", json.dumps({"one.jpg": ["dog"], "two.jpg": "cat;dog"}))
    entries = [{"image": "one.jpg", "tags": ["dog"]}, {"image": "two.jpg", "tags": ["cat", "dog"]}]
    listed = write(tmp_path / "b.json", json.dumps(entries))
    assert (
        load_tags(mapping).entries
        == load_tags(listed).entries
        == {"one.jpg": ("dog",), "two.jpg": ("cat", "dog")}
    )


def test_voc_xml_names_each_class_once(tmp_path: Path) -> None:
    body = "".join(f"<object><name>{name}</name></object>" for name in ("person", "dog", "person"))
    write(tmp_path / "xml" / "2007_000032.xml", f"<annotation>{body}</annotation>")
    write(tmp_path / "xml" / "2007_000033.xml", "<annotation></annotation>")
    table = load_tags(tmp_path / "xml", classes=VOC_CLASSES)
    assert table.classes == VOC_CLASSES
    assert table.lookup("2007_000032.jpg") == ("person", "dog")
    assert table.lookup("2007_000033.jpg") == ()


def test_parent_folder_is_the_tag() -> None:
    table = load_tags("folders", classes=("cat", "dog"))
    assert table.lookup("animals/dog/1.jpg") == ("dog",)
    assert table.lookup("1.jpg") is None
    with pytest.raises(WsssError, match="'dgo', which is not a class. did you mean 'dog'"):
        table.lookup("dgo/1.jpg")


def test_matching_prefers_path_then_name_then_stem(tmp_path: Path) -> None:
    text = "image,tags\nx/a.jpg,path\na.png,name\nb,bare\nb.gif,other\nc.jpg,stem\n"
    table = load_tags(write(tmp_path / "t.csv", text))
    assert table.lookup("x/a.jpg") == ("path",)
    assert table.lookup("y/a.png") == ("name",)
    assert table.lookup("y/b.jpg") == ("bare",)
    assert table.lookup("y/b.gif") == ("other",)
    assert table.lookup("c.webp") == ("stem",)
    assert table.lookup("./x//a.jpg") == ("path",)


def test_an_ambiguous_match_is_refused_and_names_the_candidates(tmp_path: Path) -> None:
    table = load_tags(write(tmp_path / "t.csv", "image,tags\nx/a.jpg,dog\ny/a.jpg,cat\n"))
    assert table.lookup("y/a.jpg") == ("cat",)
    with pytest.raises(WsssError, match=r"z/a\.jpg are ambiguous .*x/a\.jpg, y/a\.jpg") as caught:
        table.lookup("z/a.jpg")
    assert caught.value.code == "ambiguous_tags"


def test_numbers_with_a_dot_are_not_endings(tmp_path: Path) -> None:
    table = load_tags(write(tmp_path / "t.csv", "image,tags\nframe_0.5,dog\nframe_0.7,cat\n"))
    assert table.lookup("frame_0.5.jpg") == ("dog",)
    assert table.lookup("frame_0.7.jpg") == ("cat",)


def test_file_names_that_are_not_utf8(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(b"image,tags\ncaf\xe9.jpg,dog\n")
    assert load_tags(tmp_path / "t.csv").lookup(os.fsdecode(b"caf\xe9.jpg")) == ("dog",)


def test_unknown_classes_are_counted_named_and_corrected(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", "image,tags\na.jpg,dgo\nb.jpg,dgo;cat\nc.jpg,unicorn\n")
    with pytest.raises(UsageError) as caught:
        load_tags(path, classes=("cat", "dog"))
    text = str(caught.value)
    assert "2 unknown classes" in text and "'dgo' (2 images)" in text and "'unicorn' (1 images)" in text
    assert "did you mean 'dog'" in text


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("t.csv", b"", "empty"),
        ("t.csv", b"image,tags\n", "lists no image"),
        ("t.csv", b"foo,bar\n1,2\n", "its first line"),
        ("t.csv", b"image,tags\na.jpg,dog,cat\n", "row 2 has too many columns"),
        ("t.csv", b"image,tags\n,dog\n", "row 2 names no image"),
        ("t.csv", b"id,dog,cat\na,1,0\na,1,1\n", "second time"),
        ("t.csv", b"id,dog,cat\na,1\n", "row 2 has 2 columns, the header has 3"),
        ("t.csv", b"id,dog\na,yes\n", "no column holds only 0 and 1"),
        ("t.csv", b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR", "cannot read tags"),
        ("t.json", b'{"a.jpg": ["dog"', "not JSON"),
        ("t.json", b'{"a.jpg": [1]}', "not a list of names"),
        ("t.json", b'[{"image": "a.jpg"}]', "entry 0"),
        ("t.json", b"[]", "lists no image"),
    ],
)
def test_broken_files_are_refused_with_the_place(tmp_path: Path, name: str, content: bytes, why: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(WsssError, match="t\\.") as caught:
        load_tags(tmp_path / name)
    assert why in str(caught.value)
    assert caught.value.code == "bad_tags"


def test_broken_xml_and_entities_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "a" / "x.xml", "<annotation><object>")
    with pytest.raises(WsssError, match=r"x\.xml.*not XML"):
        load_tags(tmp_path / "a")
    write(
        tmp_path / "b" / "x.xml",
        '<!DOCTYPE a [<!ENTITY b "dog">]><annotation><object><name>&b;</name></object></annotation>',
    )
    with pytest.raises(WsssError, match="DOCTYPE"):
        load_tags(tmp_path / "b")
    (tmp_path / "c").mkdir()
    with pytest.raises(WsssError, match=r"no \.xml file"):
        load_tags(tmp_path / "c")


def test_a_source_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no tags at .*nothing.csv"):
        load_tags(tmp_path / "nothing.csv")
