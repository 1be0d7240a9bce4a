"""Live requests: found until they end, and their deadlines in order of time."""

from data_plane.engine.detokenizer import detokenizers
from data_plane.engine.live import LiveRequests
from data_plane.engine.outputs import RequestOutput
from data_plane.scheduler.request import Request
from data_plane.scheduler.sampling import SamplingParams
from tests.data_plane.fakes import byte_tokenizer

MAKE = detokenizers(byte_tokenizer())


def live_with(*deadlines_s: float | None) -> LiveRequests:
    live = LiveRequests()
    for number, deadline_s in enumerate(deadlines_s):
        request = Request(
            request_id=str(number),
            order=number,
            prompt_ids=(1,),
            sampling=SamplingParams(),
            seed=0,
            max_len=8,
            arrival_s=0.0,
            deadline_s=deadline_s,
        )
        live.add(request, RequestOutput(request, MAKE, frozenset()))
    return live


def end(live: LiveRequests, request: Request) -> None:
    request.fail()
    live.remove(request)


def test_those_whose_time_has_run_out_come_earliest_first_and_no_others():
    live = live_with(5.0, None, 3.0, 4.0, 3.0)
    expired = []
    for request in live.expired(4.0):
        expired.append(request.id)
        end(live, request)
    assert expired == ["2", "4", "3"]
    assert [request.id for request in live] == ["0", "1"]
    assert live.next_deadline_s == 5.0


def test_a_request_that_ended_takes_its_deadline_along():
    live = live_with(3.0, 5.0)
    end(live, live.get("0"))
    assert live.next_deadline_s == 5.0
    assert list(live.expired(4.0)) == []
    assert (live.get("0"), "0" in live, len(live)) == (None, False, 1)


def test_requests_may_end_while_they_are_gone_through():
    live = live_with(None, None, None)
    for request in live:
        end(live, request)
    assert len(live) == 0
    assert live.next_deadline_s is None
