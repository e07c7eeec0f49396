"""Decode processes: the same pixels and refusals as in this process, and only they are harmed by a file."""

import hashlib
import io
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np
import psutil
import pytest
from conftest import Photo
from PIL import Image
from test_hostile_images import MORE
from test_images import HOSTILE, encoded, many_formats

from features.engines.decoded import decoded
from features.images.normalise import normalise
from serving.decode_process import GROWN
from serving.decoding import PIECE, DecodedPhoto, DecodeLimits, DecodeProcess, PhotoGone

LONG = 60.0  # s, on a computer that has much else to do
SIZE = 32  # px


@pytest.fixture(scope="module")
def process() -> Iterator[DecodeProcess]:
    """One process for all tests that do not end it."""
    started = DecodeProcess(DecodeLimits(seconds=LONG))
    yield started
    started.close()


def read(process: DecodeProcess, data: bytes) -> DecodedPhoto:
    return process.decode(io.BytesIO(data), [SIZE])


def assert_usable(process: DecodeProcess, photo: bytes) -> None:
    assert_equal(read(process, photo), photo, [SIZE])


def assert_equal(found: DecodedPhoto, data: bytes, sizes: list[int]) -> None:
    """The pixels in each size are those of a photo that is read here."""
    assert found.pixels is not None and found.refused is None
    assert list(found.pixels) == sizes
    for pixels, expected in zip(found.pixels.values(), decoded(normalise(data).jpeg, sizes), strict=True):
        assert np.array_equal(pixels, expected)


def test_pixels_and_digest_are_those_of_a_photo_read_here(process: DecodeProcess, photo: Photo) -> None:
    for data in (photo(1), photo(2, 300, 20), photo(3, mode="L"), *many_formats().values()):
        found = read(process, data)
        assert_equal(found, data, [SIZE])
        assert found.digest == hashlib.sha256(data).digest()


def test_a_photo_is_decoded_once_for_several_sizes_and_the_next_one_for_others(
    process: DecodeProcess, photo: Photo
) -> None:
    for sizes in ([SIZE, 700, 48], [64], [1024, SIZE]):  # 700 px and more are larger than the socket's buffer
        data = photo(len(sizes), 90, 60)
        assert_equal(process.decode(io.BytesIO(data), sizes), data, sizes)
    refused = process.decode(io.BytesIO(b"no photo"), [SIZE, 48])
    assert refused.pixels is None and refused.refused and refused.refused.reason == "not_an_image"


def test_hostile_files_have_the_outcome_that_they_have_in_ingest(process: DecodeProcess) -> None:
    files = {name: (reason, make()) for name, (reason, make) in HOSTILE.items()} | MORE
    del files["APNG, a frame of 2^31"]  # refused or accepted, by the version of Pillow
    found = {name: read(process, data).refused for name, (_, data) in files.items()}
    outcomes = {name: refused.reason if refused else "accepted" for name, refused in found.items()}
    assert outcomes == {name: reason for name, (reason, _) in files.items()}
    assert len(found) > 30


def test_the_memory_of_a_large_picture_is_free_again_afterwards(process: DecodeProcess, photo: Photo) -> None:
    assert_usable(process, photo(1))
    before = psutil.Process(process.pid).memory_info().rss
    for format in ("JPEG", "PNG", "TIFF"):
        assert read(process, encoded(Image.new("RGB", (3000, 2000), "teal"), format)).pixels is not None
    assert_usable(process, photo(1))
    assert psutil.Process(process.pid).memory_info().rss < before + 2 * GROWN  # 18 MB of pixels, and copies


def test_a_picture_that_takes_too_much_memory_is_refused_and_its_process_replaced(photo: Photo) -> None:
    process = DecodeProcess(DecodeLimits(seconds=LONG, memory=50_000_000))
    try:
        assert_usable(process, photo(1))
        before = process.pid
        refused = read(process, encoded(Image.new("RGB", (5000, 4000), "teal"), "PNG")).refused
        assert str(refused) == "too_large: decoding takes more memory than a photo may"
        assert_usable(process, photo(1))
        assert process.pid != before
    finally:
        process.close()


def test_a_photo_that_takes_too_long_ends_its_process_and_no_other_photo_fails(photo: Photo) -> None:
    process = DecodeProcess(DecodeLimits(seconds=0.5))
    try:
        process.wait_ready()
        slow = psutil.Process(process.pid)
        slow.suspend()
        found = read(process, photo(1))
        assert str(found.refused) == "undecodable: decoding took over 0.5 s"
        assert not slow.is_running()
        process.wait_ready()
        assert process.pid != slow.pid
    finally:
        process.close()


def test_a_photo_that_ends_its_process_is_refused_and_the_next_one_is_read(photo: Photo) -> None:
    process = DecodeProcess(DecodeLimits(seconds=LONG))
    try:
        process.wait_ready()
        crashing = psutil.Process(process.pid)
        crashing.suspend()
        threading.Timer(0.2, crashing.kill).start()
        assert str(read(process, photo(1)).refused) == "undecodable: the process that decoded it has ended"
        assert_usable(process, photo(1))
    finally:
        process.close()


def test_a_process_that_has_ended_between_two_photos_costs_no_photo(photo: Photo) -> None:
    process = DecodeProcess(DecodeLimits(seconds=LONG))
    try:
        process.wait_ready()
        ended = psutil.Process(process.pid)
        ended.kill()
        psutil.wait_procs([ended], LONG)
        assert_usable(process, photo(1))
    finally:
        process.close()


class Breaking(io.BytesIO):
    """A file that is closed while it is read."""

    def read(self, size: int | None = -1, /) -> bytes:
        if self.tell():
            raise ValueError("I/O operation on closed file")
        return super().read(size)


class Noting(io.BytesIO):
    """A file that notes how much of it is read at a time."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.sizes: list[int] = []

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(size)
        self.sizes.append(len(data))
        return data


@pytest.mark.parametrize("kind", ["closed before", "closed meanwhile"])
def test_a_photo_that_nobody_holds_any_more_leaves_the_process_as_it_was(
    process: DecodeProcess, photo: Photo, kind: str
) -> None:
    process.wait_ready()
    before, gone = process.pid, Breaking(bytes(3 * PIECE))
    if kind == "closed before":
        gone.close()
    with pytest.raises(PhotoGone):
        process.decode(gone, [SIZE, 48])
    assert_usable(process, photo(1))
    assert process.pid == before


def test_a_large_photo_is_never_whole_in_this_process(process: DecodeProcess) -> None:
    data = encoded(Image.new("RGB", (1200, 900), "teal"), "BMP")
    file = Noting(data)
    found = process.decode(file, [SIZE])
    assert found.pixels is not None and found.digest == hashlib.sha256(data).digest()
    assert max(file.sizes) <= PIECE < len(data) == sum(file.sizes)


def test_a_photo_is_read_from_its_beginning(process: DecodeProcess, photo: Photo) -> None:
    file: BinaryIO = io.BytesIO(photo(1))
    file.seek(100)
    assert_equal(process.decode(file, [SIZE]), photo(1), [SIZE])


def test_signals_for_the_service_do_not_end_its_processes(process: DecodeProcess, photo: Photo) -> None:
    process.wait_ready()
    before = process.pid
    assert before
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(before, number)
    assert_usable(process, photo(1))
    assert process.pid == before


def test_a_process_imports_neither_tensorflow_nor_pandas() -> None:
    program = "import sys, serving.decode_process; print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in modules.stdout.split()}
    assert "simplejpeg" in loaded
    assert not loaded & {"tensorflow", "keras", "pandas", "pyarrow", "scipy", "fastapi", "openvino"}


def test_a_killed_service_leaves_no_process() -> None:
    program = (
        "import time; from serving.decoding import *; p = DecodeProcess(DecodeLimits()); p.wait_ready(); "
        "print(p.pid, flush=True); time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as service:
        assert service.stdout
        decoding = psutil.Process(int(service.stdout.readline()))
        service.kill()
    gone, _ = psutil.wait_procs([decoding], LONG)
    assert gone == [decoding]
