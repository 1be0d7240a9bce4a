import os
import threading
import time

from tests.benchmarks.cpu_time import cpu_time


def test_what_threads_compute_is_counted_and_the_first_thread_apart():
    stop, worked = threading.Event(), threading.Event()

    def work() -> None:
        began_s = time.thread_time()
        while time.thread_time() - began_s < 0.1:
            continue
        worked.set()
        stop.wait()  # a thread that has ended is not counted

    before = cpu_time(os.getpid())
    thread = threading.Thread(target=work)
    thread.start()
    worked.wait()
    spent = cpu_time(os.getpid()).since(before)
    stop.set()
    thread.join()
    assert spent.all_s >= 0.1
    assert spent.first_s < spent.all_s - 0.09
