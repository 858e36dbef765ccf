"""What names are legal, for every way in; each rule has a name that breaks it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.protocol.names import (
    BadIdentifier,
    BadRefName,
    BadRepositoryName,
    RepositoryName,
    check_digest,
    check_node_id,
    check_oid,
    check_ref_format,
    check_repo_id,
    check_txn_id,
    check_writable_ref,
)


@pytest.mark.parametrize("text", ["alice/project", "A/b", "0/9", "a.b-c_d/e.f", "a/" + "x" * 64])
def test_good_repository_names(text: str) -> None:
    assert str(RepositoryName.parse(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "/",
        "a",
        "a/",
        "/a",
        "a/b/c",
        ".a/b",
        "-a/b",
        "_a/b",
        "a/b..c",
        "a..b/c",
        "a/b.git",
        "a/b.GIT",
        "a/b.lock",
        "a.git/b",
        "a/" + "x" * 65,
        "a b/c",
        "a/b\n",
        "ä/b",
        "a/b\x00",
        "../b",
        "a/..",
        "a\\b/c",
        "a/%2e%2e",
    ],
)
def test_bad_repository_names(text: str) -> None:
    with pytest.raises(BadRepositoryName):
        RepositoryName.parse(text)


def test_names_that_differ_only_by_case_are_one_register() -> None:
    assert RepositoryName.parse("Alice/Project").key == RepositoryName.parse("alice/project").key
    with pytest.raises(BadRepositoryName):
        check_repo_id("Alice/Project")


@pytest.mark.parametrize(
    "text", ["refs/heads/main", "refs/tags/v1.0", "refs/notes/commits", "refs/heads/a/b/c", "refs/heads/ä", "refs/heads/@"]
)
def test_good_refs(text: str) -> None:
    assert check_writable_ref(text) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "HEAD",
        "main",
        "refs/heads",
        "refs/heads/",
        "refs/heads//a",
        "refs/heads/a..b",
        "refs/heads/.a",
        "refs/heads/a.",
        "refs/heads/a.lock",
        "refs/heads/a.lock/b",
        "refs/heads/a b",
        "refs/heads/a~b",
        "refs/heads/a^b",
        "refs/heads/a:b",
        "refs/heads/a?b",
        "refs/heads/a*b",
        "refs/heads/a[b",
        "refs/heads/a\\b",
        "refs/heads/a@{b",
        "refs/heads/a\x7fb",
        "refs/heads/a\tb",
        "refs/heads/a\nb",
        "refs/heads/\ud800",
        "refs/heads/" + "x" * 1024,
    ],
)
def test_refs_that_git_refuses(text: str) -> None:
    with pytest.raises(BadRefName):
        check_ref_format(text)


@pytest.mark.parametrize("text", ["refs/replace/" + "0" * 40, "refs/remotes/origin/main", "refs/stash/x", "refs/headsx/main"])
def test_refs_outside_the_writable_namespaces(text: str) -> None:
    with pytest.raises(BadRefName):
        check_writable_ref(text)


@pytest.mark.parametrize("check", [check_node_id, check_txn_id, check_oid, check_digest])
@pytest.mark.parametrize("text", ["", " ", "a\n", "x" * 200, "/", "A" * 40 + "\n"])
def test_bad_identifiers(check: object, text: str) -> None:
    assert callable(check)
    with pytest.raises(BadIdentifier):
        check(text)


@given(st.text(max_size=80))
def test_a_parsed_name_is_safe_as_a_path(text: str) -> None:
    try:
        name = RepositoryName.parse(text)
    except BadRepositoryName:
        return
    assert ".." not in str(name)
    assert str(name).count("/") == 1
    assert not any(part.startswith(".") for part in str(name).split("/"))
