from hypothesis import given, settings
from hypothesis import strategies as st

from fsrm_lite.runtimes.onnx.cells import RUN_CELLS, Cells

actions = st.lists(st.tuples(st.sampled_from("aaacx"), st.integers(0, 4), st.integers(0, 4), st.integers(0, 40)))


@settings(deadline=None)
@given(st.integers(1, 5), st.integers(1, 40), actions)
def test_streams_find_their_own_tokens_whatever_others_do(streams, most, plan):
    cells, pool = Cells(streams, most), {}
    held: list[list[int]] = [[] for _ in range(streams)]
    written = 0
    for what, a, b, n in plan:
        a, b = a % streams, b % streams
        if what == "a":
            count = min(n, most - len(held[a]))
            if not count:
                continue
            for cell in cells.add(a, count).tolist():
                pool[cell] = written
                held[a].append(written)
                written += 1
        elif what == "c":
            length = min(n, len(held[a]))
            cells.copy(a, b, length)
            held[b] = held[a][:length]
        else:
            cells.cut(a, n)
            held[a] = held[a][:n]
        for stream, tokens in enumerate(held):
            assert cells.lengths[stream] == len(tokens)
            for length in {len(tokens), len(tokens) // 2}:
                seen = [pool[cell] for first, last in cells.segments(stream, length) for cell in range(first, last)]
                assert seen == tokens[:length]
        assert max(pool, default=-1) < cells.size


def test_a_copy_shares_the_cells_and_adds_its_own():
    cells = Cells(2, 10)
    first = cells.add(0, 4).tolist()
    cells.copy(0, 1, 3)
    assert cells.segments(1, 3) == [(first[0], first[2] + 1)]
    cells.add(1, 2)
    cells.add(0, 1)
    assert len(cells.segments(0, 5)) == 1  # the first stream goes on in place
    assert len(cells.segments(1, 5)) == 2


def test_what_was_let_go_is_given_again():
    cells = Cells(2, 10)
    for _ in range(50):
        cells.add(0, 10)
        cells.copy(0, 1, 5)
        cells.cut(0, 0)
        cells.add(0, 10)
        cells.cut(0, 0)
        cells.cut(1, 0)
    assert cells.size <= 30  # not 50 times as much


def test_the_pool_is_little_larger_than_what_the_streams_hold():
    cells = Cells(9, 4000)
    for _ in range(30):
        cells.cut(0, 0)
        cells.add(0, 700)
        for stream in range(1, 9):
            cells.copy(0, stream, 700)
            cells.add(stream, 300)
    assert cells.size <= 700 + 8 * (300 + 2 * RUN_CELLS) + RUN_CELLS
