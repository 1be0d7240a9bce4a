import threading

from data_plane.adapters.load_queue import ThreadLoadQueue

WAIT_S = 10


def test_urgent_jobs_overtake_and_a_hurried_one_becomes_urgent():
    queue: ThreadLoadQueue[None] = ThreadLoadQueue(1, name="test")
    order: list[str] = []
    started, release, ended = threading.Event(), threading.Event(), threading.Semaphore(0)

    def block() -> None:
        started.set()
        release.wait(WAIT_S)

    queue.on_done(ended.release)
    queue.submit("first", block, urgent=False)
    assert started.wait(WAIT_S)
    for key, urgent in (("prefetch", False), ("hurried", False), ("urgent", True)):
        queue.submit(key, lambda key=key: order.append(key), urgent=urgent)
    queue.hurry("hurried")
    release.set()
    for _ in range(4):
        assert ended.acquire(timeout=WAIT_S)
    queue.stop()
    assert order == ["urgent", "hurried", "prefetch"]


def test_an_error_is_an_outcome_and_the_thread_goes_on():
    queue: ThreadLoadQueue[int] = ThreadLoadQueue(1, name="test")
    ended = threading.Semaphore(0)
    queue.on_done(ended.release)
    queue.submit("bad", lambda: 1 // 0, urgent=True)
    queue.submit("good", lambda: 7, urgent=True)
    for _ in range(2):
        assert ended.acquire(timeout=WAIT_S)
    bad, good = queue.take_done()
    queue.stop()
    assert isinstance(bad.error, ZeroDivisionError)
    assert (good.value, good.error) == (7, None)
    assert queue.take_done() == []
