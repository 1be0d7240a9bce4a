from tests.benchmarks.round_robin import RoundRobin


def robin(num_slots: int = 1, turn_steps: int = 4, max_sequences: int = 8) -> RoundRobin:
    return RoundRobin(num_adapters=8, num_slots=num_slots, turn_steps=turn_steps, max_sequences=max_sequences)


def starts(system: RoundRobin, num_steps: int) -> dict[int, int]:
    return {request: step for step in range(1, num_steps + 1) for request in system.step()[0]}


def test_requests_of_one_adapter_start_at_once_and_take_a_step_a_token():
    system = robin()
    system.add(0, adapter=3, num_tokens=3)
    system.add(1, adapter=3, num_tokens=1)
    assert [system.step() for _ in range(3)] == [([0, 1], [1]), ([], []), ([], [0])]


def test_adapters_take_the_slot_in_the_order_of_the_ring():
    system = robin()
    for request, adapter in enumerate((2, 5, 1)):
        system.add(request, adapter, num_tokens=2)
    assert starts(system, 8) == {2: 1, 0: 3, 1: 5}


def test_an_adapter_in_constant_use_gives_its_slot_up_after_its_turn():
    system = robin(turn_steps=4)
    started = {}
    for step in range(1, 12):
        system.add(step, adapter=0, num_tokens=2)
        if step == 2:
            system.add(100, adapter=1, num_tokens=1)
        started |= dict.fromkeys(system.step()[0], step)
    # Admitted in steps 1 to 4; the last of these ends with step 5.
    assert started[100] == 6
    assert started[5] == 7


def test_no_more_requests_run_than_fit():
    system = robin(num_slots=4, max_sequences=2)
    for request in range(4):
        system.add(request, adapter=request, num_tokens=3)
    assert starts(system, 6) == {0: 1, 1: 1, 2: 4, 3: 4}
