"""Replicas in time, routes, and the cache behind them, against what a hand or a replay can tell."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from traffic import chats, trace_of

from kveik.errors import ConfigError
from kveik.lab.replay import replay
from kveik.lab.replica import Job, Replica
from kveik.lab.routes import ROUTES, SLACK, Fleet, make_route
from kveik.lab.service import ServiceTimes
from kveik.lab.simulate import Simulation, imbalance, simulate
from kveik.lab.trace import Trace, TraceRequest

# a prefill is 1 s and 0.5 s a token; a step 0.5 s and 0.25 s a sequence
SERVICE = ServiceTimes(1.0, 0.5, 0.0, 0.5, 0.25, 2)
QUICK = ServiceTimes(0.01, 0.001, 1e-6, 0.01, 0.001, 8)


def run(jobs: Sequence[Job], service: ServiceTimes = SERVICE) -> Replica:
    replica = Replica(service)
    for job in jobs:
        replica.advance(job.arrival)
        replica.submit(job, job.arrival)
    replica.advance(1e9)
    return replica


def test_times_are_those_of_a_hand() -> None:
    """A is computed from 0 to 3; then its steps take 0.75. B comes at 4.0, within the step that
    ends at 4.5, and is computed until 7.5; now steps have two sequences and take 1.0. C comes at
    5.0 and waits for a place."""
    a, b, c = Job(0.0, 4, 0, 5), Job(4.0, 6, 2, 4), Job(5.0, 2, 0, 1)
    replica = run([a, b, c])
    assert (a.begun, a.first, a.finished) == (0.0, 3.0, 9.5)
    assert (b.begun, b.first) == (4.5, 7.5)
    # two steps later A is over and C is computed; then B has one step left
    assert (c.begun, c.first, c.finished) == (9.5, 11.5, 11.5)
    assert b.finished == 12.25
    assert replica.busy == 12.25
    assert replica.load == 0


def test_an_idle_replica_waits_and_attention_grows_with_the_square() -> None:
    service = ServiceTimes(0.0, 0.0, 1.0, 1.0, 0.0, 1)
    cold, warm = Job(2.0, 4, 0, 1), Job(100.0, 4, 2, 1)
    replica = run([cold, warm], service)
    assert (cold.begun, cold.first) == (2.0, 2.0 + 1 + 2 + 3 + 4)
    assert (warm.begun, warm.first) == (100.0, 100.0 + 3 + 4)
    assert replica.busy == 17.0


def stepwise(jobs: Sequence[Job], service: ServiceTimes) -> list[tuple[float, float, float]]:
    """The same rules, one step at a time, by looking at every request again and again."""
    clock, times, left = 0.0, [[math.inf] * 3 for _ in jobs], [job.output - 1 for job in jobs]
    running: list[int] = []
    fresh = list(range(len(jobs)))
    while fresh or running:
        if fresh and jobs[fresh[0]].arrival <= clock and len(running) < service.batch:
            one = fresh.pop(0)
            times[one][0] = clock
            clock += service.prefill(jobs[one].cached, jobs[one].length)
            times[one][1] = clock
            running.append(one)
        elif running:
            clock += service.step(len(running))
            for one in running:
                left[one] -= 1
        else:
            clock = jobs[fresh[0]].arrival
        for one in [one for one in running if left[one] <= 0]:
            times[one][2] = clock
            running.remove(one)
    return [(begun, first, finished) for begun, first, finished in times]


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 40), st.integers(1, 9), st.integers(0, 8), st.integers(0, 9)),
        min_size=1,
        max_size=12,
    ),
    st.integers(1, 3),
)
def test_jumps_over_steps_equal_every_single_step(
    made: list[tuple[int, int, int, int]], batch: int
) -> None:
    """All times are sums of powers of two: floats are exact."""
    jobs = [
        Job(sorted(one[0] for one in made)[place] / 4, length, min(cached, length - 1), output)
        for place, (_, length, cached, output) in enumerate(made)
    ]
    service = replace(SERVICE, batch=batch)
    expected = stepwise(jobs, service)
    replica = run(jobs, service)
    assert [(job.begun, job.first, job.finished) for job in jobs] == expected
    assert replica.load == 0


@pytest.mark.parametrize(("policy", "blocks"), [("lru", 20), ("s3fifo", 60), ("lru", 10_000)])
def test_one_replica_hits_what_a_replay_hits(policy: str, blocks: int) -> None:
    trace = chats(150)
    for route in ROUTES:
        found = simulate(trace, route, Fleet(1, blocks), QUICK, policy=policy)
        alone = replay(trace, policy, blocks)
        assert list(found.found) == alone.played.found
        assert found.refused == alone.played.refused
        assert found.token_hit_rate == alone.token_hit_rate > 0


@pytest.mark.parametrize("route", ["round-robin", "random", "least-loaded", "prefix-affinity"])
def test_many_replicas_hit_what_replays_of_their_shares_hit(route: str) -> None:
    trace = chats(300)
    found = simulate(trace, route, Fleet(3, 40), QUICK, policy="lru")
    if route == "round-robin":
        assert found.placed == tuple(number % 3 for number in range(300))
    assert set(found.placed) == {0, 1, 2}
    for replica in range(3):
        share = [place for place, one in enumerate(found.placed) if one == replica]
        part = Trace("part", trace.block_size, tuple(trace.requests[place] for place in share))
        assert [found.found[place] for place in share] == replay(part, "lru", 40).played.found


def groups(requests: int = 120) -> Trace:
    """Seven groups in a drawn order, each with a beginning of eight blocks, and a tail that is
    new."""
    order = [number * number * 5 % 7 + number % 3 for number in range(requests)]
    return trace_of(
        *(
            (*range(100 * group, 100 * group + 8), 10**6 + number)
            for number, group in enumerate(order)
        )
    )


def hot(requests: int = 200) -> Trace:
    """Everybody begins alike, and more come than a few replicas can serve."""
    return trace_of(*((0, 1, 2, 3, 10**6 + number) for number in range(requests))).faster(400.0)


def test_affinity_finds_what_round_robin_computes_again() -> None:
    affine, around = (
        simulate(groups(), route, Fleet(4, 24), QUICK)
        for route in ("prefix-affinity", "round-robin")
    )
    assert affine.token_hit_rate > around.token_hit_rate + 0.2


def test_one_hot_prefix_costs_affinity_its_balance_unless_it_is_bounded() -> None:
    slow = ServiceTimes(0.01, 0.001, 0.0, 0.01, 0.001, 4)

    def of(bound: float) -> Simulation:
        return simulate(hot(), "prefix-affinity", Fleet(8, 2000, load_bound=bound), slow)

    loose, bounded = of(math.inf), of(1.25)
    assert loose.busy_imbalance == loose.token_imbalance == 8.0
    assert bounded.busy_imbalance < 4.0
    assert bounded.token_hit_rate > 0.6
    (late,), (soon,) = loose.ttft(0.99), bounded.ttft(0.99)
    assert late is not None
    assert soon is not None
    assert soon < late


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 9), min_size=2, max_size=6), st.floats(1.0, 3.0))
def test_nobody_is_chosen_for_what_it_holds_beyond_the_bound(
    loads: list[int], bound: float
) -> None:
    request = TraceRequest(0.0, 32, 1, (1, 2))
    route = make_route("prefix-affinity", Fleet(len(loads), 100, load_bound=bound))
    home = route.choose(request, [0] * len(loads))
    chosen = route.choose(request, loads)
    most = math.ceil(bound * (sum(loads) + 1) / len(loads)) + SLACK
    assert chosen == home or loads[home] >= most
    assert loads[chosen] < most or loads[chosen] == min(loads)


def test_affinity_wants_enough_of_the_prompt_and_forgets_what_the_pool_has_no_room_for() -> None:
    start, other = TraceRequest(0.0, 64, 1, (0, 1, 2, 3)), TraceRequest(0.0, 64, 1, (0, 7, 8, 9))
    for least, again in ((0.25, True), (0.3, False)):
        route = make_route("prefix-affinity", Fleet(3, 100, least_match=least))
        first = route.choose(start, [0, 0, 0])
        assert (route.choose(other, [0, 0, 0]) == first) is again
    for blocks, again in ((11, False), (12, True)):
        route = make_route("prefix-affinity", Fleet(3, blocks, load_bound=math.inf))
        first = route.choose(start, [0, 5, 5])
        for number in (10, 10, 30):  # what is there already needs no room
            fill = TraceRequest(0.0, 64, 1, tuple(range(number, number + 6)))
            assert route.choose(fill, [0, 5, 5]) == first
        assert (route.choose(start, [9, 0, 9]) == first) is again


def test_least_loaded_takes_equals_in_turn() -> None:
    route = make_route("least-loaded", Fleet(3, 1))
    request = TraceRequest(0.0, 1, 1, (0,))
    chosen = [
        route.choose(request, loads) for loads in ([1, 1, 1], [1, 1, 1], [0, 1, 0], [0, 1, 0])
    ]
    assert chosen == [0, 1, 2, 0]


def test_a_session_stays_and_those_without_one_go_where_the_load_is_least() -> None:
    route = make_route("session", Fleet(3, 1))

    def choose(session: str, loads: list[int], namespace: str = "") -> int:
        return route.choose(TraceRequest(0.0, 1, 1, (0,), (), namespace, session), loads)

    assert choose("a", [1, 0, 1]) == 1
    assert choose("a", [0, 9, 0]) == 1
    assert choose("", [0, 9, 9]) == 0
    assert choose("a", [9, 9, 0], "of another") == 2


def test_random_is_drawn_from_its_seed() -> None:
    one, same, other = (
        simulate(chats(50), "random", Fleet(4, 100, seed=seed), QUICK) for seed in (1, 1, 2)
    )
    assert one == same
    assert one.placed != other.placed


def test_figures_are_those_of_their_definitions() -> None:
    """Two requests at once to one replica: 1 + 16 x 0.5 s each, and the second waits for the
    first; a third, longer than the pool, is refused."""
    requests = (
        TraceRequest(0.0, 16, 1, (0,)),
        TraceRequest(0.0, 16, 1, (1,)),
        TraceRequest(1.0, 80, 1, (2, 3, 4, 5, 6)),
    )
    trace = Trace("made", 16, requests)
    alone = simulate(trace, "round-robin", Fleet(1, 4), SERVICE)
    assert alone.ttft(0.5, 0.51, 1.0) == [9.0, 18.0, 18.0]
    assert alone.queue_share == pytest.approx(9 / 27)
    assert (alone.refused, alone.span, alone.utilisation) == (1, 18.0, 1.0)
    apart = simulate(trace, "round-robin", Fleet(4, 4), SERVICE)
    assert apart.queue_share == 0.0
    assert apart.busy_imbalance == apart.token_imbalance == 2.0
    assert apart.utilisation == 0.5
    assert imbalance([0.0, 0.0]) == 1.0
    nobody = simulate(trace, "round-robin", Fleet(2, 1), SERVICE).ttft(0.5)
    assert nobody == [9.0]


def test_a_faster_trace_waits_longer_and_hits_the_same() -> None:
    trace = chats(200)
    slow, fast = (
        simulate(one, "round-robin", Fleet(2, 50), SERVICE) for one in (trace, trace.faster(10.0))
    )
    assert fast.found == slow.found
    assert fast.queue_share > slow.queue_share


def test_a_thousand_replicas_run() -> None:
    found = simulate(chats(600), "least-loaded", Fleet(1000, 50), QUICK)
    assert len(found.busy) == 1000
    assert sum(found.tokens) == found.prompt_tokens + 600


def test_a_route_that_is_none_is_refused_by_name() -> None:
    with pytest.raises(
        ConfigError, match=r"--route: 'nearest' is not one of round-robin, .* or all"
    ):
        make_route("nearest", Fleet(1, 1))
