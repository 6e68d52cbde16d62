"""The lanes: who is read together, who waits for whom, and what becomes of those who give up."""

import asyncio
import threading

import pytest

from fsrm_lite.errors import JudgeError
from fsrm_lite.serve.bodies import RequestError
from fsrm_lite.serve.lanes import BATCH_RESPONSES, FastLane, SlowLane


class Reader:
    """Reads letters as their places in the alphabet. The first batch waits until ``go`` is set."""

    def __init__(self):
        self.batches, self.go, self.begun = [], threading.Event(), threading.Event()

    def __call__(self, items):
        self.begun.set()
        assert self.go.wait(10)
        self.batches.append(list(items))
        if "!" in items:
            raise JudgeError("broken")
        return [ord(item) for item in items]


async def begun(event):
    while not event.is_set():
        await asyncio.sleep(0.001)


def fast_lane(reader, most=1000):
    lane = FastLane(reader, most=most)
    lane.start()
    return lane


def test_requests_that_wait_together_are_read_together():
    reader = Reader()

    async def main():
        lane = fast_lane(reader)
        first = asyncio.ensure_future(lane.read(["z"]))
        await begun(reader.begun)
        others = [asyncio.ensure_future(lane.read([letter, "x"])) for letter in "abc"]
        await asyncio.sleep(0)
        assert lane.waiting == 7
        reader.go.set()
        assert await first == [122]
        assert await asyncio.gather(*others) == [[97, 120], [98, 120], [99, 120]]
        assert lane.waiting == 0
        lane.close()

    asyncio.run(main())
    assert reader.batches == [["z"], ["a", "x", "b", "x", "c", "x"]]


def test_a_long_request_does_not_keep_a_short_one_waiting():
    reader = Reader()

    async def main():
        lane = fast_lane(reader, most=10_000)
        first = asyncio.ensure_future(lane.read(["z"]))
        await begun(reader.begun)
        long = asyncio.ensure_future(lane.read(["l"] * (10 * BATCH_RESPONSES)))
        short = asyncio.ensure_future(lane.read(["s"]))
        await asyncio.sleep(0)
        reader.go.set()
        assert await short == [115]
        assert await long == [108] * (10 * BATCH_RESPONSES)
        await first
        lane.close()

    asyncio.run(main())
    assert "s" in reader.batches[1]
    assert all(len(batch) <= BATCH_RESPONSES for batch in reader.batches)
    assert sum(map(len, reader.batches)) == 10 * BATCH_RESPONSES + 2


def test_a_full_queue_says_when_to_come_again_and_one_long_request_always_fits():
    reader = Reader()

    async def main():
        lane = fast_lane(reader, most=3)
        first = asyncio.ensure_future(lane.read(["a"] * 9))
        await begun(reader.begun)
        with pytest.raises(RequestError) as caught:
            await lane.read(["b"])
        assert (caught.value.status, caught.value.retry_after_s) == (503, 1)
        reader.go.set()
        assert len(await first) == 9
        assert await lane.read(["b"]) == [98]
        lane.close()

    asyncio.run(main())


def test_what_a_client_that_has_gone_waited_for_is_not_read():
    reader = Reader()

    async def main():
        lane = fast_lane(reader, most=10)
        first = asyncio.ensure_future(lane.read(["z"]))
        await begun(reader.begun)
        gone = asyncio.ensure_future(lane.read(["g"] * 9))
        await asyncio.sleep(0)
        assert lane.waiting == 10
        gone.cancel()
        with pytest.raises(asyncio.CancelledError):
            await gone
        assert lane.waiting == 1
        first.cancel()  # it is being read just now
        with pytest.raises(asyncio.CancelledError):
            await first
        assert lane.waiting == 0
        last = asyncio.ensure_future(lane.read(["a"] * 10))
        await asyncio.sleep(0)
        reader.go.set()
        assert await last == [97] * 10
        assert lane.waiting == 0
        lane.close()

    asyncio.run(main())
    assert reader.batches == [["z"], ["a"] * 10]


def test_an_error_reaches_those_in_the_batch_and_the_lane_goes_on():
    reader = Reader()
    reader.go.set()

    async def main():
        lane = fast_lane(reader)
        with pytest.raises(JudgeError, match="broken"):
            await lane.read(["a", "!"])
        assert await lane.read(["a"]) == [97]
        assert lane.waiting == 0
        lane.close()
        with pytest.raises(RequestError, match="stopping"):
            await lane.read(["a"])

    asyncio.run(main())


def test_closing_finishes_what_was_taken():
    reader = Reader()

    async def main():
        lane = fast_lane(reader)
        first = asyncio.ensure_future(lane.read(["a"]))
        await begun(reader.begun)
        second = asyncio.ensure_future(lane.read(["b"]))
        await asyncio.sleep(0)
        closing = threading.Thread(target=lane.close)
        closing.start()
        reader.go.set()
        assert await asyncio.gather(first, second) == [[97], [98]]
        closing.join()

    asyncio.run(main())


def test_thoughts_come_one_after_another_and_who_gives_up_is_skipped():
    order, hold, running = [], threading.Event(), threading.Event()

    def call(name):
        def run(stopped):
            order.append(name)
            running.set()
            while not (stopped.is_set() or hold.is_set()):
                stopped.wait(0.01)
            return f"{name} stopped" if stopped.is_set() else name

        return run

    async def main():
        lane = SlowLane(most=3)
        lane.start()
        tasks = [asyncio.ensure_future(lane.run(call(name))) for name in "abc"]
        await begun(running)
        with pytest.raises(RequestError) as caught:
            await lane.run(call("d"))
        assert caught.value.status == 429
        assert caught.value.retry_after_s >= 1
        tasks[0].cancel()  # it runs, and is told to stop
        tasks[1].cancel()  # it waits, and never begins
        hold.set()
        assert await tasks[2] == "c"
        assert [task.cancelled() for task in tasks] == [True, True, False]
        assert lane.waiting == 0
        lane.close()

    asyncio.run(main())
    assert order == ["a", "c"]


def test_a_thought_that_fails_leaves_the_lane_at_work():
    async def main():
        lane = SlowLane(most=3)
        lane.start()
        with pytest.raises(JudgeError, match="no"):
            await lane.run(lambda stopped: (_ for _ in ()).throw(JudgeError("no")))
        assert await lane.run(lambda stopped: 5) == 5
        lane.close()

    asyncio.run(main())
