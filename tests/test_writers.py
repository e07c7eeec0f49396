"""What benchmarks/writers.py draws, prepares and counts."""

import gzip
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import ImageFont

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import writers
import written

from models.sellers.interface import Choice

TEXT = """\
.LEXICON "0" "1"
.SEGMENT DIGIT 0 ? "7"
.COMMENT 7 12 224
.PEN_DOWN
 100 400
 300 400
 150 100
.PEN_UP
.DT 100
.PEN_DOWN
 120 250
 280 250
.PEN_UP
.SEGMENT DIGIT 1 ? "1"
.COMMENT 1 13 225
.PEN_DOWN
 200 400
 200 0
.PEN_UP
.COMMENT 1 13 226
"""


def test_characters_are_read_with_their_writers_and_strokes(tmp_path: Path) -> None:
    """The last one has no strokes: it is left out. Packed or not makes no difference."""
    plain, packed = tmp_path / "a.unipen", tmp_path / "a.unipen.gz"
    plain.write_text(TEXT)
    packed.write_bytes(gzip.compress(TEXT.encode()))
    for file in (plain, packed):
        seven, one = written.read_strokes(file)
        assert (seven.character, seven.writer, one.character, one.writer) == ("7", "12", "1", "13")
        assert [stroke.tolist() for stroke in seven.strokes] == [
            [[100, 400], [300, 400], [150, 100]],
            [[120, 250], [280, 250]],
        ]


def test_a_file_without_characters_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("nothing\n")
    with pytest.raises(ValueError, match="no characters; expected lines"):
        written.read_strokes(tmp_path / "a")


def test_strokes_are_drawn_upright_where_the_pen_was() -> None:
    """An L: y goes upwards in the file, downwards in pictures."""
    ink = written.draw_strokes([np.array([[0, 500], [0, 0], [250, 0]], float)])
    height, width = ink.shape
    assert height > width
    pen = written.PEN
    assert ink[height // 2, pen // 2] == 255  # the upright line, on the left
    assert ink[-1 - pen // 2, width // 2] == 255  # the foot
    assert ink[: height // 2, width // 2 :].max() == 0  # nothing on the right above
    assert len(np.unique(ink)) > 2  # antialiased


@pytest.mark.parametrize("scale", [0.1, 1, 10])
def test_the_size_of_the_writing_does_not_matter(scale: float) -> None:
    stroke = np.array([[0, 500], [100, 0], [250, 300]], float)
    pictures = [written.prepared(written.draw_strokes([stroke * factor])) for factor in (1, scale)]
    assert np.abs(pictures[0].astype(int) - pictures[1]).max() <= 1


def test_a_dot_is_a_picture_too() -> None:
    picture = written.prepared(written.draw_strokes([np.array([[7.0, 7.0]])]))
    assert picture.shape == (28, 28)
    assert picture.max() > 200


def test_pictures_are_cropped_centred_and_square() -> None:
    """A bar of 20 × 60 at the edge of a page, with faint dirt: it is in the middle, from top to bottom."""
    ink = np.zeros((200, 300), np.uint8)
    ink[100:160, 5:25] = 255
    ink[10, 250] = 40
    picture = written.prepared(ink)
    assert picture.shape == (28, 28)
    columns = np.flatnonzero(picture.max(0) > 128)
    rows = np.flatnonzero(picture.max(1) > 128)
    assert abs((columns[0] + columns[-1]) / 2 - 13.5) <= 0.5
    assert abs(len(columns) - 28 * 20 / 62) <= 1.5
    assert (rows[0], rows[-1]) == (0, 27)
    assert 0 < picture[14, columns[0] - 1] < 128 or 0 < picture[14, columns[0] - 2] < 128  # blurred


def default_face(folder: Path) -> Path:
    """Pillow brings one face, as TTF in its code."""
    font = ImageFont.load_default(20)
    assert isinstance(font, ImageFont.FreeTypeFont)
    face = folder / "default.ttf"
    face.write_bytes(font.font_bytes)
    return face


def test_faces_are_found_and_others_left_out(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    face = default_face(tmp_path / "deep")
    (tmp_path / "same.TTF").write_bytes(face.read_bytes())
    (tmp_path / "broken.otf").write_bytes(b"nothing")
    faces, families = written.readable_faces(tmp_path)
    assert faces == [face]  # the first by name; the second has the same pictures
    assert families.tolist() == ["aileron"]


def test_hands_differ_and_pictures_of_one_hand_are_alike(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    face = default_face(tmp_path)
    straight = written.Hand(face, slant=0.0, weight=0, wobble=0.03, noise=10.0)
    bold = written.Hand(face, slant=0.4, weight=3, wobble=0.03, noise=10.0)
    first = written.draw_characters(straight, 2, rng).reshape(62, 2, 28, 28).astype(float)
    second = written.draw_characters(bold, 2, rng).reshape(62, 2, 28, 28).astype(float)
    within = np.abs(first[:, 0] - first[:, 1]).mean()
    assert 0 < within < np.abs(first[:, 0] - second[:, 0]).mean()
    assert second.mean() > first.mean()
    assert not np.array_equal(first[:, 0], first[:, 1])


def test_a_slant_leans_to_the_right(tmp_path: Path) -> None:
    hand = written.Hand(default_face(tmp_path), slant=0.5, weight=0, wobble=0.0, noise=0.0)
    letter = written.draw_characters(hand, 1, np.random.default_rng(0))[written.CHARACTERS.index("l")]
    columns = np.arange(28)
    top, bottom = letter[:9].sum(0), letter[19:].sum(0)
    assert (top @ columns) / top.sum() > (bottom @ columns) / bottom.sum() + 4


def test_no_family_is_in_two_parts() -> None:
    families = np.repeat([f"family{number}" for number in range(12)], 4)
    faces = [Path(f"{number}.ttf") for number in range(48)]
    parts = writers.chosen_faces(faces, families, (20, 4, 6), np.random.default_rng(0))
    assert [len(part) for part in parts] == [20, 4, 6]
    of_parts = [{families[faces.index(face)] for face in part} for part in parts]
    assert not of_parts[0] & of_parts[1] and not of_parts[0] & of_parts[2] and not of_parts[1] & of_parts[2]
    with pytest.raises(ValueError, match="48 readable faces of 12 families; expected 100"):
        writers.chosen_faces(faces, families, (70, 10, 20), np.random.default_rng(0))


def test_families_are_added_until_there_are_enough_faces() -> None:
    """40 families of one face, and ten of six, in any order."""
    families = np.array(
        [f"one{number}" for number in range(40)] + 6 * [f"six{number}" for number in range(10)]
    )
    faces = [Path(f"{number}.ttf") for number in range(len(families))]
    for seed in range(20):
        parts = writers.chosen_faces(faces, families, (50, 5, 15), np.random.default_rng(seed))
        assert [len(part) for part in parts] == [50, 5, 15]


# Counting


class Learner:
    """Says the base category until it has learnt anything, then the last one that it learnt."""

    def __init__(self) -> None:
        self.last: int | None = None
        self.count = 0

    def predict(self, vector: np.ndarray, logits: np.ndarray) -> Choice:
        base = int(logits.argmax())
        return Choice(base if self.last is None else self.last, 1.0, base, self.count)

    def learn(self, vector: np.ndarray, logits: np.ndarray, true: int) -> None:
        self.last, self.count = true, self.count + 1

    def arrays(self) -> dict[str, np.ndarray]:
        return {}


def group(true: list[int], base: list[int], writer: list[int]) -> writers.Group:
    return writers.Group(np.zeros((len(true), 2)), np.eye(3)[base], np.array(true), np.array(writer))


def test_streams_count_errors_before_and_after_learning() -> None:
    """Writer 0 always means 1 where the base says 0; for writer 1 the base is correct."""
    characters = group([1] * 60 + [2] * 60, [0] * 60 + [2] * 60, [0] * 60 + [1] * 60)
    results = writers.adapt(Learner, characters, characters.true, 2, seed=0)
    assert [one.tests for one in results] == [12, 12]  # a tenth of 60, twice
    assert [one.base for one in results] == [12, 0]
    assert [one.after for one in results] == [(12, 0, 0, 0, 0), (0, 0, 0, 0, 0)]
    assert [one.oracle for one in results] == [0, 0]
    figures = writers.summary(results)
    assert (figures["base"], figures["adapted"], figures["gain"]) == (50.0, 100.0, 50.0)
    assert (figures["better"], figures["same"], figures["worse"]) == (1, 1, 0)


def test_another_writer_is_learnt_and_never_the_judged_one() -> None:
    """As above; now writer 0 says what writer 1 means, and writer 1 what writer 0 means."""
    characters = group([1] * 60 + [2] * 60, [0] * 60 + [2] * 60, [0] * 60 + [1] * 60)
    results = writers.adapt(Learner, characters, characters.true, 2, seed=0, learnt=characters)
    assert [one.after for one in results] == [(12, 12, 12, 12, 12), (0, 12, 12, 12, 12)]


def test_shuffled_writers_learn_those_whom_the_base_network_knows() -> None:
    """The three writers of the base network mean 1, 30 times each: that is correct for writer 0 alone."""
    characters = group([1] * 60 + [2] * 60, [0] * 60 + [2] * 60, [0] * 60 + [1] * 60)
    known = group([1] * 90, [1] * 90, [7] * 30 + [8] * 30 + [9] * 30)
    results = writers.adapt(Learner, characters, characters.true, 3, seed=0, learnt=known)
    assert [one.after for one in results] == [(18, 0, 0, 0, 0), (0, 18, 18, 18, 18)]


def test_own_corrections_are_compared_with_those_of_another_writer() -> None:
    own = [writers.Adapted(100, 10, (10, 4), 0), writers.Adapted(100, 10, (10, 6), 0)]
    another = [writers.Adapted(100, 10, (10, 9), 0), writers.Adapted(100, 10, (10, 11), 0)]
    beyond = writers.own_gain({"a": own, "a, another": another}, "a")
    assert beyond == {"gain": 5.0, "gain_error": 0.0}
    assert writers.own_gain({"a": own}, "a") == {}


def test_examples_are_learnt_and_all_others_judged() -> None:
    characters = group([1] * 40, [0] * 40, [0] * 40)
    figures = writers.enrolled(Learner, characters, 5, 3, seed=0)
    assert (figures["base_errors"], figures["errors"], figures["fewer"]) == (105, 0, 1.0)
    assert figures["worst_writer"] == -100


def test_a_share_of_the_categories_is_wrong() -> None:
    characters = group([0, 1, 2] * 200, [0, 1, 2] * 200, [0] * 300 + [1] * 300)
    said = writers.with_wrong(characters, 0.2, 0)
    assert np.mean(said != characters.true) == pytest.approx(0.2, abs=0.05)
    assert set(said) == {0, 1, 2}


def test_what_a_base_network_said_is_kept(tmp_path: Path) -> None:
    made = writers.Collection(*(group([0, 1], [1, 0], [number, 2]) for number in range(3)))
    file = tmp_path / "deep" / "a.npz"
    writers.kept(file, lambda: made)
    again = writers.kept(file, lambda: pytest.fail("it is kept already"))
    for part in writers.PARTS:
        for name in writers.FIELDS:
            assert np.array_equal(getattr(getattr(made, part), name), getattr(getattr(again, part), name))
