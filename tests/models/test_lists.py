import json

from fsrm_lite.measure.labelled_lists import read_lists
from fsrm_lite.models.lists import SIZES, own_lists
from fsrm_lite.ranking.answers import agrees, final


def test_own_lists_are_of_all_sizes_and_labelled_by_their_answers(rm):
    rows = list(own_lists(rm, "calibration", 5))
    assert [len(row["responses"]) for row in rows] == list(SIZES)
    assert len({row["prompt"] for row in rows}) == 5
    for row in rows:
        right = [text for text, label in zip(row["responses"], row["labels"], strict=True) if label]
        assert len({final(text) for text in right}) <= 1
        assert all(not agrees(text, right[0], final) for text in row["responses"] if text not in right) or not right


def test_own_lists_are_what_calibrate_reads(rm, tmp_path):
    path = tmp_path / "lists.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in own_lists(rm, "calibration", 3)))
    assert [len(row.responses) for row in read_lists(path)] == [2, 4, 8]
