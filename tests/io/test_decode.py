"""Decoding: right pixels, or the right reason."""

from __future__ import annotations

import struct
import subprocess
import sys
import threading
import warnings
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import ROOT
from tests.nasty import (
    NastyFolder,
    bomb,
    encode,
    jpeg,
    picture,
    png16,
    png_file,
    stored_turned,
)
from wsss_rt.errors import ImageError, ImageErrorCode
from wsss_rt.io.decode import decode_image, read_bytes, to_stored_raster


def code_of(data: bytes, **options: float) -> str:
    with pytest.raises(ImageError) as caught:
        decode_image(data, **options)
    return caught.value.code


def test_every_good_file_of_the_nasty_folder_decodes_to_its_size(nasty: NastyFolder) -> None:
    for name, size in nasty.good.items():
        decoded = decode_image(read_bytes(nasty.root / name))
        assert decoded.stored_size == size, name
        with Image.open(nasty.root / name) as image:
            assert decoded.stored_size == image.size, name
        assert decoded.upright.dtype == np.uint8 and decoded.upright.flags.c_contiguous, name


def test_every_bad_file_of_the_nasty_folder_names_its_reason(nasty: NastyFolder) -> None:
    for name, code in nasty.bad.items():
        with pytest.raises(ImageError) as caught:
            decode_image(read_bytes(nasty.root / name))
        assert caught.value.code == code, name


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_orientation_is_applied_and_undone(orientation: int, kind: str) -> None:
    upright = picture()
    stored = stored_turned(upright, orientation)
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 100, "subsampling": 0} if kind == "JPEG" else {"lossless": True}
    decoded = decode_image(encode(stored, kind, exif=exif, **options))
    assert decoded.orientation == orientation
    assert decoded.stored_size == (stored.shape[1], stored.shape[0])
    assert np.abs(decoded.upright.astype(int) - upright).max() <= (8 if kind == "JPEG" else 0)
    assert np.array_equal(to_stored_raster(upright, orientation), stored)
    assert np.array_equal(to_stored_raster(upright[:, :, 0], orientation), stored[:, :, 0])


@pytest.mark.parametrize("orientation", [3, 6, 7])
def test_tiff_orientation_gives_the_raster_that_pillow_shows(orientation: int) -> None:
    data = encode(stored_turned(picture(), orientation), "TIFF", tiffinfo={0x0112: orientation})
    decoded = decode_image(data)
    with Image.open(BytesIO(data)) as image:
        assert decoded.stored_size == image.size
    assert np.array_equal(to_stored_raster(decoded.upright, decoded.orientation), picture())


def test_orientation_outside_its_range_is_noted_and_ignored() -> None:
    decoded = decode_image(jpeg(orientation=9))
    assert decoded.orientation == 1 and any("9" in note for note in decoded.notes)
    assert decode_image(jpeg(orientation=0)).notes == ()


@pytest.mark.parametrize(
    "block", [b"Exif\0\0garbage that is no TIFF", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0"]
)
def test_corrupt_exif_does_not_lose_the_image(block: bytes) -> None:
    segment = b"\xff\xe1" + (len(block) + 2).to_bytes(2, "big") + block
    data = jpeg()
    decoded = decode_image(data[:2] + segment + data[2:])
    assert decoded.orientation == 1
    assert np.array_equal(decoded.upright, decode_image(data).upright)


def test_16_bit_gray_is_scaled_and_not_clipped() -> None:
    values = np.linspace(0, 65535, 64 * 48).astype(np.uint16).reshape(48, 64)
    decoded = decode_image(png16(values))
    expected = np.floor(values / 65535 * 255 + 0.5).astype(np.uint8)
    assert np.array_equal(decoded.upright, np.repeat(expected[:, :, None], 3, axis=2))
    assert decoded.bit_depth == 16


@pytest.mark.parametrize("kind", ["TIFF", "PNG", "PPM"])
def test_8_bit_gray_widened_to_16_comes_back_exactly(kind: str) -> None:
    gray = np.arange(256, dtype=np.uint16).reshape(16, 16)
    decoded = decode_image(encode(gray * 257, kind))
    assert np.array_equal(decoded.upright[:, :, 0], gray)


def test_16_bit_big_endian_tiff_is_scaled() -> None:
    gray = np.arange(256, dtype=np.uint16).reshape(16, 16) * 257
    decoded = decode_image(encode(Image.fromarray(gray.astype(">u2")), "TIFF"))
    assert decoded.mode.startswith("I;16") and np.array_equal(decoded.upright[:, :, 1], gray // 257)


def test_16_bit_rgb_is_within_one_level() -> None:
    values = np.random.default_rng(0).integers(0, 65536, (32, 40, 3)).astype(np.uint16)
    decoded = decode_image(png16(values))
    assert np.abs(decoded.upright - values / 257).max() <= 1
    assert decoded.bit_depth == 16
    assert np.array_equal(decode_image(png16(picture().astype(np.uint16) * 257)).upright, picture())


def test_12_bit_content_in_16_bits_is_noted() -> None:
    values = np.linspace(0, 4095, 64 * 48).astype(np.uint16).reshape(48, 64)
    assert any("4095 of 65535" in note for note in decode_image(png16(values)).notes)


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_pixels_without_a_known_white_are_refused(dtype: type) -> None:
    data = encode(Image.fromarray(picture()[:, :, 0].astype(dtype)), "TIFF")
    assert code_of(data) == ImageErrorCode.UNSUPPORTED_PIXELS


def test_cmyk_keeps_its_colours() -> None:
    cmyk = Image.fromarray(picture()).convert("CMYK")
    adobe = encode(cmyk, "JPEG", quality=100, subsampling=0)
    assert b"Adobe" in adobe
    for data in (adobe, encode(cmyk, "TIFF")):
        decoded = decode_image(data)
        assert decoded.mode == "CMYK"
        assert np.abs(decoded.upright.astype(int) - picture()).mean() < 3


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_becomes_white(mode: str) -> None:
    rgb = np.full((8, 8, 3), 90, np.uint8)
    alpha = np.full((8, 8), 255, np.uint8)
    alpha[:4] = 0
    alpha[4] = 51
    if mode == "P":
        image = Image.fromarray(np.where(alpha[:, :, None] == 0, (7, 8, 9), rgb).astype(np.uint8)).quantize(4)
        color = image.getpixel((0, 0))
        data = encode(image, "PNG", transparency=color)
    else:
        data = encode(np.dstack([rgb if mode == "RGBA" else rgb[:, :, 0], alpha]), "PNG")
    decoded = decode_image(data)
    assert decoded.mode == mode
    assert (decoded.upright[:4] == 255).all() and (decoded.upright[5:] == 90).all()
    if mode != "P":
        assert (decoded.upright[4] == 222).all()  # 0.2 * 90 + 0.8 * 255
    assert any("transparency" in note for note in decoded.notes)


def test_opaque_alpha_changes_nothing_and_is_not_noted() -> None:
    data = encode(np.dstack([picture(), np.full(picture().shape[:2], 255, np.uint8)]), "PNG")
    decoded = decode_image(data)
    assert np.array_equal(decoded.upright, picture()) and decoded.notes == ()


def test_hidden_colours_of_a_fully_transparent_image_are_not_shown() -> None:
    data = encode(np.dstack([picture(), np.zeros(picture().shape[:2], np.uint8)]), "PNG")
    decoded = decode_image(data)
    assert (decoded.upright == 255).all() and any("transparent" in note for note in decoded.notes)


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "WEBP", "PNG"])
def test_only_the_first_frame_is_used_and_that_is_said(kind: str) -> None:
    first = Image.fromarray(picture()).quantize(64) if kind == "GIF" else Image.fromarray(picture())
    options = {"lossless": True} if kind == "WEBP" else {}
    other = Image.fromarray(255 - picture())
    decoded = decode_image(encode(first, kind, save_all=True, append_images=[other], **options))
    assert any("frames" in note for note in decoded.notes)
    assert np.abs(decoded.upright.astype(int) - np.asarray(first.convert("RGB"))).max() == 0
    assert decode_image(encode(first, kind, **options)).notes == ()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM"])
def test_a_file_cut_anywhere_is_truncated_and_never_a_picture(kind: str) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (90, 120, 3)).astype(np.uint8)
    data = encode(noise, kind)
    decode_image(data)
    # the last bytes are checksums and the end marker, without which a file may pass: see below
    for keep in np.linspace(24, len(data) - 40, 25).astype(int):
        assert code_of(data[:keep]) == ImageErrorCode.TRUNCATED, (kind, keep, len(data))


def test_a_progressive_jpeg_cut_between_its_passes_is_truncated() -> None:
    data = encode(picture(200, 150), "JPEG", progressive=True)
    cuts = [at for at in range(len(data) - 2) if data[at : at + 2] in (b"\xff\xda", b"\xff\xc4")]
    assert len(cuts) > 8
    for at in cuts:
        assert code_of(data[:at]) == ImageErrorCode.TRUNCATED, at


@pytest.mark.parametrize("missing", [1, 2])
def test_jpeg_without_end_marker_is_accepted_with_a_note(missing: int) -> None:
    for width in range(90, 106):  # with some widths the decoder notices, with others it does not
        data = jpeg(picture(width, 60))
        decoded = decode_image(data[:-missing])
        assert np.array_equal(decoded.upright, decode_image(data).upright)
        assert any("end marker" in note for note in decoded.notes)


def test_png_without_end_chunk_is_accepted_with_a_note() -> None:
    decoded = decode_image(encode(picture(), "PNG")[:-12])
    assert np.array_equal(decoded.upright, picture())
    assert any("end marker" in note for note in decoded.notes)


def test_any_flipped_byte_of_a_png_is_noticed() -> None:
    data = encode(picture(), "PNG")
    for at in np.linspace(16, len(data) - 13, 40).astype(int):
        damaged = bytearray(data)
        damaged[at] ^= 1
        assert code_of(bytes(damaged)) in (ImageErrorCode.CORRUPT, ImageErrorCode.TRUNCATED), at


@pytest.mark.parametrize(
    ("data", "code", "words"),
    [
        (b"", "empty", "empty"),
        (b"<!doctype html><p>not found", "not_an_image", "HTML"),
        (b"\n <HTML>", "not_an_image", "HTML"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "not_an_image", "git lfs pull"),
        (b"hello", "not_an_image", "text"),
        (b'{"a": 1}', "not_an_image", "JSON"),
        (bytes(100), "not_an_image", "zero bytes"),
        (b"PK\x03\x04" + bytes(60), "not_an_image", "ZIP"),
        (b"\0\0\0\x20ftypisom" + bytes(20), "not_an_image", "video"),
        (b"\0\0\0\x1cftypavif\0\0\0\0avifmif1", "unsupported_format", "AVIF"),
        (b"\0\0\0\x18ftypheic\0\0\0\0", "unsupported_format", "HEIC"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "unsupported_format", "SVG"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", "unsupported_format", "PostScript"),
        (b"SIMPLE  =                    T", "unsupported_format", "FITS"),
        (b"8BPS\0\x01", "unsupported_format", "Photoshop"),
    ],
)
def test_what_is_no_image_is_told_apart(data: bytes, code: str, words: str) -> None:
    with pytest.raises(ImageError, match=words) as caught:
        decode_image(data)
    assert caught.value.code == code


def test_size_is_limited_by_the_header() -> None:
    data = encode(picture(40, 30), "PNG")
    assert decode_image(data, max_pixels=1200).stored_size == (40, 30)
    assert code_of(data, max_pixels=1199) == ImageErrorCode.TOO_LARGE


def test_bombs_are_refused_without_the_memory_they_ask_for() -> None:
    webp = bytearray(
        encode(picture(), "WEBP", save_all=True, append_images=[Image.fromarray(255 - picture())])
    )
    assert webp[12:16] == b"VP8X"
    webp[24:30] = b"\xfe\x3f\0\xfe\x3f\0"  # 16383 x 16383
    tiff = bytearray(encode(picture(), "TIFF"))
    at = tiff.index(b"\x00\x01\x04\x00\x01\x00\x00\x00")  # tag 256, width
    tiff[at + 8 : at + 12] = (2_000_000_000).to_bytes(4, "little")
    script = (
        "import resource, sys\n"
        "from wsss_rt.errors import ImageError\n"
        "from wsss_rt.io.decode import decode_image\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "try:\n"
        "    decode_image(sys.stdin.buffer.read())\n"
        "except ImageError as error:\n"
        "    print(error.code)\n"
        "print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)\n"
    )
    for data in (bomb(), bytes(webp), bytes(tiff)):
        done = subprocess.run(
            [sys.executable, "-c", script], input=data, capture_output=True, check=True, cwd=ROOT
        )
        code, grown = done.stdout.decode().split()
        assert code == "too_large"
        assert int(grown) < 50, f"{grown} MiB"


def test_pillows_own_limit_is_neither_changed_nor_triggered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert decode_image(encode(picture(), "PNG")).stored_size == (96, 64)
        assert decode_image(jpeg()).stored_size == (96, 64)
    assert Image.MAX_IMAGE_PIXELS == 100


def test_compressed_text_in_a_png_does_not_unfold() -> None:
    data = encode(picture(), "PNG")
    body = b"comment\0\0" + zlib.compress(bytes(20_000_000), 1)
    chunk = struct.pack(">I", len(body)) + b"zTXt" + body
    chunk += struct.pack(">I", zlib.crc32(b"zTXt" + body))
    try:
        decoded = decode_image(data[:33] + chunk + data[33:])
    except ImageError as error:
        assert error.code == ImageErrorCode.CORRUPT
    else:
        assert np.array_equal(decoded.upright, picture())


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM"])
def test_damaged_files_end_in_pixels_or_a_reason(kind: str) -> None:
    random = np.random.default_rng(7)
    data = encode(picture(), kind)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(60):
            damaged = bytearray(data)
            for at in random.integers(0, min(len(data), int(random.choice([64, 400, len(data)]))), 3):
                damaged[at] = random.integers(0, 256)
            try:
                decoded = decode_image(bytes(damaged), max_pixels=1_000_000)
            except ImageError:
                continue
            assert decoded.upright.shape[:2] == decoded.stored_size[::-1]


def test_decoding_in_threads_gives_the_same_as_alone(nasty: NastyFolder) -> None:
    files = [(nasty.root / name).read_bytes() for name in sorted(nasty.good)]
    alone = [decode_image(data).upright for data in files]
    results: dict[int, list[bool]] = {}

    def work(number: int) -> None:
        results[number] = [
            np.array_equal(decode_image(data).upright, expected)
            for data, expected in zip(files, alone, strict=True)
        ]

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4 and all(all(equal) for equal in results.values())


def test_files_are_left_as_they_were(nasty: NastyFolder) -> None:
    def state() -> list[tuple[str, int, int]]:
        paths = [nasty.root / name for name in nasty.good]
        return [(str(path), path.stat().st_mtime_ns, path.stat().st_size) for path in paths]

    before = state()
    for name in nasty.good:
        decode_image(read_bytes(nasty.root / name))
    assert state() == before


def test_one_bit_and_odd_widths() -> None:
    rows = b"".join(b"\0" + (b"\xaa\x80" if row % 2 else b"\x55\x00") for row in range(6))
    decoded = decode_image(png_file(9, 6, 1, 0, rows))
    assert decoded.bit_depth == 1
    assert decoded.upright[1, :3, 0].tolist() == [255, 0, 255]


def test_a_lone_file_object_is_not_needed(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(jpeg())
    assert decode_image(read_bytes(path)).format == "JPEG"
