import pytest

from data_plane.adapters.revision import Tier
from data_plane.engine.events import Delta, Drain, FinishReason
from data_plane.errors import (
    AdapterRefused,
    DeadlineExceeded,
    Draining,
    InvalidRequest,
    Overloaded,
    RequestCancelled,
    WorkerError,
)
from data_plane.scheduler.request import RequestState
from data_plane.scheduler.sampling import SamplingParams
from tests.data_plane.fakes import EOS, GREEDY, Bench, Clock, oracle, source

SUPPORT, LEGAL, POETRY = source("support"), source("legal"), source("poetry", tenant="bards")


def greedy(max_tokens: int, **options: object) -> SamplingParams:
    return SamplingParams(temperature=0, max_tokens=max_tokens, **options)  # type: ignore[arg-type]


def test_adapters_and_base_requests_share_steps_and_each_gets_its_own_answer():
    bench = Bench(max_loras=3)
    for name, adapter in (("a", SUPPORT), ("b", LEGAL), ("c", POETRY), ("d", None)):
        bench.add(name, (7, 8, 9), adapter)
    bench.run()
    for name, adapter in (("a", SUPPORT), ("b", LEGAL), ("c", POETRY), ("d", None)):
        digest = adapter.revision.digest if adapter else None
        assert bench.tokens(name) == oracle(digest, (7, 8, 9), GREEDY)
        assert bench.started(name).revision == (adapter.revision if adapter else None)
    assert bench.engine.status().max_adapters_in_step == 3
    bench.engine.check()


def test_requests_join_and_leave_mid_batch_without_changing_anyones_tokens():
    bench = Bench()
    adapters = [None, SUPPORT, LEGAL]
    for number in range(12):
        bench.add(str(number), (number, 5), adapters[number % 3], greedy(3 + number))
        bench.step(2)
    bench.run()
    for number in range(12):
        adapter = adapters[number % 3]
        digest = adapter.revision.digest if adapter else None
        assert bench.tokens(str(number)) == oracle(digest, (number, 5), greedy(3 + number))
    bench.engine.check()


def test_a_long_prompt_is_computed_in_chunks_while_others_keep_getting_tokens():
    bench = Bench()
    bench.add("short", (1,), sampling=greedy(12, ignore_eos=True))
    bench.step()
    long_prompt = tuple(range(50))
    bench.add("long", long_prompt, SUPPORT)
    while not bench.tokens("long"):
        events = bench.step()
        assert any(isinstance(event, Delta) and event.request_id == "short" for event in events)
    bench.run()
    assert bench.tokens("long") == oracle(SUPPORT.revision.digest, long_prompt, GREEDY)


def test_preempted_requests_answer_as_if_alone():
    bench = Bench(num_blocks=12)
    sampling = greedy(20, ignore_eos=True)
    prompts = {str(number): (number, number + 1, 3) for number in range(5)}
    for name, prompt in prompts.items():
        bench.add(name, prompt, SUPPORT if int(name) % 2 else None, sampling)
    bench.run()
    for name, prompt in prompts.items():
        digest = SUPPORT.revision.digest if int(name) % 2 else None
        assert bench.tokens(name) == oracle(digest, prompt, sampling)
    computed = sum(plan.num_tokens for plan in bench.runner.plans)
    assert computed > 5 * (3 + 19), "nobody was preempted, so the test shows nothing"
    bench.engine.check()


def test_the_oldest_finishes_first_when_blocks_run_out():
    bench = Bench(num_blocks=10)
    for number in range(4):
        bench.add(str(number), (number, 1, 2), sampling=greedy(24, ignore_eos=True))
    bench.run()
    ends = [name for name in bench.events if bench.finished(name)]
    assert ends == ["0", "1", "2", "3"]


def test_cancelling_a_running_request_frees_its_blocks_and_lease_within_one_step():
    bench = Bench()
    bench.add("a", (1, 2, 3, 4, 5), SUPPORT, greedy(40, ignore_eos=True))
    bench.step(4)
    assert bench.held()[SUPPORT.revision.digest].leases == 1
    bench.engine.cancel("a")
    assert bench.held()[SUPPORT.revision.digest].leases == 0
    assert bench.engine.status().free_blocks == 64
    bench.step()
    assert isinstance(bench.error("a"), RequestCancelled)
    bench.engine.check()


def test_cancel_works_while_the_adapter_is_loading():
    bench = Bench(automatic=False)
    bench.add("a", adapter=SUPPORT)
    bench.step()
    bench.engine.cancel("a")
    bench.step()
    assert isinstance(bench.error("a"), RequestCancelled)
    assert not bench.engine.has_work


def test_cancel_works_while_preempted():
    bench = Bench(num_blocks=8)
    for number in range(3):
        bench.add(str(number), (number, 1, 2, 3, 4), SUPPORT, greedy(20, ignore_eos=True))
    while bench.engine.status().running_requests == 3 or not bench.tokens("2"):
        bench.step()
    bench.engine.cancel("2")
    bench.run()
    bench.engine.check()
    assert isinstance(bench.error("2"), RequestCancelled)


@pytest.mark.parametrize("adapter", [None, SUPPORT])
def test_a_deadline_ends_a_request_on_time(adapter):
    clock = Clock()
    bench = Bench(clock=clock, automatic=adapter is None)
    bench.add("a", adapter=adapter, sampling=greedy(40, ignore_eos=True), deadline_s=clock.now + 5)
    bench.step(2)
    clock.now += 4.9
    bench.step()
    assert bench.engine.next_deadline_s == pytest.approx(clock.now + 0.1)
    clock.now += 0.1
    bench.step()
    assert isinstance(bench.error("a"), DeadlineExceeded)
    assert bench.engine.status().free_blocks == 64


def in_state(state: RequestState, clock: Clock) -> Bench:
    """An engine in which request "it" is in this state, with five seconds left."""
    bench = Bench(clock=clock, num_blocks=8, max_num_seqs=2, automatic=state is not RequestState.LOADING)
    long, adapter = greedy(20, ignore_eos=True), SUPPORT if state is RequestState.LOADING else None
    crowd = {RequestState.WAITING: 2, RequestState.PREEMPTED: 1}.get(state, 0)
    for number in range(crowd):
        bench.add(str(number), (number, 1, 2, 3, 4), sampling=long)
    bench.step()
    bench.add("it", (9, 1, 2, 3, 4), adapter, long, deadline_s=clock.now + 5)
    request = bench.engine._live.get("it")
    for _ in range(30):
        if request.state is state:
            return bench
        bench.step()
    raise AssertionError(f"the request never came to be {state}: {request.state}")


@pytest.mark.parametrize(
    "state", [state for state in RequestState if state.value not in ("finished", "failed", "cancelled")]
)
@pytest.mark.parametrize(("way", "error"), [("cancel", RequestCancelled), ("deadline", DeadlineExceeded)])
def test_cancel_and_deadline_end_a_request_in_every_state_within_one_step(state, way, error):
    clock = Clock()
    bench = in_state(state, clock)
    if way == "cancel":
        bench.engine.cancel("it")
    else:
        clock.now += 5
    bench.step()
    assert isinstance(bench.error("it"), error)
    bench.engine.check()
    bench.reads.automatic = bench.copies.automatic = True
    bench.reads.run()
    bench.run()
    assert bench.engine.status().free_blocks == 8
    assert all(held.leases == 0 for held in bench.held().values())


def test_a_broken_adapter_fails_only_the_requests_that_need_it():
    bench = Bench()
    bench.reader.failing[LEGAL.revision.digest] = AdapterRefused("legal: tensor x has the wrong shape")
    bench.add("good", adapter=SUPPORT, sampling=greedy(10, ignore_eos=True))
    bench.step(3)
    assert bench.tokens("good")
    bench.add("bad", adapter=LEGAL)
    bench.add("bad too", adapter=LEGAL)
    while bench.engine.has_work:
        events = bench.step()
        assert any(event.request_id == "good" for event in events), "the good stream missed a step"
    assert "wrong shape" in str(bench.error("bad"))
    assert "wrong shape" in str(bench.error("bad too"))
    assert bench.tokens("good") == oracle(SUPPORT.revision.digest, (1, 2, 3), greedy(10, ignore_eos=True))
    assert bench.reader.reads[LEGAL.revision.digest] == 1


def test_a_refused_adapter_is_tried_again_by_the_next_request():
    bench = Bench()
    bench.reader.failing[LEGAL.revision.digest] = AdapterRefused("broken")
    bench.add("a", adapter=LEGAL)
    bench.run()
    del bench.reader.failing[LEGAL.revision.digest]
    bench.add("b", adapter=LEGAL)
    bench.run()
    assert bench.tokens("b") == oracle(LEGAL.revision.digest, (1, 2, 3), GREEDY)


def test_an_unreadable_source_is_left_alone_for_a_moment():
    clock = Clock()
    bench = Bench(clock=clock)
    bench.reader.failing[LEGAL.revision.digest] = OSError("connection reset")
    bench.add("a", adapter=LEGAL)
    bench.run()
    assert "connection reset" in str(bench.error("a"))
    with pytest.raises(WorkerError, match="connection reset"):
        bench.add("b", adapter=LEGAL)
    assert bench.reader.reads[LEGAL.revision.digest] == 1
    clock.now += 1.0
    bench.add("c", adapter=LEGAL)
    bench.run()
    assert bench.reader.reads[LEGAL.revision.digest] == 2


def test_a_failed_step_fails_its_requests_and_the_engine_goes_on():
    bench = Bench()
    bench.add("a", adapter=SUPPORT)
    bench.step(3)
    bench.runner.fail_next = RuntimeError("device lost")
    bench.step()
    assert "device lost" not in str(bench.error("a"))
    bench.add("b", adapter=SUPPORT)
    bench.run()
    assert bench.tokens("b") == oracle(SUPPORT.revision.digest, (1, 2, 3), GREEDY)
    bench.engine.check()


def test_the_receipt_says_where_the_adapter_was_and_how_long_it_took():
    clock = Clock()
    bench = Bench(clock=clock, automatic=False)
    bench.add("cold", adapter=SUPPORT)
    bench.step()
    clock.now += 2.0
    bench.reads.run()
    bench.step()
    clock.now += 0.3
    bench.add("late", adapter=SUPPORT)
    clock.now += 0.2
    bench.copies.run()
    bench.step()
    cold, late = bench.started("cold"), bench.started("late")
    assert (cold.tier, cold.load_s, cold.queue_s) == (Tier.SOURCE, 2.5, 2.5)
    assert (late.tier, late.load_s) == (Tier.CPU, pytest.approx(0.2))
    bench.add("warm", adapter=SUPPORT)
    bench.step()
    assert (bench.started("warm").tier, bench.started("warm").load_s) == (Tier.SLOT, 0.0)


def test_equal_prompts_hit_the_prefix_cache_under_one_digest_only():
    bench = Bench()
    prompt = tuple(range(20, 33))
    bench.add("first", prompt, SUPPORT)
    bench.run()
    bench.add("same", prompt, SUPPORT)
    bench.add("other", prompt, LEGAL)
    bench.add("base", prompt)
    bench.run()
    assert bench.finished("first").cached_tokens == 0
    assert bench.finished("same").cached_tokens == 12
    assert bench.finished("other").cached_tokens == 0
    assert bench.finished("base").cached_tokens == 0
    assert bench.tokens("same") == bench.tokens("first")
    assert bench.tokens("other") == oracle(LEGAL.revision.digest, prompt, GREEDY)


def test_n_sequences_share_the_prompts_blocks_and_draw_apart():
    bench = Bench()
    prompt = tuple(range(13))
    bench.add("a", prompt, SUPPORT, SamplingParams(seed=3, n=3, max_tokens=6, ignore_eos=True))
    bench.step(4)
    tables = {chunk.sequence_id: chunk.block_table for chunk in bench.runner.plans[-1].chunks}
    assert len(tables) == 3
    assert len({table[:3] for table in tables.values()}) == 1
    assert len({table[3] for table in tables.values()}) == 3
    bench.run()
    assert len({tuple(bench.tokens("a", index)) for index in range(3)}) == 3
    assert bench.tokens("a", 0) == oracle(
        SUPPORT.revision.digest, prompt, SamplingParams(max_tokens=6, ignore_eos=True), seed=3
    )
    assert bench.finished("a").completion_tokens == 18
    bench.engine.check()


def test_n_sequences_survive_preemption():
    quiet = Bench()
    crowded = Bench(num_blocks=18)
    sampling = SamplingParams(seed=3, n=3, max_tokens=16, ignore_eos=True)
    crowded.add("other", (9, 9, 9, 9), sampling=greedy(30, ignore_eos=True))
    for bench in (quiet, crowded):
        bench.add("a", tuple(range(13)), SUPPORT, sampling)
        bench.run()
        bench.engine.check()
    assert sum(plan.num_tokens for plan in crowded.runner.plans) > 13 + 2 + 3 * 16 + 4 + 30
    for index in range(3):
        assert crowded.tokens("a", index) == quiet.tokens("a", index)


def test_a_stop_string_ends_the_text_before_it():
    free = Bench()
    free.add("a", sampling=greedy(30, ignore_eos=True))
    free.run()
    text = free.text("a")
    stop = text[4:6]
    bench = Bench()
    bench.add("a", sampling=greedy(30, ignore_eos=True, stop=(stop,)))
    bench.run()
    assert bench.text("a") == text[: text.index(stop)]
    (choice,) = bench.finished("a").choices
    assert (choice.reason, choice.matched_stop) == (FinishReason.STOP, stop)


def test_a_stop_string_counts_only_from_min_tokens_on():
    free, bench = Bench(), Bench()
    free.add("a", sampling=greedy(30, ignore_eos=True))
    free.run()
    text = free.text("a")
    bench.add("a", sampling=greedy(30, ignore_eos=True, stop=(text[4:6],), min_tokens=30))
    bench.run()
    assert bench.text("a") == text


def test_cached_prompts_that_join_stay_within_the_token_budget():
    bench = Bench(max_num_batched_tokens=8)
    cached = (1, 2, 3, 4, 5)
    bench.add("first", cached)
    bench.run()
    bench.add("fresh", (9, 8, 7, 6, 5, 4))
    for number in range(5):
        bench.add(str(number), cached, sampling=greedy(3))
    bench.run()  # the runner refuses a plan over the budget
    assert bench.finished("4").cached_tokens == 4


def test_eos_counts_only_from_min_tokens_on():
    prompt = next((first,) for first in range(256) if EOS in oracle(None, (first,), greedy(12))[1:6])
    bench = Bench()
    bench.add("eos", prompt, sampling=greedy(12))
    bench.add("min", prompt, sampling=greedy(12, min_tokens=8))
    bench.run()
    assert bench.tokens("eos")[-1] == EOS
    assert bench.finished("eos").choices[0].reason is FinishReason.STOP
    assert len(bench.tokens("min")) >= 8


def test_output_ends_at_the_context_limit():
    bench = Bench(max_model_len=16)
    bench.add("a", tuple(range(12)), sampling=greedy(50, ignore_eos=True))
    bench.run()
    assert len(bench.tokens("a")) == 4
    assert bench.finished("a").choices[0].reason is FinishReason.LENGTH


@pytest.mark.parametrize(
    ("prompt", "sampling", "message"),
    [
        ((), GREEDY, "no tokens"),
        (tuple(range(64)), GREEDY, "takes 64"),
        ((1, 300), GREEDY, "300"),
        ((1, -1), GREEDY, "-1"),
        ((1,), SamplingParams(n=9), "max_num_seqs"),
    ],
)
def test_a_request_that_breaks_a_rule_is_refused_with_field_value_and_rule(prompt, sampling, message):
    with pytest.raises(InvalidRequest, match=message):
        Bench().add("a", prompt, sampling=sampling)


def test_a_prompt_that_could_never_get_its_blocks_is_refused():
    with pytest.raises(InvalidRequest, match="KV blocks"):
        Bench(num_blocks=4).add("a", tuple(range(16)))


def test_requests_over_the_queue_bound_are_refused():
    bench = Bench(max_waiting_requests=2)
    bench.add("a")
    bench.add("b")
    with pytest.raises(Overloaded):
        bench.add("c")


def test_draining_finishes_what_runs_and_takes_nothing_more():
    bench = Bench()
    bench.add("a")
    bench.step()
    future = bench.engine.command(Drain())
    bench.step()
    with pytest.raises(Draining):
        bench.add("b")
    assert not future.done()
    bench.run()
    assert future.result().size_bytes == 0
    assert bench.tokens("a") == oracle(None, (1, 2, 3), GREEDY)


def test_sampled_tokens_depend_on_the_seed_and_not_on_the_batch():
    sampling = SamplingParams(seed=11, max_tokens=6)
    alone, crowded = Bench(), Bench(num_blocks=10)
    for number in range(5):
        crowded.add(str(number), (number,), sampling=greedy(12))
    for bench in (alone, crowded):
        bench.add("a", sampling=sampling)
        bench.run()
    assert alone.tokens("a") == crowded.tokens("a") == oracle(None, (1, 2, 3), sampling, seed=11)
