import pytest

from data_plane.scheduler.request import Request, RequestState
from data_plane.scheduler.sampling import SamplingParams

LIVE = {RequestState.WAITING, RequestState.LOADING, RequestState.RUNNING, RequestState.PREEMPTED}
TRANSITIONS = {
    "await_adapter": {RequestState.WAITING: RequestState.LOADING},
    "adapter_arrived": {RequestState.LOADING: RequestState.WAITING},
    "run": {RequestState.WAITING: RequestState.RUNNING, RequestState.PREEMPTED: RequestState.RUNNING},
    "preempt": {RequestState.RUNNING: RequestState.PREEMPTED},
    "requeue": {RequestState.PREEMPTED: RequestState.WAITING},
    "finish": {RequestState.RUNNING: RequestState.FINISHED},
    "fail": dict.fromkeys(LIVE, RequestState.FAILED),
    "cancel": dict.fromkeys(LIVE, RequestState.CANCELLED),
}


def make(n: int = 1) -> Request:
    return Request(
        request_id="a",
        order=7,
        prompt_ids=(1, 2, 3),
        sampling=SamplingParams(n=n),
        seed=5,
        max_len=10,
        arrival_s=0.0,
    )


@pytest.mark.parametrize("state", RequestState)
@pytest.mark.parametrize("transition", TRANSITIONS)
def test_every_transition_is_allowed_from_its_states_alone(state, transition):
    request = make()
    request.state = state
    go = (lambda: request.run(0)) if transition == "run" else getattr(request, transition)
    if state in TRANSITIONS[transition]:
        go()
        assert request.state is TRANSITIONS[transition][state]
    else:
        with pytest.raises(ValueError, match="cannot become"):
            go()
        assert request.state is state


def test_a_preempted_request_keeps_its_tokens_and_slot_and_computes_again():
    request = make()
    request.run(3)
    request.sequences[0].token_ids.append(9)
    request.sequences[0].num_computed = 3
    request.preempt()
    assert (request.slot, request.sequences[0].num_computed) == (3, 0)
    assert request.sequences[0].output_ids == (9,)


def test_the_sequences_of_a_request_have_ids_and_seeds_of_their_own():
    sequences = make(n=16).sequences
    assert len({sequence.id for sequence in sequences}) == 16
    assert len({sequence.seed for sequence in sequences}) == 16
    assert sequences[0].seed == 5
