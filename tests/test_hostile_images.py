"""Hostile images, many in one process that may take 1 GB more than it has when idle: refused, quickly."""

import functools
import json
import pickle
import re
import struct
import subprocess
import sys
import zlib
from collections import Counter

import numpy as np
import pytest
from PIL import Image
from test_images import (
    EIGHT,
    FOUR,
    HOSTILE,
    KEPT,
    bmp,
    encoded,
    exif,
    lossless_jpeg,
    many_formats,
    mutated,
    p3,
    photo,
    tiff,
)

from features.images.normalise import FORMATS
from features.images.refusal import REASONS

# Reads (name, bytes) from a file, writes (name, outcome, JPEG) to another; outcomes are printed with seconds.
LIMITED = """
import json, pathlib, pickle, resource, sys, time
from features.images.normalise import normalise
from features.images.refusal import Refused
normalise(pathlib.Path(sys.argv[1]).read_bytes())
images = pickle.loads(pathlib.Path(sys.argv[2]).read_bytes())
idle = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmSize")) * 1024
resource.setrlimit(resource.RLIMIT_AS, (idle + 10**9, idle + 10**9))
accepted = {}
for name, data in images:
    print("begins", name, file=sys.stderr)
    started = time.process_time()
    try:
        result = normalise(data)
        outcome, accepted[name] = "accepted", (result.jpeg, result.width, result.height)
    except Refused as refused:
        outcome = refused.reason
    print(json.dumps([name, outcome, time.process_time() - started]))
pathlib.Path(sys.argv[3]).write_bytes(pickle.dumps(accepted))
"""


def in_a_gigabyte(images, folder):
    """Outcome and seconds of processor time of each image, and the JPEGs and sizes of the accepted."""
    (folder / "warm.jpg").write_bytes(KEPT["baseline"])
    (folder / "images").write_bytes(pickle.dumps(list(images)))
    files = [folder / name for name in ("warm.jpg", "images", "accepted")]
    run = subprocess.run([sys.executable, "-c", LIMITED, *files], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-500:]
    found = [json.loads(line) for line in run.stdout.splitlines()]
    return {name: (outcome, seconds) for name, outcome, seconds in found}, pickle.loads(files[2].read_bytes())


def gif_of_one_dot(width, height, disposal=2):
    """60 bytes: a screen of one pixel, a frame of any size, and what becomes of it."""
    control = b"!\xf9\4" + bytes([disposal << 2]) + b"\0\0\0\0"
    frame = b"," + struct.pack("<HHHH", 0, 0, width, height) + b"\0\2\2\x44\1\0;"
    return b"GIF89a" + struct.pack("<HHBBB", 1, 1, 0x80, 0, 0) + bytes(6) + control + frame


def webp_canvas(width, height):
    """An extended WebP of a large canvas with a small picture in it."""
    small = encoded(photo(), "WEBP")[12:]
    extended = b"VP8X" + struct.pack("<I", 10) + bytes(4)
    extended += (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    body = b"WEBP" + extended + small
    return b"RIFF" + struct.pack("<I", len(body)) + body


def tiled_tiff(side):
    """A grey TIFF of 64 × 64 pixels in one tile of `side` pixels a side."""
    size = [(256, 3, 1, 64), (257, 3, 1, 64), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1)]
    return tiff(
        [*size, (322, 4, 1, side), (323, 4, 1, side), (324, 4, 1, 1024), (325, 4, 1, 4096)], bytes(4096)
    )


def avif_of(width, height):
    """An AVIF whose file says 64 × 48, and whose AV1 says `width` × `height`, up to 16,384 each."""
    whole = encoded(photo(), "AVIF")
    at = whole.index(b"\x12\0\x0a", whole.index(b"mdat")) + 4
    # profile 0, a still picture in a reduced header, level 31, 14 bits for each side less one
    bits = "0001" + "1" + "11111" + 2 * f"{13:04b}" + f"{width - 1:014b}{height - 1:014b}"
    header = int(bits.ljust(72, "0"), 2).to_bytes(9)
    return whole[:at] + header + whole[at + 9 :]


def scans_in_a_tiff(scans, rows):
    """A grey TIFF 7,100 pixels wide whose strips are all one progressive JPEG of 64 rows and many scans."""
    jpeg = encoded(Image.new("L", (7100, 64), 99), "JPEG", progressive=True)
    last = jpeg.rindex(b"\xff\xda")
    jpeg = jpeg[:last] + jpeg[last:-2] * scans + b"\xff\xd9"
    strips = rows // 64
    numbers = {256: 7100, 257: rows, 258: 8, 259: 7, 262: 1, 277: 1, 278: 64}
    offsets = [(273, 4, strips, 1024), (279, 4, strips, 1024 + 4 * strips)]
    values = struct.pack("<I", 1024 + 8 * strips) * strips + struct.pack("<I", len(jpeg)) * strips
    return tiff([*((tag, 4, 1, value) for tag, value in numbers.items()), *offsets], values + jpeg)


def endless_scans(scans):
    """A progressive JPEG of 49 megapixels and many scans, without its end marker."""
    jpeg = encoded(Image.new("L", (7000, 7000), 99), "JPEG", progressive=True)
    last = jpeg.rindex(b"\xff\xda")
    return jpeg[:last] + jpeg[last:-2] * scans


def apng(width, height):
    """A PNG of a few pixels with a frame that says it is larger."""
    data = encoded(photo(), "PNG")
    chunks = [
        (b"acTL", struct.pack(">II", 2, 0)),
        (b"fcTL", struct.pack(">IIIIIHHBB", 0, width, height, 0, 0, 1, 1, 1, 0)),
    ]
    at = data.index(b"IDAT") - 4
    body = b"".join(
        struct.pack(">I", len(c)) + n + c + struct.pack(">I", zlib.crc32(n + c)) for n, c in chunks
    )
    return data[:at] + body + data[at:]


LARGE = 65_535
MORE = {
    "GIF, a frame larger than the screen": ("too_large", gif_of_one_dot(LARGE, LARGE)),
    "GIF, restored to the frame before": ("too_large", gif_of_one_dot(LARGE, LARGE, 3)),
    "WebP, a canvas of 16,383": ("too_large", webp_canvas(16_383, 16_383)),
    "WebP, a canvas of 2^24": ("too_large", webp_canvas(2**24, 2**24)),
    "TIFF, tiles of 2^31": ("too_large", tiled_tiff(2**31)),
    "TIFF, a tile as large as it is": ("accepted", tiled_tiff(64)),
    "TIFF, tiles of 7,000": ("too_large", tiled_tiff(7000)),
    "TIFF, scans of a JPEG": ("too_large", scans_in_a_tiff(90, 6400)),
    "JPEG, scans without an end": ("truncated", endless_scans(4)),
    "BMP, runs of 4 bits": ("accepted", bmp(b"\xff\x12" * 790_000 + b"\0\1", 4, (500, 500))),
    "BMP, pixels of 4 bits": ("accepted", bmp((b"\0\xff" + bytes(128)) * 99_000 + b"\0\1", 4, (500, 500))),
    "BMP, rows without pixels": ("too_large", bmp(b"\0\0" * 1_100_000 + b"\0\1", 8, (500, 500))),
    "BMP, 50 MP in two bytes": ("accepted", bmp(b"\0\1", 8, (8000, 6000))),
    "APNG, a frame of 2^31": ("accepted", apng(2**31, 2**31)),
}


if "AVIF" in FORMATS:
    MORE |= {
        "AVIF, larger within": ("too_large", avif_of(16_384, 16_384)),
        "AVIF, wide within": ("too_large", avif_of(16_384, 4000)),
    }


def test_hostile_files_are_refused_in_a_second_and_a_gigabyte(tmp_path):
    made = {
        name: (expected, make())
        for name, (expected, make) in HOSTILE.items()
        if name != "items" or "AVIF" in FORMATS
    }
    files = made | MORE
    found, _ = in_a_gigabyte([(name, data) for name, (_, data) in files.items()], tmp_path)
    outcomes = {name: outcome for name, (outcome, _) in found.items()}
    expected = {name: reason for name, (reason, _) in files.items()}
    assert outcomes | {"APNG, a frame of 2^31": ""} == expected | {"APNG, a frame of 2^31": ""}
    assert max(seconds for _, seconds in found.values()) < 1


# ---- a family of headers


NUMBERS = (0, 1, 2**15, 2**16 - 1, 2**31 - 1, 2**32 - 1)
HEAD = 96  # bytes from where sizes, offsets and counts begin
BEGINS = {"JPEG": b"\xff[\xc0\xc2]\0", "MPO": b"MPF", "AVIF": b"iloc"}  # at byte 0 in the others
BIG_ENDIAN = {"JPEG", "PNG", "AVIF", "MPO"}


@functools.cache
def small_seeds():
    """Small pictures: format, and more where there are several → bytes."""
    image = photo(24, 18)
    animated = {"save_all": True, "append_images": [photo(24, 18, seed=1)]}
    options = {
        "AVIF animated": animated,
        "GIF animated": animated,
        "JPEG exif": {"exif": exif(6)},
        "JPEG profile": {"icc_profile": p3()},
        "JPEG progressive": {"progressive": True},
        "MPO": animated,
        "PNG animated": animated,
        "PNG profile": {"icc_profile": p3()},
        "TIFF big": {"big_tiff": True},
        "TIFF deflate": {"compression": "tiff_adobe_deflate"},
        "TIFF jpeg": {"compression": "jpeg"},
        "WEBP animated": animated,
        "WEBP lossless": {"lossless": True},
    }
    expected = {format: {} for format in FORMATS} | options
    seeds = {
        name: encoded(image, name.split()[0], **more) for name, more in expected.items() if allowed(name)
    }
    return seeds | {
        "BMP, runs of 8 bits": bmp(EIGHT, 8),
        "BMP, runs of 4 bits": bmp(FOUR, 4),
        "GIF of one dot": gif_of_one_dot(3, 2),
        "TIFF tiled": tiled_tiff(64),
        "WEBP canvas": webp_canvas(64, 48),
    }


def allowed(name):
    return name.split()[0] in (*FORMATS, "MPO")


def fuzzed_headers(head, whole):
    """Every field of 2 and 4 bytes among the first `head`, set to each of NUMBERS."""
    for name, data in small_seeds().items():
        format = name.split()[0].strip(",")
        order = ">" if format in BIG_ENDIAN else "<"
        first = directory(data) if format == "TIFF" else 0
        if format in BEGINS and not whole:
            first = re.search(BEGINS[format], data, re.DOTALL).start()
        for at in range(first, min(first + head, len(data) - 4)):
            for size, number in [
                (size, number) for size in "HI" for number in NUMBERS if size == "I" or number < 2**16
            ]:
                changed = bytearray(data)
                struct.pack_into(order + size, changed, at, number)
                yield f"{name}, byte {at}, {size} = {number}", with_checksums(bytes(changed))


def directory(tiff):
    """Where a TIFF's directory is: its header is there."""
    return struct.unpack_from("<Q", tiff, 8)[0] if tiff[2] == 43 else struct.unpack_from("<I", tiff, 4)[0]


def with_checksums(data):
    """A PNG's chunks with their checksums corrected: otherwise nothing but those would be tested."""
    if not data.startswith(b"\x89PNG"):
        return data
    at, out = 8, bytearray(data)
    while at + 12 <= len(data):
        size = int.from_bytes(data[at : at + 4])
        if at + 12 + size > len(data):
            break
        struct.pack_into(">I", out, at + 8 + size, zlib.crc32(data[at + 4 : at + 8 + size]))
        at += 12 + size
    return bytes(out)


def check_headers(images, folder):
    found, _ = in_a_gigabyte(images, folder)
    assert len(found) == len(images)
    assert {outcome for outcome, _ in found.values()} <= {"accepted", *REASONS}
    slow = {name: seconds for name, (_, seconds) in found.items() if seconds > 1}
    assert not slow, slow
    return Counter(outcome for outcome, _ in found.values())


def test_headers_of_any_numbers_are_refused_or_read_in_a_second_and_a_gigabyte(tmp_path):
    thirds = list(fuzzed_headers(HEAD, whole=False))[::3]  # three or four of the ten numbers in every field
    tally = check_headers(thirds, tmp_path)
    assert {"accepted", "too_large", "truncated", "undecodable"} <= set(tally)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_headers_of_any_numbers_at_every_byte(tmp_path):
    tally = check_headers(list(fuzzed_headers(512, whole=True)), tmp_path)
    assert min(tally["accepted"], tally["too_large"]) > 500


# ---- mutations


def seeds_by_format():
    every, more = many_formats(), small_seeds()
    turned, cmyk = encoded(photo(), "JPEG", exif=exif(6)), encoded(photo().convert("CMYK"), "JPEG")
    endless, coloured = KEPT["baseline"][:-2], encoded(photo(), "JPEG", icc_profile=p3())
    jpegs = [every["JPEG progressive"], every["MPO"], turned, lossless_jpeg(), cmyk, endless, coloured]
    tiffs = [name for name in every if name.startswith("TIFF")]
    return {
        "JPEG": [*KEPT.values(), *jpegs],
        "PNG": [
            *(encoded(photo().convert(mode), "PNG") for mode in ("L", "RGBA", "P")),
            more["PNG animated"],
        ],
        "WEBP": [every["WEBP"], *(more[name] for name in ("WEBP lossless", "WEBP animated", "WEBP canvas"))],
        "GIF": [every["GIF"], more["GIF animated"], more["GIF of one dot"]],
        "TIFF": [*(every[name] for name in tiffs), *(more[name] for name in ("TIFF big", "TIFF tiled"))],
        "BMP, AVIF": [
            *(encoded(photo().convert(mode), "BMP") for mode in ("L", "RGB")),
            *(data for name, data in more.items() if name.startswith(("BMP,", "AVIF"))),
        ],
    }


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("format", list(seeds_by_format()))
def test_5000_mutated_files_of_a_format_end_no_process_and_what_is_accepted_decodes(format, tmp_path):
    tensorflow = pytest.importorskip("tensorflow")
    seeds, random = seeds_by_format()[format], np.random.default_rng(len(format))
    images = [(str(number), mutated(seeds[number % len(seeds)], random)) for number in range(5000)]
    found, accepted = in_a_gigabyte(images, tmp_path)
    assert len(found) == 5000
    assert max(seconds for _, seconds in found.values()) < 2
    assert 100 < len(accepted) < 4900
    for jpeg, width, height in accepted.values():
        assert tensorflow.io.decode_jpeg(jpeg, channels=3).shape == (height, width, 3)
    assert Image.MAX_IMAGE_PIXELS is not None
