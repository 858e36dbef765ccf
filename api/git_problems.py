"""What smart HTTP refuses in its own words, besides the kinds that it shares with REST (``problems.KINDS``)."""

from collections.abc import Mapping
from types import MappingProxyType

from api.problems import Kind, Problem

GIT_KINDS: Mapping[str, Kind] = MappingProxyType(
    {
        kind.slug: kind
        for kind in (
            Kind("malformed-git-request", 400, "Malformed git request", "Use a stock git client."),
            Kind("dumb-http", 403, "Dumb HTTP is not served", "Use git 2.25 or newer: only smart HTTP is served here."),
            Kind("unsupported-service", 403, "Unsupported service", "Ask for git-upload-pack or git-receive-pack."),
            Kind("git-media-type", 415, "Unsupported media type", "Send the content type that git sends."),
        )
    }
)


def git_problem(slug: str, detail: str = "") -> Problem:
    """An occurrence of one of these kinds."""
    return Problem(GIT_KINDS[slug], detail)
