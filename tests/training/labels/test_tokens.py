"""Files of labels, ours and those of codecs made elsewhere: what is wrong with one is told with its line."""

from pathlib import Path

import numpy as np
import pytest

from featurestore.errors import SourceError
from featurestore.training.labels import read_dictionary, read_labels


@pytest.fixture
def folder(tmp_path):
    """Two files, of 5 s and of 2 s, and the tokens of a codec."""
    (tmp_path / "train.tsv").write_text("/music\na/x.wav\t120000\nb/y.wav\t48000\n")
    write(tmp_path, [0] * 375, [1023] * 150)
    (tmp_path / "dict.encodec_0.txt").write_text("".join(f"{token} 1\n" for token in range(1024)))
    return tmp_path


def write(folder: Path, *lines, name="train.encodec_0"):
    (folder / name).write_text("".join(" ".join(map(str, line)) + "\n" for line in lines))


def test_tokens_are_read_in_the_order_of_the_manifest(folder):
    first, second = read_labels(folder, "train", "encodec_0")
    assert (first.dtype, first.shape, second.shape) == (np.int32, (375,), (150,))
    assert not first.any()
    assert (second == 1023).all()


@pytest.mark.parametrize("count", [368, 374, 375, 376, 382])
def test_a_frame_or_two_more_or_less_are_no_other_rate(folder, count):
    write(folder, [7] * count, [7] * 150)
    assert len(read_labels(folder, "train", "encodec_0")[0]) == count


@pytest.mark.parametrize(("count", "rate"), [(250, "50.00"), (367, "73.40"), (383, "76.60"), (0, "0.00")])
def test_another_rate_is_told_with_the_line(folder, count, rate):
    write(folder, [7] * count, [7] * 150)
    message = (
        rf"line 1 of .*train\.encodec_0 has {count} labels for the 5\.00 s of 'a/x\.wav', {rate} a second, not 75"
    )
    with pytest.raises(SourceError, match=message):
        read_labels(folder, "train", "encodec_0")


def test_other_rates_of_audio_and_labels_can_be_right(folder):
    (folder / "train.tsv").write_text("/music\na/x.wav\t80000\nb/y.wav\t32000\n")
    write(folder, [7] * 249, [7] * 99)
    assert [len(x) for x in read_labels(folder, "train", "encodec_0", sample_rate=16_000, frame_rate=50)] == [
        249,
        99,
    ]


MISTAKES = {
    r"ends after line 1, .* 2 files: line 2 is to be that of 'b/y\.wav'": [[0] * 375],
    r"line 3 of .* is of no file: .*train\.tsv has 2 files": [[0] * 375, [0] * 150, [0]],
    r"line 2 of .* has the label 1024, which .*dict\.encodec_0\.txt has not": [[0] * 375, [0] * 149 + [1024]],
    r"line 1 of .* has the label -1": [[-1] * 375, [0] * 150],
    r"line 1 of .* is not a line of whole numbers: '0\.5": [[0.5] * 375, [0] * 150],
    r"line 2 of .* is not a line of whole numbers: '1_0": [[0] * 375, ["1_0"] * 150],
    r"line 2 of .* is not a line of whole numbers: '99999999999": [[0] * 375, [99_999_999_999] * 150],
    r"line 1 of .* is not a line of whole numbers: '٣": [["٣"] * 375, [0] * 150],
}


@pytest.mark.parametrize("message", MISTAKES)
def test_mistakes_are_told_with_their_line(folder, message):
    write(folder, *MISTAKES[message])
    with pytest.raises(SourceError, match=message):
        read_labels(folder, "train", "encodec_0")


def test_what_is_missing_is_named(folder):
    with pytest.raises(SourceError, match=r"train\.encodec_1 cannot be read: No such file"):
        read_labels(folder, "train", "encodec_1")
    with pytest.raises(SourceError, match=r"valid\.tsv' is not a file"):
        read_labels(folder, "valid", "encodec_0")
    (folder / "train.encodec_0").write_bytes(b"\xff\xfe")
    with pytest.raises(SourceError, match="is not text"):
        read_labels(folder, "train", "encodec_0")


def test_a_dictionary_is_of_whole_numbers_from_0(tmp_path):
    path = tmp_path / "dict.km.txt"
    path.write_text("0 17\n1 4\n2 1\n")
    assert read_dictionary(path) == 3
    for text, message in {
        "": "holds no token",
        "0 1\n2 1\n": "line 2 of .* '1 COUNT'",
        "0\n": "line 1",
        "a 1\n": "line 1",
    }.items():
        path.write_text(text)
        with pytest.raises(SourceError, match=message):
            read_dictionary(path)


def test_without_a_dictionary_any_label_is_taken(folder):
    (folder / "dict.encodec_0.txt").unlink()
    write(folder, [9_999] * 375, [0] * 150)
    assert read_labels(folder, "train", "encodec_0")[0][0] == 9_999


def test_a_name_finds_its_km_file(folder):
    write(folder, [1] * 375, [2] * 150, name="train.chroma.km")
    (folder / "dict.chroma.km.txt").write_text("0 1\n1 1\n")
    with pytest.raises(
        SourceError, match=r"line 2 of .*train\.chroma\.km has the label 2, which .*chroma\.km\.txt"
    ):
        read_labels(folder, "train", "chroma")


def test_a_file_without_samples_has_no_labels(folder):
    (folder / "train.tsv").write_text("/music\na/x.wav\t0\nb/y.wav\t48000\n")
    write(folder, [7] * 75, [7] * 150)
    with pytest.raises(SourceError, match=r"line 1 of .* has 75 labels for the 0\.00 s"):
        read_labels(folder, "train", "encodec_0")
