"""R2: only a chain that continues ours, and that something proves, is learned; "different" is never "newer"."""

from dataclasses import replace

import pytest

from node.protocol.catchup import HistoryRefused, steps
from node.protocol.certificate import Certificate
from node.protocol.change import Change
from node.protocol.messages import HistoryEntry, HistoryPage
from tests.scenarios.values import REPOSITORY, founding_certificate, genuine
from tests.unit.machine_values import BASE, VOTERS, change

ONE = change("t1", packed=True)
TWO = change("t2", ONE.position)
THREE = change("t3", TWO.position)


def flaw(_: Change, certificate: Certificate) -> str | None:
    return certificate.flaw(VOTERS, genuine)


def page(*changes: Change, without: tuple[Change, ...] = (), floor: int = 0) -> HistoryPage:
    entries = tuple(HistoryEntry(each, None if each in without else founding_certificate(each, VOTERS), 0) for each in changes)
    return HistoryPage(REPOSITORY, entries, changes[-1].position, floor)


def test_a_certified_chain_is_learned_in_order() -> None:
    assert [step.change for step in steps(BASE, page(ONE, TWO, THREE), flaw)] == [ONE, TWO, THREE]


def test_a_certificate_proves_the_chain_below_it_and_nothing_above() -> None:
    assert [step.change for step in steps(BASE, page(ONE, TWO, THREE, without=(ONE, THREE)), flaw)] == [ONE, TWO]
    assert steps(BASE, page(ONE, without=(ONE,)), flaw) == []


def test_a_position_told_as_committed_proves_the_chain_below_it() -> None:
    """A certificate may die with its coordinator; V2's base, or a claim's promise, is as good a proof."""
    uncertified = page(ONE, TWO, without=(ONE, TWO))
    assert [step.change for step in steps(BASE, uncertified, flaw, [ONE.position])] == [ONE]
    assert [step.change for step in steps(BASE, uncertified, flaw, [TWO.position])] == [ONE, TWO]
    assert steps(BASE, uncertified, flaw, [change("other").position]) == []


def test_what_is_known_already_is_skipped() -> None:
    assert [step.change for step in steps(ONE.position, page(ONE, TWO), flaw)] == [TWO]


def test_another_digest_at_our_version_is_divergence_not_news() -> None:
    with pytest.raises(HistoryRefused) as refused:
        steps(change("other").position, page(ONE, TWO), flaw)
    assert refused.value.divergent


def test_another_digest_at_our_version_is_an_alarm_even_with_nothing_newer() -> None:
    with pytest.raises(HistoryRefused) as refused:
        steps(change("other").position, page(ONE), flaw)
    assert refused.value.divergent


def test_a_gap_is_refused() -> None:
    with pytest.raises(HistoryRefused) as refused:
        steps(BASE, page(TWO), flaw)
    assert not refused.value.divergent


def test_a_chain_on_another_base_is_divergence() -> None:
    with pytest.raises(HistoryRefused) as refused:
        steps(BASE, page(ONE, change("t3", change("other").position)), flaw)
    assert refused.value.divergent


def test_a_worthless_certificate_is_refused() -> None:
    entry = page(ONE).entries[0]
    assert entry.certificate is not None
    forged = replace(entry, certificate=replace(entry.certificate, votes=entry.certificate.votes[:1]))
    with pytest.raises(HistoryRefused, match="worthless"):
        steps(BASE, replace(page(ONE), entries=(forged,)), flaw)
    other = replace(entry, certificate=founding_certificate(change("other"), VOTERS))
    with pytest.raises(HistoryRefused, match="another digest"):
        steps(BASE, replace(page(ONE), entries=(other,)), flaw)


def test_objects_below_a_deletion_are_not_needed() -> None:
    assert [step.needs_objects for step in steps(BASE, page(ONE, TWO, THREE, floor=3), flaw)] == [False, False, True]
