"""Planted bugs are found. The quick ones here; all of them, with a bound for each: ``make test-planted``."""

import pytest

from tests.scenarios.laws import Broken
from tests.simulation.planted.catalogue import CATALOGUE
from tests.simulation.planted.hunt import hunt, named
from tests.simulation.planted.planting import Mutation
from tests.simulation.planted.stories import STORIES, play

QUICK = (
    "late_write_takes_the_promise_back",
    "fsync_skipped",
    "vote_before_persist",
    "promise_before_persist",
    "objects_not_checked",
    "lower_ballot_accepted",
    "abort_keeps_no_record",
    "abort_leaves_the_old_record",
    "commit_erases_accepted",
    "commit_of_another_digest",
    "applied_before_decided",
    "quorum_minus_one",
    "voters_shrunk_by_down_nodes",
    "round_reused_after_restart",
    "sent_before_accepted_here",
    "found_change_ignored",
    "found_change_replaced_by_none",
    "votes_of_any_attempt_counted",
    "ownership_lost_means_aborted",
    "retried_before_certain_abort",
    "resend_is_not_identical",
    "decision_inferred_from_equal_records",
    "accepted_change_not_waited_for",
    "read_before_it_is_applied",
    "signatures_not_checked",
    "new_journal_votes_at_once",
    "doubt_not_settled",
)
BOUND = 600
SECONDS_MAX = 15.0
"""Of processor time, for each; on the machine that they were chosen on the slowest took one."""


@pytest.mark.parametrize("name", QUICK)
def test_a_planted_bug_is_found(name: str) -> None:
    find = hunt(named(name), BOUND, seconds_max=SECONDS_MAX)
    assert not find.survived, f"{name} survived {find.schedules} schedules"


@pytest.mark.parametrize("name", STORIES)
def test_a_directed_story_ends_well(name: str) -> None:
    play(name)


@pytest.mark.parametrize("mutation", [m for m in CATALOGUE if m.story], ids=lambda mutation: mutation.name)
def test_a_planted_bug_breaks_its_story(mutation: Mutation) -> None:
    with mutation.planted(), pytest.raises(Broken):
        play(mutation.story)


def test_every_story_is_needed() -> None:
    assert {m.story for m in CATALOGUE if m.story} == set(STORIES)


@pytest.mark.parametrize("mutation", CATALOGUE, ids=lambda mutation: mutation.name)
def test_every_mutation_still_changes_the_core(mutation: Mutation) -> None:
    """The text that it replaces is there; and the core is whole again afterwards."""
    before = [vars(patch.owner)[patch.name] for patch in mutation.patches]
    with mutation.planted():
        assert all(vars(p.owner)[p.name] is not old for p, old in zip(mutation.patches, before, strict=True))
    assert [vars(patch.owner)[patch.name] for patch in mutation.patches] == before


def test_the_catalogue_is_long_enough() -> None:
    assert len({mutation.name for mutation in CATALOGUE}) == len(CATALOGUE) >= 25
    assert sum(mutation.bold for mutation in CATALOGUE) >= 12
