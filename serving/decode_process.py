"""A process that decodes photos for the service, and can be killed: `python -m serving.decode_process FD …`.

    request   how many sizes, and length of the photo; the sizes (px); then its bytes
    response  kind, whether the process ends now, sha256 of the photo, length; then
              pixels (size, size, 3) uint8 of each size   or   reason and detail of the refusal

It imports what decoding needs, neither TensorFlow nor pandas. Its address space is limited to what it has
after its imports and `memory` more, so the worst picture ends in a MemoryError here, never in a machine
without memory. It ends when its socket is closed, which the system does when the service dies; with an alarm
where a decoder does not return meanwhile; and after a photo that has left it larger, so that its memory is
free again.
"""

import hashlib
import os
import resource
import signal
import socket
import struct
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from features.engines.decoded import decoded
from features.images.normalise import normalise
from features.images.refusal import LIMITS, Refused
from features.memory import give_back

REQUEST = struct.Struct("<IQ")  # how many sizes follow, in px, SIZE each; length in bytes
SIZE = "I"
RESPONSE = struct.Struct("<B?32sI")  # kind; the process ends now; sha256; length in bytes
READY, PIXELS, REFUSED = 0, 1, 2
GROWN = 32 << 20  # bytes of resident memory above the start; a process that is larger is replaced
PAGE = os.sysconf("SC_PAGE_SIZE")


def main(descriptor: int, memory: int, seconds: float) -> None:
    """Decodes what arrives until the socket is closed.

    Args:
        descriptor: of the connected socket.
        memory: bytes of address space beside what the imports take.
        seconds: a photo that takes longer ends the process.
    """
    for name in (signal.SIGINT, signal.SIGTERM):  # the service decides when its processes end
        signal.signal(name, signal.SIG_IGN)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # decoders print warnings about damaged files
    connection = socket.socket(fileno=descriptor)
    addresses, resident = _memory()
    limit = addresses + memory
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with connection, connection.makefile("rb") as requests:
        connection.sendall(RESPONSE.pack(READY, False, bytes(32), 0))
        while head := requests.read(REQUEST.size):
            signal.setitimer(signal.ITIMER_REAL, seconds)
            count, length = REQUEST.unpack(head)
            sizes = struct.unpack(f"<{count}{SIZE}", requests.read(count * struct.calcsize(SIZE)))
            ends = _respond(connection, requests, sizes, length, resident)
            signal.setitimer(signal.ITIMER_REAL, 0)
            if ends:
                break


def _respond(
    connection: socket.socket, requests: BinaryIO, sizes: Sequence[int], length: int, resident: int
) -> bool:
    """Reads and decodes one photo and sends the response; returns whether the process ends now."""
    kind, digest, payload, ends = _decode(requests, sizes, length)
    ends = ends or _has_grown(resident)
    connection.sendall(RESPONSE.pack(kind, ends, digest, sum(map(len, payload))))
    for part in payload:
        connection.sendall(part)
    return ends


def _decode(
    requests: BinaryIO, sizes: Sequence[int], length: int
) -> tuple[int, bytes, list[bytes] | list[memoryview], bool]:
    """Returns kind, sha256, pixels or refusal, and whether memory ran out; nothing else stays in memory."""
    digest = bytes(32)
    try:
        data = requests.read(length)
        digest = hashlib.sha256(data).digest()
        jpeg = normalise(data, LIMITS).jpeg
        del data
        return PIXELS, digest, [pixels.data.cast("B") for pixels in decoded(jpeg, sizes)], False
    except Refused as refused:
        return REFUSED, digest, [_text(refused)], False
    except MemoryError:
        detail = "decoding takes more memory than a photo may"
        return REFUSED, digest, [_text(Refused("too_large", detail))], True
    except ValueError as error:
        return REFUSED, digest, [_text(Refused("undecodable", str(error)))], False


def _text(refused: Refused) -> bytes:
    return f"{refused.reason}\n{refused.detail}".encode()


def _memory() -> tuple[int, int]:
    """Bytes of this process: address space, resident."""
    size, resident = Path("/proc/self/statm").read_text().split()[:2]
    return int(size) * PAGE, int(resident) * PAGE


def _has_grown(before: int) -> bool:
    """Whether more memory than GROWN is still used once the free part is given back."""
    if _memory()[1] - before <= GROWN:
        return False
    give_back()
    return _memory()[1] - before > GROWN


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]))
