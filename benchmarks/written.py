"""Pictures of written characters: pen strokes of real writers, and faces of fonts with a hand of their own.

    UNIPEN text ── parse_unipen ──► strokes ── draw_strokes ──┐
                                                              ├─► ink ── prepared ──► (28, 28) uint8
    TTF, OTF ── readable_faces ──► faces ── draw_character ───┘

Ink is uint8, 0 paper to 255 full ink. `prepared` does what Čugurović, Nikolić and Novaković do: crop with a
margin of one pixel, Gaussian blur, centred square, bicubic reduction to 28×28.
"""

import gzip
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

SIZE = 28  # px of a prepared picture
CANVAS = 112  # px of the longer side of a drawing
PEN = 9  # px, width of a line on the canvas: about two in the prepared picture
BLUR = 0.5  # px of a prepared picture: standard deviation of the blur, whatever the size of the drawing
CHARACTERS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
READABLE = 0.5  # share of a face's characters whose nearest mean picture is that of the same character
COMMENT = re.compile(r"\.COMMENT\s+(\S+)\s+(\S+)\s+(\S+)")


@dataclass(frozen=True)
class Written:
    """One character by the pen."""

    character: str
    writer: str
    strokes: tuple[np.ndarray, ...]  # each (points, 2) float: x to the right, y upwards


@dataclass(frozen=True)
class Hand:
    """How a drawn writer writes."""

    face: Path
    slant: float  # shift to the right at the top, as a share of the height
    weight: int  # px at half the canvas that lines are wider on each side
    wobble: float  # deviation of the corners of a character, as a share of its size
    noise: float  # deviation of the ink's noise, 0..255


def read_strokes(file: Path) -> list[Written]:
    """Reads a file of UNIPEN text, packed by gzip or not.

    Raises:
        ValueError: no character in it.
    """
    data = file.read_bytes()
    text = (gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data).decode("latin-1")
    found = list(parse_unipen(text))
    if not found:
        raise ValueError(
            f"{file}: no characters; expected lines `.COMMENT character writer number` and strokes"
        )
    return found


def parse_unipen(text: str) -> Iterable[Written]:
    """Returns the characters: each begins with `.COMMENT character writer number`.

    Points are lines of two numbers between `.PEN_DOWN` and `.PEN_UP`; other lines are of no use here. A
    character without a point is left out.

    >>> text = ".COMMENT 1 12 7\\n.PEN_DOWN\\n 5 9\\n 5 0\\n.PEN_UP\\n"
    >>> [(one.character, one.writer, one.strokes[0].tolist()) for one in parse_unipen(text)]
    [('1', '12', [[5.0, 9.0], [5.0, 0.0]])]
    """
    labels: tuple[str, str] | None = None
    strokes: list[list[tuple[float, float]]] = []
    down = False
    for line in [*text.splitlines(), ".COMMENT end end end"]:
        if found := COMMENT.match(line):
            lines = tuple(np.array(stroke, float) for stroke in strokes if stroke)
            if labels and lines:
                yield Written(*labels, lines)
            labels, strokes, down = (found[1], found[2]), [], False
        elif line.startswith(".PEN_DOWN"):
            down = True
            strokes.append([])
        elif line.startswith("."):
            down = False
        elif down and len(point := line.split()) == 2:
            strokes[-1].append((float(point[0]), float(point[1])))


def draw_strokes(strokes: Sequence[np.ndarray]) -> np.ndarray:
    """Returns ink (h, w) uint8: lines with round ends, antialiased; the longer side is CANVAS px."""
    points = np.concatenate(strokes)
    low, span = points.min(0), np.ptp(points, axis=0)
    scale = 2 * (CANVAS - PEN) / max(span.max(), 1)  # twice as large, then reduced: Pillow's lines are jagged
    width, height = (np.ceil(span * scale / 2) * 2 + 2 * PEN).astype(int)
    picture = Image.new("L", (int(width), int(height)))
    pen = ImageDraw.Draw(picture)
    for stroke in strokes:
        x = (stroke[:, 0] - low[0]) * scale + PEN
        y = height - PEN - (stroke[:, 1] - low[1]) * scale
        line = list(zip(x.tolist(), y.tolist(), strict=True))
        pen.line(line, 255, 2 * PEN, joint="curve")
        for px, py in (line[0], line[-1]):
            pen.ellipse((px - PEN, py - PEN, px + PEN, py + PEN), 255)
    return np.asarray(picture.reduce(2))


def prepared(ink: np.ndarray) -> np.ndarray:
    """Returns (28, 28) uint8: cropped with one pixel around, blurred, centred in a square, reduced.

    >>> prepared(np.zeros((40, 30), np.uint8)).max()
    np.uint8(0)
    """
    there = ink > 64
    rows, columns = np.flatnonzero(there.any(1)), np.flatnonzero(there.any(0))
    if not len(rows):
        return np.zeros((SIZE, SIZE), np.uint8)
    cropped = np.pad(ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1], 1)
    side = max(cropped.shape)
    top, left = ((side - length) // 2 for length in cropped.shape)
    around = ((top, side - cropped.shape[0] - top), (left, side - cropped.shape[1] - left))
    # The blur comes before the square in the paper; zeros around it make the order of the two indifferent
    picture = Image.fromarray(np.pad(cropped, around))
    blurred = picture.filter(ImageFilter.GaussianBlur(BLUR * side / SIZE))
    return np.asarray(blurred.resize((SIZE, SIZE), Image.Resampling.BICUBIC))


def readable_faces(folder: Path) -> tuple[list[Path], np.ndarray]:
    """Returns the faces with 62 readable characters, in the order of their names, and their families.

    A face is left out that lacks a character, whose capitals are its small letters, or that is none for
    reading: of its characters, fewer than READABLE resemble the mean of the same character over all faces
    more than the mean of any other. Of faces with the same pictures only the first is taken.

    Returns:
        faces, and (faces,) str, the name of each one's family.
    """
    faces, families, pictures, seen = [], [], [], set()
    for file in sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".ttf", ".otf")):
        drawn = face_pictures(file)
        if drawn is None or drawn[1].tobytes() in seen:
            continue
        seen.add(drawn[1].tobytes())
        faces.append(file)
        families.append(family_of(drawn[0]))
        pictures.append(drawn[1].reshape(len(CHARACTERS), -1).astype(np.float32))
    if not faces:
        return [], np.array([], str)
    rows = np.stack(pictures)
    rows -= rows.mean(2, keepdims=True)
    rows /= np.maximum(np.linalg.norm(rows, axis=2, keepdims=True), 1e-6)
    means = rows.mean(0)
    like = np.array([(face @ means.T).argmax(1) for face in rows])
    readable = (like == np.arange(len(CHARACTERS))).mean(1) >= READABLE
    return [face for face, good in zip(faces, readable, strict=True) if good], np.array(families)[readable]


def family_of(name: str) -> str:
    """Returns what the names of a font's weights have in common, roughly: the first word, without digits.

    >>> family_of("Quicksand Light"), family_of("eurofurence55"), family_of("Lato")
    ('quicksand', 'eurofurence', 'lato')
    """
    first = re.match(r"[^\W\d_]+", name)
    return first[0].lower() if first else name.lower()


def face_pictures(file: Path) -> tuple[str, np.ndarray] | None:
    """Returns a face's family and (62, 28, 28) uint8, or None where it lacks characters or small letters."""
    try:
        font = ImageFont.truetype(file, CANVAS)
        missing = _ink(font, "\uffff")
        inks = [_ink(font, character) for character in CHARACTERS]
    except (OSError, ValueError):
        return None
    if any(not ink.any() or np.array_equal(ink, missing) for ink in inks):
        return None
    by = dict(zip(CHARACTERS, inks, strict=True))
    if sum(np.array_equal(by[letter], by[letter.lower()]) for letter in "ABDEGHNQRT") > 2:
        return None
    return str(font.getname()[0]), np.stack([prepared(ink) for ink in inks])


def _ink(font: ImageFont.FreeTypeFont, character: str, width: int = 0) -> np.ndarray:
    left, top, right, bottom = (round(edge) for edge in font.getbbox(character, stroke_width=width))
    if right - left > 4 * CANVAS or bottom - top > 4 * CANVAS:
        raise ValueError("a character of more than four times the size of the font")
    picture = Image.new("L", (max(right - left, 1) + 2, max(bottom - top, 1) + 2))
    ImageDraw.Draw(picture).text((1 - left, 1 - top), character, 255, font, stroke_width=width)
    return np.asarray(picture)


def drawn_hand(face: Path, rng: np.random.Generator) -> Hand:
    """Returns a writer with this face: slant, weight, wobble and noise of his own."""
    return Hand(
        face,
        slant=float(rng.normal(0, 0.15)),
        weight=int(rng.integers(0, 4)),
        wobble=float(rng.uniform(0.02, 0.08)),
        noise=float(rng.uniform(5, 40)),
    )


def draw_characters(hand: Hand, each: int, rng: np.random.Generator) -> np.ndarray:
    """Returns (62 · each, 28, 28) uint8: `each` pictures of every character, in the order of CHARACTERS."""
    font = ImageFont.truetype(hand.face, CANVAS // 2)
    pictures = []
    for character in CHARACTERS:
        picture = Image.fromarray(_ink(font, character, hand.weight))
        pictures += [_one(picture, hand, rng) for _ in range(each)]
    return np.stack(pictures)


def _one(picture: Image.Image, hand: Hand, rng: np.random.Generator) -> np.ndarray:
    """(28, 28) uint8: slanted, its corners moved, with noise."""
    width, height = picture.size
    room = round(0.4 * height + 0.2 * width) + 2
    slant = hand.slant * height / 2
    size = (width + 2 * room, height + 2 * room)
    corners = np.array([(-slant, 0), (slant, height), (slant + width, height), (width - slant, 0)])
    corners = corners + rng.normal(0, hand.wobble, (4, 2)) * (width, height) / 1.5
    # QUAD takes the corners of the source; the source's room is empty, so a larger quadrilateral is needed
    centre = np.array((width / 2, height / 2))
    stretched = centre + (corners - centre) * (np.array(size) / (width, height))
    warped = picture.transform(
        size, Image.Transform.QUAD, stretched.ravel().tolist(), Image.Resampling.BILINEAR
    )
    noisy = np.asarray(warped, float) + rng.normal(0, hand.noise, (size[1], size[0]))
    return prepared(np.clip(noisy, 0, 255).astype(np.uint8) * (np.asarray(warped) > 32))
