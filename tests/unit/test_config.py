"""What a wrong configuration says, and that it never ends in a traceback."""

import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from node.command.doctor import plain
from node.config import Config
from node.faults import FaultPoint
from node.keys import KeyRefused, read_private, write_private


def write(tmp_path: Path, *lines: str) -> Path:
    public = write_private(tmp_path / "key.pem")
    members = [
        f'[[members]]\nid = "node-{n}"\nurl = "http://127.0.0.1:{3000 + n}"\npublic_keys = ["{public}"]' for n in (1, 2, 3)
    ]
    head = ['node_id = "node-1"', 'data_dir = "data"', 'private_key = "key.pem"', *lines]
    path = tmp_path / "node.toml"
    path.write_text("\n".join([*head, *members]) + "\n")
    return path


def test_a_quorum_may_be_written_as_a_number(tmp_path: Path) -> None:
    assert Config.from_file(write(tmp_path, "quorum = 3")).write_quorum == 3


def test_paths_are_relative_to_the_file_and_fault_points_have_names(tmp_path: Path) -> None:
    config = Config.from_file(write(tmp_path, 'fault_points = ["after-accept"]'))
    assert config.data_dir == tmp_path / "data"
    assert config.fault_points == (FaultPoint.AFTER_ACCEPT,)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("quorum = 1", "a quorum of 1 of 3 is no majority"),
        ('fault_points = ["nonsense"]', "fault_points.0: Input should be"),
        ("prot = 3", "prot: Extra inputs are not permitted"),
        ("port = [", "is not TOML"),
        ('public_url = "git.example.org"', "is not an http:// or https:// URL"),
        ('public_url = "http://user:secret@git.example.org"', "no user, no query and no fragment"),
        ('public_url = "http://git.example.org:99999"', "cannot be connected to: Port out of range"),
        ('public_url = "http://git.example.org:0"', "there is no port 0"),
        ('public_url = "http://git\\u0000.example.org"', "a space or a control character"),
        ('public_url = "http://git .example.org"', "a space or a control character"),
        ('public_url = "http://git..example.org"', "cannot be connected to"),
        ("suspect_after_s = 0.1", "suspect_after_s must be longer than heartbeat_s"),
    ],
)
def test_serve_says_one_plain_line_and_exits_1(tmp_path: Path, line: str, said: str) -> None:
    path = write(tmp_path, line)
    command = [sys.executable, "-P", "-m", "node", "serve", "--config", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert "Value error" not in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_clients_are_told_the_public_url_and_peers_are_not(tmp_path: Path) -> None:
    assert Config.from_file(write(tmp_path)).client_url == "http://127.0.0.1:3001"
    (tmp_path / "key.pem").unlink()
    config = Config.from_file(write(tmp_path, 'public_url = "https://git.example.org/"'))
    assert config.client_url == "https://git.example.org"
    assert config.urls[config.me] == "http://127.0.0.1:3001"


def test_a_key_that_others_can_read_is_refused_with_the_command_that_mends_it(tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    write_private(path)
    path.chmod(0o644)
    with pytest.raises(KeyRefused, match="run: chmod 600"):
        read_private(path)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("http://a:geheim@h/v", "URL 1 in amqp_url is not amqp://"),
        ("amqp://a:geheim@h/v,", "URL 2 in amqp_url is not amqp://"),
        ("amqp://a:geheim@h/v,amqp://a:geheim@h:99999/v", "URL 2 in amqp_url is not amqp://"),
        ("amqp://a:geheim@h/v,amqp://b:geheim@i/v", "all URLs in amqp_url need the same user, password and vhost"),
        ("amqp://a:geheim@h/v,amqp://a:geheim@i/w", "all URLs in amqp_url need the same user, password and vhost"),
    ],
)
def test_amqp_urls_that_are_none_or_not_one_clusters_are_refused_without_showing_the_password(
    tmp_path: Path, url: str, said: str
) -> None:
    with pytest.raises(ValidationError) as refused:
        Config.from_file(write(tmp_path, 'transport = "amqp"', f'amqp_url = "{url}"'))
    assert said in plain(refused.value)
    assert "geheim" not in plain(refused.value)


def test_a_configuration_that_is_printed_shows_no_password(tmp_path: Path) -> None:
    config = Config.from_file(write(tmp_path, 'transport = "amqp"', 'amqp_url = "amqp://a:geheim@h/v"'))
    assert config.amqp_url == "amqp://a:geheim@h/v"
    for shown in (repr(config), str(config), f"{config}"):
        assert "node-1" in shown
        assert "geheim" not in shown


def test_several_brokers_may_be_named_and_the_kind_of_queue_comes_from_the_environment_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    urls = "amqp://a:p%2Cw@one/v, amqp://a:p%2Cw@two:5673/v"
    monkeypatch.setenv("GITQUORUM_QUEUE_TYPE", "quorum")
    path = write(tmp_path, 'transport = "amqp"', f'amqp_url = "{urls}"')
    config = Config.from_file(path)
    assert (config.amqp_url, config.queue_type) == (urls, "quorum")
    monkeypatch.delenv("GITQUORUM_QUEUE_TYPE")
    assert Config.from_file(path).queue_type == "classic"
