"""Every ``*.txt`` here is a story of the protocol that must go the same way each time it is told (see ``script.py``).

After a wanted change of behaviour: ``pytest tests/scenarios --rewrite-transcripts``, then read the diff line by line.
"""

from pathlib import Path

import pytest

from tests.scenarios.script import Script

STORIES = sorted(Path(__file__).parent.glob("*.txt"))

WANTED = {
    "abort_after_a_silent_yes",
    "certificate_lost_with_its_coordinator",
    "coordinator_restart",
    "deadline_and_abort",
    "duel_of_two_coordinators",
    "duplicates_and_reordering",
    "found_change_past_its_deadline",
    "group_commit",
    "happy_push",
    "lagging_voter_catches_up",
    "late_votes_after_an_abort",
    "lost_vote",
    "prepare_overtaken_by_a_claim",
    "read_waits_for_a_change_in_doubt",
    "rejoin_interrupted",
    "rejoin_lost_push_is_not_replaced",
    "rejoin_old_vote_is_not_counted",
    "takeover_change_on_one_voter",
    "takeover_change_on_two_voters",
}


def test_every_wanted_story_is_told() -> None:
    assert {story.stem for story in STORIES} == WANTED


@pytest.mark.parametrize("story", STORIES, ids=lambda path: path.stem)
def test_story_goes_as_written(story: Path, request: pytest.FixtureRequest) -> None:
    text = story.read_text()
    played = Script().play(text)
    if request.config.getoption("--rewrite-transcripts"):
        story.write_text(played)
    assert played == text or request.config.getoption("--rewrite-transcripts")


@pytest.mark.parametrize("story", STORIES, ids=lambda path: path.stem)
def test_story_ends_settled(story: Path) -> None:
    """Every story ends with a look at all journals: equal, and nothing in doubt."""
    lines = story.read_text().splitlines()
    ending = [line for line in lines if "; promised " in line][-3:]
    positions = {line.split("committed version ")[1].split(";")[0] for line in ending}
    assert len(positions) == 1
    assert not any("in doubt" in line for line in ending)
