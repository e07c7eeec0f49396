"""Hostile images, many in one process that may take 1 GB more than it has when idle: refused, quickly."""

import functools
import json
import pickle
import struct
import subprocess
import sys
import zlib
from collections import Counter

import numpy as np
import pytest
from PIL import Image
from test_images import HOSTILE, KEPT, encoded, exif, lossless_jpeg, many_formats, mutated, photo, tiff

from features.images import FORMATS, REASONS

# Reads (name, bytes) from a file, writes (name, outcome, JPEG) to another; outcomes are printed with seconds.
LIMITED = """
import json, pathlib, pickle, resource, sys, time
from features.images import Refused, normalise
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
    told = [json.loads(line) for line in run.stdout.splitlines()]
    return {name: (outcome, seconds) for name, outcome, seconds in told}, pickle.loads(files[2].read_bytes())


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
    "APNG, a frame of 2^31": ("accepted", apng(2**31, 2**31)),
}


def test_hostile_files_are_refused_in_a_second_and_a_gigabyte(tmp_path):
    made = {
        name: (wanted, make())
        for name, (wanted, make) in HOSTILE.items()
        if name != "items" or "AVIF" in FORMATS
    }
    files = made | MORE
    told, _ = in_a_gigabyte([(name, data) for name, (_, data) in files.items()], tmp_path)
    outcomes = {name: outcome for name, (outcome, _) in told.items()}
    wanted = {name: reason for name, (reason, _) in files.items()}
    assert outcomes | {"APNG, a frame of 2^31": ""} == wanted | {"APNG, a frame of 2^31": ""}
    assert max(seconds for _, seconds in told.values()) < 1


# ---- a family of headers


NUMBERS = (0, 1, 2**15, 2**16 - 1, 2**31 - 1, 2**32 - 1)
HEAD = 96  # bytes; what stands in them is a header in every format
BIG_ENDIAN = {"JPEG", "PNG", "AVIF", "MPO"}


@functools.cache
def small_seeds():
    """Small pictures: format → bytes."""
    image = photo(24, 18)
    seeds = {format: encoded(image, format) for format in FORMATS}
    animated = {"save_all": True, "append_images": [photo(24, 18, seed=1)]}
    seeds |= {f"{kind} animated": encoded(image, kind, **animated) for kind in ("GIF", "WEBP", "PNG")}
    seeds |= {
        "TIFF big": encoded(image, "TIFF", big_tiff=True),
        "TIFF jpeg": encoded(image, "TIFF", compression="jpeg"),
    }
    return seeds | {
        "MPO": encoded(image, "MPO", **animated),
        "JPEG exif": encoded(image, "JPEG", exif=exif(6)),
    }


def fuzzed_headers(head, step):
    """Every field of 2 and 4 bytes in the first bytes of each format, set to each of NUMBERS."""
    for name, data in small_seeds().items():
        order = ">" if name.split()[0] in BIG_ENDIAN else "<"
        first = directory(data) if name.startswith("TIFF") else 0
        for at in range(first, min(first + head, len(data) - 4), step):
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
    """A PNG's chunks with their checksums made right again: else nothing but those would be tested."""
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
    told, _ = in_a_gigabyte(images, folder)
    assert len(told) == len(images)
    assert {outcome for outcome, _ in told.values()} <= {"accepted", *REASONS}
    slow = {name: seconds for name, (_, seconds) in told.items() if seconds > 1}
    assert not slow, slow
    return Counter(outcome for outcome, _ in told.values())


def test_headers_of_any_numbers_are_refused_or_read_in_a_second_and_a_gigabyte(tmp_path):
    tally = check_headers(list(fuzzed_headers(HEAD, 3)), tmp_path)
    assert {"accepted", "too_large", "truncated", "undecodable"} <= set(tally)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_headers_of_any_numbers_at_every_byte(tmp_path):
    tally = check_headers(list(fuzzed_headers(512, 1)), tmp_path)
    assert min(tally["accepted"], tally["too_large"]) > 500


# ---- mutations


def seeds_by_format():
    every = many_formats()
    turned, cmyk = encoded(photo(), "JPEG", exif=exif(6)), encoded(photo().convert("CMYK"), "JPEG")
    animated = {
        kind: encoded(photo(), kind, save_all=True, append_images=[photo(seed=1)])
        for kind in ("PNG", "WEBP", "GIF")
    }
    big = encoded(photo(), "TIFF", big_tiff=True)
    grey = encoded(photo().convert("L"), "BMP")
    return {
        "JPEG": [*KEPT.values(), every["JPEG progressive"], every["MPO"], turned, lossless_jpeg(), cmyk],
        "PNG": [*(encoded(photo().convert(mode), "PNG") for mode in ("L", "RGBA", "P")), animated["PNG"]],
        "WEBP": [every["WEBP"], encoded(photo(), "WEBP", lossless=True), animated["WEBP"]],
        "GIF": [every["GIF"], animated["GIF"]],
        "TIFF": [*(every[name] for name in every if name.startswith("TIFF")), big],
        "BMP, AVIF": [grey, every["BMP"], *([every["AVIF"]] if "AVIF" in every else [])],
    }


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("format", list(seeds_by_format()))
def test_5000_mutated_files_of_a_format_end_no_process_and_what_is_accepted_decodes(format, tmp_path):
    tensorflow = pytest.importorskip("tensorflow")
    seeds, random = seeds_by_format()[format], np.random.default_rng(len(format))
    images = [(str(number), mutated(seeds[number % len(seeds)], random)) for number in range(5000)]
    told, accepted = in_a_gigabyte(images, tmp_path)
    assert len(told) == 5000
    assert max(seconds for _, seconds in told.values()) < 2
    assert 100 < len(accepted) < 4900
    for jpeg, width, height in accepted.values():
        assert tensorflow.io.decode_jpeg(jpeg, channels=3).shape == (height, width, 3)
    assert Image.MAX_IMAGE_PIXELS is not None
