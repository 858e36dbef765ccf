"""What every test of this folder needs."""

import pytest

from node import applying


@pytest.fixture(autouse=True)
def _pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """A ``Subject`` hurries, also one that lives in the tests' own process; what comes after these tests does not."""
    for name in ("SYNC_DELAY_S", "APPLY_PAUSE_S_MAX", "SYNC_PAUSE_S_MAX"):
        monkeypatch.setattr(applying, name, getattr(applying, name))
