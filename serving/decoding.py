"""Decoding of photos in processes of their own, which a hostile file can only end: `DecodeProcess`.

    photo ─► read piece by piece ─► socket ─► decode_process.py ─► sha256, pixels of each size or refusal
                                      │
                                      └─ no response in time, or none at all: killed, replaced, and refused

One thread uses one process. Starting a process takes half a second of processor time, so one that has to be
replaced is started again by its thread when the next photo arrives, while the other processes go on. There is
no spare: what ends a process has kept it busy for longer than a start takes.
"""

import os
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np

from features.errors import ShelfmarkError
from features.images.refusal import Refused
from serving.decode_process import PIXELS, READY, REFUSED, REQUEST, RESPONSE, SIZE

PIECE = 1 << 18  # bytes of a photo in this process at a time
BUFFER = 1 << 20  # bytes of a socket: the pixels of a photo of up to 590 px pass without waiting
START_SECONDS = 60.0  # for a process to start, on a computer that has much else to do
# One thread each: a library's threads reserve address space, tens of megabytes each, which is limited here.
ENVIRONMENT = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"}


@dataclass(frozen=True)
class DecodeLimits:
    """What a photo may cost."""

    seconds: float = 5.0  # on the clock
    # Bytes of address space: what decoding may take (MAX_MEMORY of features/images/refusal.py and 100 MB),
    # and a file of the largest size.
    memory: int = 470_000_000


@dataclass(frozen=True)
class DecodedPhoto:
    """What is known of a photo: its pixels, or why it is refused."""

    digest: bytes | None  # sha256; None: the process has ended before it said so
    pixels: Mapping[int, np.ndarray] | None  # by size in px: (size, size, 3) uint8
    refused: Refused | None


class PhotoGone(Exception):
    """The photo cannot be read any more: whoever sent it has gone."""


class DecodeProcess:
    """One process that decodes; for one thread. It is started at once and again where it has ended."""

    def __init__(self, limits: DecodeLimits) -> None:
        """Begins to start the process, without waiting for it."""
        self._limits = limits
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: socket.socket | None = None
        self._is_ready = self._is_killed = False
        self._begin()

    @property
    def pid(self) -> int | None:
        """Of the process; None: there is none now."""
        return self._process.pid if self._process else None

    def wait_ready(self) -> None:
        """Starts the process if there is none, and waits until it can decode.

        Raises:
            ShelfmarkError: it does not start.
        """
        if self._process and self._process.poll() is not None:
            self.close()  # it has ended between two photos, for want of memory for instance
        if self._process is None:
            self._begin()
        if self._is_ready:
            return
        assert self._connection is not None
        try:
            self._connection.settimeout(START_SECONDS)
            head = RESPONSE.unpack(self._receive(RESPONSE.size, time.monotonic() + START_SECONDS))
            self._is_ready = head[0] == READY
        except OSError as error:
            self.close()
            raise ShelfmarkError(
                "a process that decodes photos does not start; expected memory and processes for it; see the "
                "lines above, and the limits of this service's user and container"
            ) from error

    def decode(self, photo: BinaryIO, sizes: Sequence[int]) -> DecodedPhoto:
        """Decodes a photo from its beginning, once for all sizes.

        Args:
            photo: seekable.
            sizes: px, to which it is resized; different ones.

        Raises:
            PhotoGone: the photo cannot be read.
            ShelfmarkError: no process starts.
        """
        self.wait_ready()
        began = time.monotonic()
        deadline = began + self._limits.seconds
        try:
            self._send(photo, sizes, deadline)
            kind, ends, digest, length = RESPONSE.unpack(self._receive(RESPONSE.size, deadline))
            payload = self._receive(length, deadline)
        except TimeoutError:
            self.close()
            detail = f"decoding took over {self._limits.seconds:g} s"
            return DecodedPhoto(None, None, Refused("undecodable", detail))
        except OSError:
            self.close()
            return DecodedPhoto(None, None, Refused("undecodable", "the process that decoded it has ended"))
        if ends:
            self.close()
        if kind == PIXELS:
            return DecodedPhoto(digest, _by_size(payload, sizes), None)
        assert kind == REFUSED
        reason, _, detail = payload.decode().partition("\n")
        return DecodedPhoto(digest, None, Refused(reason, detail))

    def kill(self) -> None:
        """Ends the process for good, from any thread; the thread that uses it closes it."""
        self._is_killed = True
        if process := self._process:
            process.kill()

    def close(self) -> None:
        """Ends the process, whatever it does."""
        process, connection = self._process, self._connection
        self._process = self._connection = None
        self._is_ready = False
        if connection:
            connection.close()
        if process:
            process.kill()
            process.wait()

    def _begin(self) -> None:
        if self._is_killed:
            raise ShelfmarkError("decoding has ended; expected no more photos; start the service again")
        ours, theirs = socket.socketpair()
        for end in (ours, theirs):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER)
        arguments = (theirs.fileno(), self._limits.memory, self._limits.seconds + 1)
        paths = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}  # it imports what this process would
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "serving.decode_process", *map(str, arguments)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                env=os.environ | paths | ENVIRONMENT,
            )
        except OSError as error:
            ours.close()
            raise ShelfmarkError(
                f"a process that decodes photos does not start ({error.strerror}); expected memory and "
                "processes for it; see the limits of this service's user and container"
            ) from error
        finally:
            theirs.close()
        self._connection = ours

    def _send(self, photo: BinaryIO, sizes: Sequence[int], deadline: float) -> None:
        """Sends a photo; what cannot be read of it as zeros, so that the process is ready for the next."""
        try:
            length = photo.seek(0, os.SEEK_END)
            photo.seek(0)
        except (OSError, ValueError) as error:  # ValueError: it is closed
            raise PhotoGone from error
        left, gone = length, None
        piece = REQUEST.pack(len(sizes), length) + struct.pack(f"<{len(sizes)}{SIZE}", *sizes)
        while piece:
            self._send_piece(piece, deadline)
            try:
                piece = photo.read(min(PIECE, left)) if gone is None else b""
            except (OSError, ValueError) as error:
                gone, piece = error, b""
            left -= len(piece)
        if left:
            for start in range(0, left, PIECE):
                self._send_piece(bytes(min(PIECE, left - start)), deadline)
            *_, rest = RESPONSE.unpack(self._receive(RESPONSE.size, deadline))
            self._receive(rest, deadline)
            raise PhotoGone from gone

    def _send_piece(self, piece: bytes, deadline: float) -> None:
        assert self._connection is not None
        self._connection.settimeout(max(deadline - time.monotonic(), 1e-3))
        self._connection.sendall(piece)

    def _receive(self, length: int, deadline: float) -> bytearray:
        """Receives so many bytes.

        Raises:
            TimeoutError: they are not there in time. OSError: the process has ended.
        """
        assert self._connection is not None
        received = bytearray(length)
        view, at = memoryview(received), 0
        while at < length:
            self._connection.settimeout(max(deadline - time.monotonic(), 1e-3))
            count = self._connection.recv_into(view[at:])
            if not count:
                raise ConnectionResetError("the process has ended")
            at += count
        return received


def _by_size(payload: bytearray, sizes: Sequence[int]) -> dict[int, np.ndarray]:
    """The pixels of each size, which lie one after the other."""
    found, start = {}, 0
    for size in sizes:
        count = size * size * 3
        found[size] = np.frombuffer(payload, np.uint8, count, start).reshape(size, size, 3)
        start += count
    return found
