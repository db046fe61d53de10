"""Finding images: all of them, once, in order, under names that cannot collide."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.nasty import NOT_UTF8, NastyFolder
from wsss_rt.errors import UsageError
from wsss_rt.io.sources import SourceList, find_images


def touch(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def relatives(found: SourceList) -> list[str]:
    return [source.relative for source in found]


def masks(found: SourceList) -> dict[str, str]:
    return {source.relative: source.mask for source in found}


def test_nasty_folder_is_listed_once_and_whole(nasty: NastyFolder) -> None:
    found = find_images([str(nasty.root)])
    assert relatives(found) == nasty.listed()
    for source in found:
        assert os.path.lexists(source.path)
        assert source.path == nasty.root / source.relative
    made = [source.mask for source in found]
    assert len(set(made)) == len(made)
    assert all(len(os.fsencode(os.path.basename(mask))) <= 255 for mask in made)


def test_circles_of_links_end(work: Path) -> None:
    touch(work, "images/a/1.jpg", "images/b/2.jpg")
    for folder in ("images", "images/a", "images/b"):
        for number in range(3):
            (work / folder / f"up{number}").symlink_to("..")
            (work / folder / f"top{number}").symlink_to(work / "images")
    expected = ["a/1.jpg", "b/2.jpg"]
    assert relatives(find_images(["images"])) == expected
    assert relatives(find_images(["images/**/*.jpg"])) == expected
    assert relatives(find_images(["images/**"])) == expected


def test_a_linked_folder_is_entered_and_a_real_name_wins(work: Path) -> None:
    touch(work, "elsewhere/3.jpg", "images/real/1.jpg")
    (work / "images" / "a_link").symlink_to("real")
    (work / "images" / "outside").symlink_to(work / "elsewhere")
    assert relatives(find_images(["images"])) == ["outside/3.jpg", "real/1.jpg"]


def test_two_names_of_one_content_are_two_images(work: Path) -> None:
    touch(work, "images/a.jpg")
    os.link("images/a.jpg", "images/hard.jpg")
    (work / "images/soft.jpg").symlink_to("a.jpg")
    assert relatives(find_images(["images"])) == ["a.jpg", "hard.jpg", "soft.jpg"]


def test_endings_in_any_case_and_hidden_files_left_out(work: Path) -> None:
    good = [
        f"i/x.{ending}"
        for ending in ("JPG", "Jpeg", "jfif", "PNG", "bmp", "gif", "tif", "TIFF", "webp", "ppm")
    ]
    touch(work, *good, "i/.x.jpg", "i/._y.jpg", "i/.git/z.jpg", "i/readme.md", "i/jpg", "i/.jpg", "i/x.xml")
    assert relatives(find_images(["i"])) == sorted(name[2:] for name in good)


def test_a_file_that_is_named_is_always_taken(work: Path) -> None:
    touch(work, "data/frame.dat", "data/.hidden.jpg", "data/noending")
    assert relatives(find_images(["data/frame.dat", "data/.hidden.jpg", "data/noending"])) == [
        ".hidden.jpg",
        "frame.dat",
        "noending",
    ]
    assert relatives(find_images(["data/*.dat"])) == ["frame.dat"]


def test_overlapping_inputs_give_each_image_once(work: Path) -> None:
    touch(work, "images/a.jpg", "images/sub/b.jpg")
    for inputs in (
        ["images", "images"],
        ["images", "images/a.jpg", "./images/../images/a.jpg", str(work / "images/a.jpg")],
        ["images/a.jpg", "images"],
        ["images", "images/sub", "images/*.jpg", "images/**/b.jpg"],
    ):
        assert relatives(find_images(inputs)) == ["a.jpg", "sub/b.jpg"], inputs


def test_names_of_files_are_relative_to_the_folder_that_holds_them_all(work: Path) -> None:
    touch(work, "set/cats/1.jpg", "set/dogs/1.jpg")
    assert relatives(find_images(["set/cats/1.jpg"])) == ["1.jpg"]
    assert relatives(find_images(["set/cats/1.jpg", "set/dogs/1.jpg"])) == ["cats/1.jpg", "dogs/1.jpg"]
    listing = io.BytesIO(b"set/dogs/1.jpg\nset/cats/1.jpg\n")
    found = find_images(["-"], stdin=listing)
    assert relatives(found) == ["cats/1.jpg", "dogs/1.jpg"]
    assert [str(source.path) for source in found] == ["set/cats/1.jpg", "set/dogs/1.jpg"]


def test_inputs_with_the_same_names_are_told_apart(work: Path) -> None:
    touch(work, "a/images/1.jpg", "a/images/2.jpg", "b/images/1.jpg", "c/1.jpg")
    found = find_images(["a/images", "b/images", "c/1.jpg"])
    assert relatives(found) == ["c/1.jpg", "images-2/1.jpg", "images/1.jpg", "images/2.jpg"]
    assert {str(source.path) for source in found} == {
        "a/images/1.jpg",
        "a/images/2.jpg",
        "b/images/1.jpg",
        "c/1.jpg",
    }
    assert relatives(find_images(["a/images/2.jpg", "b/images"])) == ["1.jpg", "2.jpg"]


def test_lists_by_line_and_by_nul(work: Path) -> None:
    odd = ["new\nline.jpg", NOT_UTF8, "-dash.jpg", " space .jpg", "*.jpg"]
    touch(work, *odd, "a.jpg")
    (work / "by_nul.txt").write_bytes(b"\0".join(os.fsencode(name) for name in [*odd, "a.jpg"]) + b"\0")
    assert relatives(find_images(["@by_nul.txt"])) == sorted([*odd, "a.jpg"])
    (work / "by_line.txt").write_bytes(b"\xef\xbb\xbfa.jpg\r\n\r\n" + os.fsencode(NOT_UTF8) + b"\n -no\n")
    assert relatives(find_images(["@by_line.txt"])) == sorted(["a.jpg", NOT_UTF8, " -no"])
    text = io.StringIO("a.jpg\n-dash.jpg")
    assert relatives(find_images(["-"], stdin=text)) == ["-dash.jpg", "a.jpg"]


def test_a_missing_file_of_a_list_is_kept_to_be_reported(work: Path) -> None:
    touch(work, "a.jpg")
    (work / "list.txt").write_text("a.jpg\ngone.jpg\nno/folder.jpg\n")
    assert relatives(find_images(["@list.txt"])) == ["a.jpg", "gone.jpg", "no/folder.jpg"]


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        (["nowhere"], "no file or folder nowhere"),
        (["*.jpg"], "nothing matches"),
        (["@none.txt"], "cannot read the list none.txt"),
        (["-"], "stdin"),
        (["empty"], r"\.jpeg"),
        ([], "no input"),
    ],
)
def test_wrong_inputs_are_named(work: Path, inputs: list[str], words: str) -> None:
    (work / "empty").mkdir()
    with pytest.raises(UsageError, match=words) as caught:
        find_images(inputs)
    assert caught.value.exit_code == 2


def test_a_folder_of_foreign_images_says_why_it_is_empty(work: Path) -> None:
    touch(work, "phone/1.HEIC", "phone/2.heic", "phone/3.svg")
    with pytest.raises(UsageError, match=r"2 \.heic files") as caught:
        find_images(["phone"])
    assert ".svg" in str(caught.value)
    touch(work, "phone/4.jpg")
    assert any(".heic" in note for note in find_images(["phone"]).notes)


def test_patterns_do_what_a_shell_does(work: Path) -> None:
    touch(
        work,
        "p/a1.jpg",
        "p/a2.JPG",
        "p/b.txt",
        "p/sub/a3.jpg",
        "p/sub/deep/a4.png",
        "p/.h/a5.jpg",
        "p/[x].jpg",
    )
    assert relatives(find_images(["p/a?.jpg"])) == ["a1.jpg"]
    assert relatives(find_images(["p/a[12].*"])) == ["a1.jpg", "a2.JPG"]
    assert relatives(find_images(["p/*/a3.jpg"])) == ["sub/a3.jpg"]
    assert relatives(find_images(["p/**/*.jpg"])) == ["[x].jpg", "a1.jpg", "sub/a3.jpg"]
    assert relatives(find_images(["p/**/a4.png"])) == ["sub/deep/a4.png"]
    assert relatives(find_images(["p/s*"])) == ["sub/a3.jpg", "sub/deep/a4.png"]
    assert relatives(find_images(["p/.h/*"])) == ["a5.jpg"]
    assert relatives(find_images(["p/[x].jpg"])) == ["[x].jpg"]
    assert relatives(find_images([str(work / "p" / "*.jpg")])) == ["[x].jpg", "a1.jpg"]


def test_the_output_folder_is_never_input(work: Path) -> None:
    touch(work, "images/a.jpg", "images/out/masks/a.png", "images/out/overlays/a.jpg")
    out = work / "images" / "out"
    for inputs in (["images"], ["images/**/*"], ["images/a.jpg", "images/out/masks/a.png"]):
        assert relatives(find_images(inputs, exclude=out)) == ["a.jpg"], inputs
    listing = io.BytesIO(b"images/a.jpg\nimages/out/masks/a.png\n")
    found = find_images(["-"], exclude=Path("images/out"), stdin=listing)
    assert relatives(found) == ["a.jpg"] and any("1 file" in note for note in found.notes)
    with pytest.raises(UsageError, match="output folder"):
        find_images(["images"], exclude=work / "images")


def test_an_earlier_output_is_left_out_with_a_note(work: Path) -> None:
    touch(work, "images/a.jpg", "images/old/masks/a.png", "images/old/manifest.jsonl", "images/old/run.json")
    found = find_images(["images"])
    assert relatives(found) == ["a.jpg"]
    assert any("old" in note for note in found.notes)
    assert relatives(find_images(["images/old/masks"])) == ["a.png"]
    assert relatives(find_images(["images", "images/old/masks/a.png"])) == ["a.jpg", "a.png"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may list everything")
def test_a_folder_that_cannot_be_listed_is_noted(work: Path) -> None:
    touch(work, "images/a.jpg", "images/locked/b.jpg")
    (work / "images/locked").chmod(0)
    try:
        found = find_images(["images"])
        assert relatives(found) == ["a.jpg"] and any("locked" in note for note in found.notes)
        with pytest.raises(UsageError, match="permission"):
            find_images(["images/locked"])
    finally:
        (work / "images/locked").chmod(0o755)


def test_images_that_share_a_stem_all_get_their_full_name(work: Path) -> None:
    touch(work, "i/a.jpg", "i/a.png", "i/b.jpg", "i/sub/a.jpg", "i/c.tar.jpg", "i/a.jpg.png")
    assert masks(find_images(["i"])) == {
        "a.jpg": "a.jpg.png",
        "a.jpg.png": "a.jpg.png.png",
        "a.png": "a.png.png",
        "b.jpg": "b.png",
        "c.tar.jpg": "c.tar.png",
        "sub/a.jpg": "sub/a.png",
    }


def test_a_mask_is_never_named_like_a_folder_of_masks(work: Path) -> None:
    touch(work, "i/x.jpg", "i/x.png/1.jpg", "i/y.jpg", "i/y.png/1.jpg", "i/y.jpg.png/deep/1.jpg")
    found = find_images(["i"])
    made = [source.mask for source in found]
    folders = {parent for mask in made for parent in map(str, Path(mask).parents)}
    assert len(set(made)) == len(found) == 5
    assert folders.isdisjoint(made)


def test_long_names_stay_possible_and_distinct(work: Path) -> None:
    long = ["n" * 251 + ".jpg", "n" * 250 + ".tiff"[:5], "\u00e9" * 125 + "a.bmp", "n" * 251 + ".png"]
    touch(work, *(f"i/{name}" for name in long))
    made = [source.mask for source in find_images(["i"])]
    assert len(set(made)) == 4
    for mask in made:
        (work / mask).touch()  # the system accepts it
        mask.encode("utf-8")


def test_the_order_does_not_depend_on_the_disk(work: Path) -> None:
    names = [f"i/{folder}/{number}.jpg" for number in (10, 9, 1) for folder in "bca"]
    touch(work, *names)
    found = relatives(find_images(["i"]))
    assert found == sorted(found) and len(found) == 9
    assert relatives(find_images(["i/c", "i/a/*", "i/b"])) == sorted(
        f"{folder}/{number}.jpg" for number in (10, 9, 1) for folder in "abc"
    )


def test_a_list_can_be_cut_and_read_twice(work: Path) -> None:
    touch(work, *(f"i/{number}.jpg" for number in range(5)))
    found = find_images(["i"])
    assert len(found) == 5 and relatives(found) == list(found.relatives()) == relatives(found)
    assert [source.relative for source in found[1:3]] == ["1.jpg", "2.jpg"]
    assert found[-1].relative == "4.jpg"


def test_many_names_stay_small() -> None:
    """Well under the half a kilobyte that a Path object alone would take."""
    script = (
        "import io, tracemalloc\n"
        "from wsss_rt.io.sources import find_images\n"
        "names = (f'/nowhere/images/{n // 1000:03d}/{n:08d}.jpg\\n' for n in range(20_000))\n"
        "listing = io.BytesIO(''.join(names).encode())\n"
        "tracemalloc.start()\n"
        "found = find_images(['-'], stdin=listing)\n"
        "assert len(found) == 20_000 and found[5].relative == '000/00000005.jpg', found[5]\n"
        "print(tracemalloc.get_traced_memory()[0] // 20_000)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 150
