"""The body of a request: multipart/form-data (RFC 7578, RFC 2046), read as it arrives.

anything                    a preamble, which is skipped
--edge                      a part: headers, an empty line, bytes
Content-Disposition: form-data; name="images"; filename="front.jpg"

…                           a photo, with a file name or without; in memory up to 1 MiB, then on the disk
--edge
Content-Disposition: form-data; name="product_id"

mug-7                       a text
--edge--                    the end; a body without it was cut off
"""

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from tempfile import SpooledTemporaryFile
from typing import BinaryIO, cast

from fastapi import HTTPException, Request
from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect

MAX_PHOTOS = 16  # of one product
IN_MEMORY = 2**20  # bytes of a photo; a larger one is kept on the disk
MAX_NAME = 2**10  # bytes of a text that was sent for a photo: mostly its file name


@dataclass(frozen=True)
class Fields:
    """What a form may hold, beside photos in the field images."""

    longest: Mapping[str, int]  # name of a text → bytes that it may have
    expected: str  # what an error says of it: what was expected; what to do next
    needs_photos: bool = True
    no_others: bool = False  # other fields are refused, else they are skipped


@dataclass
class Form:
    """The content of a request."""

    photos: list[BinaryIO] = field(default_factory=list)
    texts: dict[str, str] = field(default_factory=dict)

    def close(self) -> None:
        """Closes the photos, which removes those on the disk."""
        for photo in self.photos:
            photo.close()


async def read_form(request: Request, fields: Fields) -> Form:
    """Reads the photos and the texts.

    Raises:
        HTTPException: 400 where the form is damaged, 413 with too much in it, 422 without needed photos.
    """
    kind, options = parse_options_header(request.headers.get("content-type"))
    if kind != b"multipart/form-data":
        raise HTTPException(422, f"no form of photos; {fields.expected}")
    if not options.get(b"boundary"):
        raise HTTPException(400, f"no boundary in Content-Type; {fields.expected}")
    form = Form()
    try:
        reader = _FormReader(options[b"boundary"], form, fields)
        await reader.read(request.stream())
        reader.require_photos()
    except BaseException as error:
        form.close()
        if isinstance(error, FormParserError):
            raise HTTPException(400, f"damaged form: {error}; {fields.expected}") from error
        if isinstance(error, ClientDisconnect):
            raise HTTPException(400, "the client has closed the connection") from error
        raise
    return form


class _FormReader:
    """Reads the parts of a body one after the other into a form."""

    def __init__(self, boundary: bytes, form: Form, fields: Fields) -> None:
        self._form, self._fields = form, fields
        self._photos = 0  # received; of too many, only the first are kept
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
        """Reads the whole body, in a thread: writing to the disk would keep other requests waiting."""
        async for data in stream:
            if data:
                await run_in_threadpool(self._take, data)

    def require_photos(self) -> None:
        """Raises an HTTPException when the body was cut off, or holds too many photos, or not the needed."""
        if not self._ended:
            raise HTTPException(400, f"the form ends before its last boundary; {self._fields.expected}")
        if self._photos > MAX_PHOTOS:
            detail = f"{self._photos} photos; expected {MAX_PHOTOS} at most; leave some out"
            raise HTTPException(413, detail)
        if self._fields.needs_photos and not self._photos:
            raise HTTPException(422, f"no photo in the field images; {self._fields.expected}")

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

    def _on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._part.header += data[start:end]

    def _on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._part.value += data[start:end]

    def _on_header_end(self) -> None:
        self._part.end_header()

    def _on_headers_finished(self) -> None:
        part = self._part
        if part.name == b"images":
            self._photos += 1
            if self._photos <= MAX_PHOTOS:
                part.photo = cast(BinaryIO, SpooledTemporaryFile(IN_MEMORY))  # noqa: SIM115
                self._form.photos.append(part.photo)
            return
        part.wanted = next((name for name in self._fields.longest if name.encode() == part.name), None)
        if part.wanted and part.file_name is not None:
            raise HTTPException(422, f"{part.wanted}: a file, not a text; {self._fields.expected}")
        if not part.wanted and self._fields.no_others:
            raise HTTPException(
                422, f"{_decoded(part.name)[:100]!r}: no field of this form; {self._fields.expected}"
            )

    def _on_part_data(self, data: bytes, start: int, end: int) -> None:
        part = self._part
        if part.photo is not None:
            part.photo.write(data[start:end])
        elif part.wanted:
            part.text += data[start:end]
            if len(part.text) > self._fields.longest[part.wanted]:
                raise too_long(part.wanted, self._fields.longest[part.wanted])

    def _on_part_end(self) -> None:
        part = self._part
        if part.wanted:
            self._form.texts[part.wanted] = _decoded(part.text)
        if part.photo is None:
            return
        size = part.photo.tell()
        part.photo.seek(0)
        if part.file_name is None and size <= MAX_NAME and _is_text(part.photo.read()):
            raise HTTPException(422, f"images: a text, not a file; {self._fields.expected}")
        part.photo.seek(0)
        if part.file_name == b"" and not size:  # a browser's form in which no file was chosen
            self._photos -= 1
            self._form.photos.pop().close()

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
    photo: BinaryIO | None = None

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
