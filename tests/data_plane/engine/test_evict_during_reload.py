"""An eviction and two reloads of one name wait for each other in no circle."""

from data_plane.adapters.revision import ReloadPolicy
from data_plane.engine.events import Evict, Reload
from data_plane.scheduler.sampling import SamplingParams
from tests.data_plane.fakes import Bench, source

OLD, NEW = source("support", 1), source("support", 2)
LONG = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True)


def test_an_eviction_waits_for_a_reload_that_keeps_the_revision_and_holds_up_no_request_of_it():
    bench = Bench(max_num_seqs=1)
    bench.add("running", (1, 2, 3), OLD, LONG)
    while not bench.tokens("running"):
        bench.step()
    there = bench.engine.command(Reload(NEW, ReloadPolicy.DRAIN))
    bench.step(3)
    # Reads OLD again and keeps it until `there` has ended, which waits for every request of OLD …
    back = bench.engine.command(Reload(OLD, ReloadPolicy.DRAIN))
    bench.step(3)
    bench.add("late", (1, 2, 3), OLD, LONG)
    # … and this waits for `back`: were "late" to wait for it, nobody would ever go on.
    eviction = bench.engine.command(Evict(OLD.revision.digest))
    bench.run()
    assert len(bench.tokens("late")) == 24
    assert all(future.done() for future in (there, back, eviction))
    bench.engine.check()
