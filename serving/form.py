"""multipart/form-data with the photos of one product (RFC 7578), read while it comes.

    images        files, 1 to 16; a part without a filename is one, too, unless it is text
    product_id    a text, optional

Starlette's own reader takes a part without a filename for a text of at most 1 MB, and no preamble.
"""

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from tempfile import SpooledTemporaryFile
from typing import IO, Any

from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import MultipartParser, parse_options_header

IN_MEMORY = 1 << 20  # bytes of a photo; larger ones wait on the disk
EXPECTED = (
    "expected multipart/form-data with the photos of one product as files in the field images; "
    "send it as curl -F images=@front.jpg -F images=@back.jpg does"
)


class BadForm(Exception):
    """A form that cannot be used.

    Attributes:
        status: of HTTP: 400 where it is damaged, 422 where something else was expected.
        detail: what happened, what was expected, what to do next.
    """

    def __init__(self, status: int, reason: str) -> None:
        self.status, self.detail = status, f"{reason}; {EXPECTED}"
        super().__init__(self.detail)


@dataclass
class Form:
    """The fields of the service; `close` when done."""

    images: list[IO[bytes]] = field(default_factory=list)
    product_id: str | None = None  # None: not given, or empty

    def close(self) -> None:
        """Removes the photos that wait on the disk."""
        for image in self.images:
            image.close()


def _spooled() -> IO[bytes]:
    return SpooledTemporaryFile(IN_MEMORY)


@dataclass
class _Part:
    headers: dict[bytes, bytes] = field(default_factory=dict)  # by lower-case names
    file: IO[bytes] = field(default_factory=_spooled)


async def read_form(content_type: str, body: AsyncIterator[bytes]) -> Form:
    """Reads the fields of a request.

    Args:
        content_type: the request's header.
        body: its pieces; whoever gives them bounds their sum.

    Raises:
        BadForm: the form is damaged, or has no photos.
    """
    kind, options = parse_options_header(content_type)
    if kind != b"multipart/form-data":
        raise BadForm(422, "images: Field required")
    if not options.get(b"boundary"):
        raise BadForm(400, "Missing boundary in multipart")
    reader = _Reader(options[b"boundary"])
    try:
        async for piece in body:
            reader.feed(piece)
        return reader.form()
    except MultipartParseError as error:
        raise BadForm(400, str(error).rstrip(".")) from error
    finally:
        reader.close()


class _Reader:
    """The parts of a form, one after the other; what stands before the first boundary is passed over."""

    def __init__(self, boundary: bytes) -> None:
        self._mark = b"--" + boundary
        self._before: bytearray | None = bytearray()
        self._parts: list[_Part] = []
        self._name, self._value, self._ended = bytearray(), bytearray(), False
        callbacks: Any = {
            "on_part_begin": lambda: self._parts.append(_Part()),
            "on_part_data": lambda data, start, end: self._parts[-1].file.write(data[start:end]),
            "on_header_field": lambda data, start, end: self._name.extend(data[start:end]),
            "on_header_value": lambda data, start, end: self._value.extend(data[start:end]),
            "on_header_end": self._end_header,
            "on_end": self._end,
        }
        self._parser = MultipartParser(boundary, callbacks)

    def feed(self, piece: bytes) -> None:
        """The next bytes of the body."""
        if self._before is not None:
            self._before += piece
            at = 0 if self._before.startswith(self._mark) else self._before.find(b"\r\n" + self._mark) + 2
            if at == 1:  # not found
                return
            piece, self._before = bytes(self._before[at:]), None
        self._parser.write(piece)

    def form(self) -> Form:
        """The fields, once the body is over."""
        if not self._ended or not self._parts:
            raise BadForm(400, "the form is cut short or has no part")
        form = Form()
        for part in self._parts:
            _, options = parse_options_header(part.headers.get(b"content-disposition"))
            name, filename = options.get(b"name", b""), options.get(b"filename")
            part.file.seek(0)
            if name == b"product_id":
                if filename is not None:
                    raise BadForm(422, "product_id: a file, not a text")
                form.product_id = part.file.read().decode(errors="replace") or None
            elif name == b"images" and filename != b"":  # "": a browser's form where nothing was chosen
                if filename is None and _is_text(part.file):
                    raise BadForm(422, "images: a text, not a file")
                form.images.append(part.file)
        if not form.images:
            raise BadForm(422, "images: Field required")
        self._parts = [part for part in self._parts if part.file not in form.images]
        return form

    def close(self) -> None:
        """Removes what no form has taken over."""
        for part in self._parts:
            part.file.close()

    def _end_header(self) -> None:
        self._parts[-1].headers[bytes(self._name).lower()] = bytes(self._value)
        self._name.clear()
        self._value.clear()

    def _end(self) -> None:
        self._ended = True


def _is_text(file: IO[bytes]) -> bool:
    """Whether it is UTF-8: no photo in any format is, for they begin with other bytes."""
    data = file.read()
    file.seek(0)
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return b"\0" not in data
