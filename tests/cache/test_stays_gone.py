"""What was deleted stays out of reach while the sweep has not come to it yet."""

from __future__ import annotations

from books import Books

from kveik.cache.directive import PUBLIC, Directive, DocumentSpan, Selector, Ttl
from kveik.cache.segments import Erase

PROMPT = list(range(1, 18))  # four blocks of four, and one token


def lazy(**options: object) -> Books:
    """Every verb leaves all freeing to the sweep."""
    cache = Books(40, 4, **options)
    cache.invalidation.at_once = 0
    return cache


def test_an_aborted_turn_does_not_bring_back_what_was_invalidated_meanwhile() -> None:
    cache = lazy()
    lease = cache.run(PROMPT, directive=Directive(session="s"))
    cache.invalidate(Selector(prefix=(1, 2), older_than=0.0))
    assert cache.cached(PROMPT) == 0
    cache.end(lease, finished=False)
    assert cache.cached(PROMPT) == 0


def test_other_tags_do_not_bring_back_what_a_tag_and_a_prefix_selected() -> None:
    cache = lazy()
    cache.pass_through(PROMPT, directive=Directive(name="n", tags=("t",)))
    cache.invalidate(Selector(tag="t", prefix=(1, 2)))
    assert cache.cached(PROMPT) == 0
    cache.set_tags("", "n", ("u",))
    assert cache.cached(PROMPT) == 0


def test_other_tags_do_not_bring_back_what_a_tag_selected() -> None:
    cache = lazy()
    cache.pass_through(PROMPT, directive=Directive(name="n", tags=("t",)))
    cache.invalidate(Selector(tag="t"))
    cache.set_tags("", "n", ("u",))
    assert cache.cached(PROMPT) == 0


def test_a_reader_puts_off_the_time_since_the_last_use_and_no_other() -> None:
    cache = Books(40, 4)
    lease = cache.run(PROMPT, directive=Directive(ttl=Ttl(5.0, "last_use")), now=1.0)
    cache.end(cache.run(PROMPT, directive=Directive(ttl=Ttl(20.0, "first_use")), now=1.0), now=1.0)
    assert cache.cached(PROMPT, now=11.0) == len(PROMPT) - 1
    assert cache.cached(PROMPT, now=22.0) == 0
    cache.end(lease, now=22.0)


def test_a_sweep_that_cuts_a_lease_off_keeps_its_books() -> None:
    cache = lazy()
    lease = cache.run(PROMPT, directive=Directive(tags=("t",)))
    other = cache.start([*PROMPT, 5], directive=Directive(tags=("u",)))
    cache.invalidate(Selector(tag="t"))
    while cache.tick(0.0, 1):
        cache.check()
    assert cache.stats().evictions["invalidated"]
    cache.end(other)
    cache.end(lease)
    cache.sweep()
    assert len(cache.tree) == 0


def test_what_was_behind_a_deleted_public_block_is_overwritten_when_it_is_evicted_first() -> None:
    cache = Books(6, 4)
    cache.pass_through(PROMPT[:4], namespace=PUBLIC)
    cache.pass_through(PROMPT[:12], namespace="a")
    cache.invalidate(Selector(PUBLIC))
    assert cache.take_erasures() == (Erase(0, 0),)
    cache.start([9] * 24, namespace="b")  # no step in between: it needs every block
    assert set(cache.take_erasures()) == {Erase(0, 1), Erase(0, 2)}


def test_a_lease_that_stores_only_a_part_obeys_invalidations_like_others() -> None:
    for until, kept in ((3, 0), (10, 8)):
        cache = Books(40, 4)
        span = DocumentSpan("d", "1", kept + 1, kept + 3)
        directive = Directive(write_until=until, documents=(span,))
        for selector in (Selector(document="d"), Selector(prefix=tuple(PROMPT[: kept + 1]))):
            lease = cache.run(PROMPT[:until], directive=directive)
            cache.invalidate(selector)
            cache.end(lease)
            assert cache.cached([*PROMPT[:until], 99]) == kept
            cache.invalidate(Selector())
        cache.pass_through(PROMPT[:until], directive=directive)
        assert cache.cached([*PROMPT[:until], 99]) == until
