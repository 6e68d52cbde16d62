"""Sequences are read into streams, and what they begin with only once."""

from fsrm_lite.runtimes.prefill import Family, families


def test_families_share_at_least_a_quarter_of_each_sequence_and_never_all():
    sequences = [
        (1, 2, 3, 4, 5),
        (9,),
        (1, 2, 3, 4, 6),
        (1, 2, 3, 4),
        (1, 2, 3, 4, 5),
        (1, 7, 7, 7, 7),
        (9,),
        (1, 2, 3, 4, 5, 0),
    ]
    found = families(sequences)
    assert sorted(i for family in found for i in family.members) == list(range(8))
    assert Family(3, (3, 0, 4, 7, 2)) in found
    assert all(family.shared < min(len(sequences[i]) for i in family.members) for family in found)
    assert all(len({sequences[i][: family.shared] for i in family.members}) == 1 for family in found)
