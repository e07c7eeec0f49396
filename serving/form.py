"""The body of a request: multipart/form-data (RFC 7578, RFC 2046), read as it arrives.

anything                    a preamble, which is skipped
--edge                      a part: headers, an empty line, bytes
Content-Disposition: form-data; name="images"; filename="front.jpg"

…                           a photo, with a file name or without; in memory up to 1 MiB, then on the disk,
                            where all photos of a request are in one file, one after the other
--edge
Content-Disposition: form-data; name="product_id"

mug-7                       a text
--edge--                    the end; a body without it was cut off

Several products have numbers, from 0 on without gaps, in any order: images.0, product_id.0, images.1, …
"""

import io
import os
import re
import threading
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from tempfile import TemporaryFile
from typing import IO, BinaryIO, cast

from fastapi import HTTPException, Request
from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect

from serving.problems import GONE

MAX_PHOTOS = 16  # of one product
MAX_PRODUCTS = 64  # of one request
MAX_PARTS = 2_048  # of one form: 64 products of 16 photos and two texts have 1,152; each costs 30 µs
IN_MEMORY = 2**20  # bytes of a photo; a larger one is kept on the disk
ALL_IN_MEMORY = 2**28  # bytes of all photos of all requests; those that come then are kept on the disk
MAX_NAME = 2**10  # bytes of a text that was sent for a photo: mostly its file name
NUMBER = re.compile(rb"0|[1-9][0-9]*")
NO_GAPS = "expected products with numbers 0, 1, 2, … without gaps, each with photos; number them so"


@dataclass(frozen=True)
class Fields:
    """What a form may hold, beside photos in the field images."""

    longest: Mapping[str, int]  # name of a text → bytes that it may have
    expected: str  # what an error says of it: what was expected; what to do next
    needs_photos: bool = True
    no_others: bool = False  # other fields are refused, else they are skipped
    several: bool = False  # products, with numbers


@dataclass
class Sent:
    """What was sent of one product."""

    photos: list["Photo"] = field(default_factory=list)
    texts: dict[str, str] = field(default_factory=dict)

    @property
    def files(self) -> list[BinaryIO]:
        """The photos, to be read from their beginning."""
        return [photo.file for photo in self.photos]


@dataclass
class Form:
    """The content of a request."""

    products: list[Sent] = field(default_factory=list)  # exactly one where they have no numbers
    numbered: bool = False
    spool: "Spool | None" = None  # of the photos on the disk

    def close(self) -> None:
        """Closes the photos, and removes those on the disk."""
        for product in self.products:
            for photo in product.photos:
                photo.close()
        if self.spool:
            self.spool.close()


class _Memory:
    """The bytes of all photos that are in memory; thread-safe."""

    def __init__(self) -> None:
        self._lock, self.used = threading.Lock(), 0

    def take(self, count: int) -> bool:
        """Takes so many bytes where they are left."""
        with self._lock:
            if self.used + count > ALL_IN_MEMORY:
                return False
            self.used += count
            return True

    def give(self, count: int) -> None:
        with self._lock:
            self.used -= count


MEMORY = _Memory()


class Spool:
    """The photos of one request that are on the disk: one file, opened with the first of them."""

    def __init__(self) -> None:
        self._lock, self._file = threading.Lock(), cast("IO[bytes] | None", None)
        self.size = 0  # bytes

    def write(self, data: bytes) -> None:
        """Adds bytes at the end."""
        if self._file is None:
            self._file = TemporaryFile(buffering=0)  # noqa: SIM115
        left = memoryview(data)
        while left:
            left = left[self._file.write(left) :]
        self.size += len(data)

    def read(self, at: int, count: int) -> bytes:
        """Returns bytes from a place on.

        Raises:
            ValueError: the request has ended.
        """
        with self._lock:  # nothing is read by the number of a file that was closed meanwhile
            if self._file is None:
                raise ValueError("read of a closed file")
            return os.pread(self._file.fileno(), count, at)

    def close(self) -> None:
        """Removes the file."""
        with self._lock:
            if self._file:
                self._file.close()


class _Piece(io.RawIOBase):
    """A photo in a spool, as a file."""

    def __init__(self, spool: Spool) -> None:
        self._spool, self._begin, self._at = spool, spool.size, 0
        self.size = 0  # bytes

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        if self.closed:
            raise ValueError("seek of a closed file")
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self.size}[whence]
        self._at = max(base + offset, 0)
        return self._at

    def readinto(self, buffer: "memoryview[int]") -> int:  # type: ignore[override]
        count = max(min(len(buffer), self.size - self._at), 0)
        data = self._spool.read(self._begin + self._at, count)
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)

    def write(self, data: bytes) -> int:  # type: ignore[override]
        """Adds bytes; nothing else may come into the spool until the photo is whole."""
        self._spool.write(data)
        self.size += len(data)
        return len(data)


class Photo:
    """A photo that was sent, in memory or on the disk."""

    def __init__(self, spool: Spool) -> None:
        """Holds nothing yet.

        Args:
            spool: of the request.
        """
        self.file: BinaryIO = io.BytesIO()
        self.size = 0  # bytes
        self._spool = spool
        self._held = 0  # bytes in memory
        self.on_disk = False

    def write(self, data: bytes) -> None:
        """Adds bytes; beyond IN_MEMORY, or when others have used the memory, all of them go to the disk."""
        self.size += len(data)
        if not self.on_disk and (self.size > IN_MEMORY or not MEMORY.take(len(data))):
            before = cast(io.BytesIO, self.file).getvalue()
            self.file, self.on_disk = cast(BinaryIO, _Piece(self._spool)), True
            self.file.write(before)
            self._give_back()
        if not self.on_disk:
            self._held += len(data)
        self.file.write(data)

    def close(self) -> None:
        """Removes it from the memory."""
        self.file.close()
        self._give_back()

    def _give_back(self) -> None:
        MEMORY.give(self._held)
        self._held = 0


async def read_form(request: Request, fields: Fields) -> Form:
    """Reads the photos and the texts.

    Raises:
        HTTPException: 400 where the form is damaged, 413 with too much in it, 415 where it is none, 422
            without needed photos or with wrong numbers.
    """
    kind, options = parse_options_header(request.headers.get("content-type"))
    if kind != b"multipart/form-data":
        raise HTTPException(415, f"no form of photos; {fields.expected}", {"Accept": "multipart/form-data"})
    if not options.get(b"boundary"):
        raise HTTPException(400, f"no boundary in Content-Type; {fields.expected}")
    reader = None
    try:
        reader = _FormReader(options[b"boundary"], fields)
        await reader.read(request.stream())
        return reader.form()
    except BaseException as error:
        if reader:
            reader.close()
        if isinstance(error, FormParserError):
            raise HTTPException(400, f"damaged form: {error}; {fields.expected}") from error
        if isinstance(error, ClientDisconnect):
            raise left() from error
        raise


def left() -> HTTPException:
    """Returns the response that nobody gets."""
    return HTTPException(GONE, "the client has closed the connection; expected it to wait; send it again")


class _FormReader:
    """Reads the parts of a body one after the other into a form."""

    def __init__(self, boundary: bytes, fields: Fields) -> None:
        self._fields = fields
        self._products: dict[int, Sent] = {}
        self._spool = Spool()
        self._numbered: bool | None = None  # None: no part that counts has come
        self._parts = self._received = 0  # parts, bytes
        self._edge = b"\r\n--" + boundary
        self._before = b"\r\n"  # the last bytes of the preamble; an edge at the very beginning is one, too
        self._begun = self._ended = False
        self._part = _Part()
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._on_part_begin,
                "on_header_field": self._on_header_field,
                "on_header_value": self._on_header_value,
                "on_header_end": self._on_header_end,
                "on_headers_finished": self._on_headers_finished,
                "on_part_data": self._on_part_data,
                "on_part_end": self._on_part_end,
                "on_end": self._on_end,
            },
        )

    async def read(self, stream: AsyncIterator[bytes]) -> None:
        """Reads the whole body; what may be written to the disk in a thread, or other requests would wait."""
        async for data in stream:
            self._received += len(data)
            if self._received > IN_MEMORY or MEMORY.used + len(data) > ALL_IN_MEMORY:
                await run_in_threadpool(self._take, data)
            elif data:
                self._take(data)

    def form(self) -> Form:
        """Returns what has come.

        Raises:
            HTTPException: 400 where the body was cut off, 422 where photos or products are missing.
        """
        if not self._ended:
            raise HTTPException(400, f"the form ends before its last boundary; {self._fields.expected}")
        if not self._numbered:
            one = self._products.get(0, Sent())
            if self._fields.needs_photos and not one.photos:
                raise HTTPException(422, f"no photo in the field images; {self._fields.expected}")
            return Form([one], spool=self._spool)
        for number in range(max(self._products) + 1):
            if number not in self._products:
                raise HTTPException(
                    422, f"product {number} of {max(self._products) + 1} is missing; {NO_GAPS}"
                )
            if not self._products[number].photos:
                raise HTTPException(422, f"no photo in the field images.{number}; {NO_GAPS}")
        products = [self._products[number] for number in range(len(self._products))]
        return Form(products, numbered=True, spool=self._spool)

    def close(self) -> None:
        """Closes the photos that have come."""
        Form(list(self._products.values()), spool=self._spool).close()

    def _take(self, data: bytes) -> None:
        if not self._begun:
            data = self._before + data
            at = data.find(self._edge)
            if at < 0:
                self._before = data[-len(self._edge) :]
                return
            self._begun, data = True, data[at + 2 :]
        self._parser.write(data)

    # What the parser calls

    def _on_part_begin(self) -> None:
        self._part = _Part()
        self._parts += 1
        if self._parts > MAX_PARTS:
            raise HTTPException(
                413, f"more than {MAX_PARTS:,} parts; expected fewer in one form; send the rest in another"
            )

    def _on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._part.header += data[start:end]

    def _on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._part.value += data[start:end]

    def _on_header_end(self) -> None:
        self._part.end_header()

    def _on_headers_finished(self) -> None:
        part, fields = self._part, self._fields
        name, number = self._name_and_number(part.name)
        if name != b"images" and name.decode("latin-1") not in fields.longest:
            if fields.no_others:
                raise HTTPException(
                    422, f"{_decoded(part.name)[:100]!r}: no field of this form; {fields.expected}"
                )
            return
        product = self._product(part.name, number)
        if name == b"images":
            if len(product.photos) == MAX_PHOTOS:
                detail = f"more than {MAX_PHOTOS} photos of a product"
                raise HTTPException(413, f"{detail}; expected {MAX_PHOTOS} at most; leave some out")
            part.photo = Photo(self._spool)
            product.photos.append(part.photo)
        elif part.file_name is not None:
            raise HTTPException(422, f"{_decoded(part.name)}: a file, not a text; {fields.expected}")
        else:
            part.wanted = name.decode()
        part.product = product

    def _name_and_number(self, whole: bytes) -> tuple[bytes, int | None]:
        """Name and number of a part: images.7 is the photos of product 7; other names have none."""
        name, dot, digits = whole.partition(b".")
        known = name == b"images" or name.decode("latin-1") in self._fields.longest
        if not (self._fields.several and dot and known):
            return whole, None
        if not NUMBER.fullmatch(digits):
            raise HTTPException(422, f"{_decoded(whole)[:100]!r}: no number after the point; {NO_GAPS}")
        if len(digits) > 3 or int(digits) >= MAX_PRODUCTS:
            raise HTTPException(
                413,
                f"{_decoded(whole)[:100]!r}: a product beyond number {MAX_PRODUCTS - 1}; expected at most "
                f"{MAX_PRODUCTS} products in one request; send the others in another one",
            )
        return name, int(digits)

    def _product(self, whole: bytes, number: int | None) -> Sent:
        """The product of a part."""
        if self._numbered is not None and self._numbered != (number is not None):
            raise HTTPException(
                422,
                f"{_decoded(whole)[:100]!r} beside fields {'with' if self._numbered else 'without'} number; "
                "expected images for one product, or images.0, images.1, … for several; use one of both",
            )
        self._numbered = number is not None
        return self._products.setdefault(number or 0, Sent())

    def _on_part_data(self, data: bytes, start: int, end: int) -> None:
        part = self._part
        if part.photo is not None:
            part.photo.write(data[start:end])
        elif part.wanted:
            part.text += data[start:end]
            if len(part.text) > self._fields.longest[part.wanted]:
                raise too_long(_decoded(part.name), self._fields.longest[part.wanted])

    def _on_part_end(self) -> None:
        part = self._part
        if part.wanted and part.product:
            part.product.texts[part.wanted] = _decoded(part.text)
        if part.photo is None or part.product is None:
            return
        file, size = part.photo.file, part.photo.size
        file.seek(0)
        if part.file_name is None and size <= MAX_NAME and _is_text(file.read()):
            raise HTTPException(422, f"{_decoded(part.name)}: a text, not a file; {self._fields.expected}")
        file.seek(0)
        if part.file_name == b"" and not size:  # a browser's form in which no file was chosen
            part.product.photos.pop().close()

    def _on_end(self) -> None:
        self._ended = True


@dataclass
class _Part:
    """The part that is being read."""

    header: bytearray = field(default_factory=bytearray)
    value: bytearray = field(default_factory=bytearray)
    name: bytes = b""
    file_name: bytes | None = None  # None: not given; a photo needs none
    wanted: str | None = None  # name of a text that is expected
    text: bytearray = field(default_factory=bytearray)
    photo: Photo | None = None
    product: Sent | None = None  # that it is a part of; None: it is skipped

    def end_header(self) -> None:
        """Keeps name and file name of a finished Content-Disposition."""
        if self.header.lower() == b"content-disposition":
            _, options = parse_options_header(bytes(self.value))
            self.name, self.file_name = options.get(b"name", b""), options.get(b"filename")
        self.header, self.value = bytearray(), bytearray()


def too_long(name: str, longest: int) -> HTTPException:
    """The refusal of a text with more than so many bytes."""
    size = f"{longest >> 20} MiB" if longest >= 2**20 else f"{longest:,} bytes"
    return HTTPException(413, f"{name}: more than {size}; expected less; give a shorter one")


def _decoded(text: bytes | bytearray) -> str:
    try:
        return text.decode()
    except UnicodeDecodeError:  # as old browsers send it
        return text.decode("latin-1")


def _is_text(data: bytes) -> bool:
    """Whether it is printable text, which no photo is."""
    try:
        return data.decode().strip().isprintable()
    except UnicodeDecodeError:
        return False
