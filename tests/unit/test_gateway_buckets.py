"""The gateway's token buckets against the plainest model of one."""

from __future__ import annotations

from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from services.gateway.buckets import SECOND, Buckets

RATES = (0.5, 1.0, 4.0, 10.0, 200.0)  # whose intervals are whole nanoseconds
STEPS = st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 3 * SECOND)), max_size=60)


class Clock:
    def __init__(self) -> None:
        self.now = 7

    def __call__(self) -> int:
        return self.now


@given(rate=st.sampled_from(RATES), burst=st.integers(1, 5), steps=STEPS)
def test_a_bucket_does_what_one_full_of_tokens_would(
    rate: float, burst: int, steps: list[tuple[str, int]]
) -> None:
    clock = Clock()
    buckets = Buckets("user", per_second=rate, burst=burst, ticks=clock)
    tokens: dict[str, Fraction] = dict.fromkeys("abc", Fraction(burst))
    for key, pause in steps:
        clock.now += pause
        tokens = {k: min(Fraction(burst), t + Fraction(rate) * pause / SECOND) for k, t in tokens.items()}
        allowed = tokens[key] >= 1
        tokens[key] -= allowed
        taken = buckets.take(key)
        missing = int(tokens[key]) + 1 - tokens[key]
        assert (taken.allowed, taken.left) == (allowed, int(tokens[key]))
        assert taken.wait - 1 < missing / Fraction(rate) <= taken.wait


@given(users=st.integers(1, 40), most=st.integers(1, 10))
def test_the_table_is_bounded_and_forgets_what_is_full(users: int, most: int) -> None:
    clock = Clock()
    buckets = Buckets("user", per_second=1, burst=1, ticks=clock, most=most)
    for user in range(users):
        assert buckets.take(str(user)).allowed
        assert len(buckets) <= most
    assert not buckets.take(str(users - 1)).allowed  # whoever came last is not forgotten
    clock.now += SECOND
    for _ in range(most):
        buckets.take("one more")
        clock.now += SECOND
    assert len(buckets) == 1


def test_fields_tell_the_policy_and_what_is_left_of_it() -> None:
    clock = Clock()
    buckets = Buckets("user", per_second=0.5, burst=3, ticks=clock)
    assert buckets.policy == '"user";q=3;w=6'
    assert [buckets.state(buckets.take("a")) for _ in range(4)] == [
        '"user";r=2;t=2',
        '"user";r=1;t=2',
        '"user";r=0;t=2',
        '"user";r=0;t=2',
    ]
