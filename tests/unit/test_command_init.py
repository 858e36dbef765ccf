"""``gitquorum init``: what it makes is a valid configuration for every node, and nothing is overwritten unasked."""

import stat
from pathlib import Path

import pytest

from node.command.init import init, set_transport
from node.command.output import CommandError, Exit
from node.command.state import Home
from node.config import Config
from node.keys import Keyring, read_private
from node.protocol.ids import NodeId


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "state")


def keyring(config: Config) -> Keyring:
    return Keyring(config.me, read_private(config.private_key), {NodeId(m.id): m.public_keys for m in config.members})


def test_every_node_can_verify_every_other(home: Home) -> None:
    cluster = init(home, nodes=3, base_port=4001)
    rings = [keyring(Config.from_file(node.config)) for node in cluster.nodes]
    for signer in rings:
        signature = signer.sign(b"prepare")
        assert all(ring.verify(signer.node, b"prepare", signature) for ring in rings)
        assert not any(ring.verify(NodeId("node-9"), b"prepare", signature) for ring in rings)


def test_the_configuration_says_where_everything_is(home: Home) -> None:
    node = init(home, nodes=2, base_port=4001, name="berlin").nodes[1]
    config = Config.from_file(node.config)
    assert (config.node_id, config.port, config.cluster, config.transport) == ("node-2", 4002, "berlin", "direct")
    assert (config.data_dir, config.private_key) == (node.data, node.key)
    assert [member.url for member in config.members] == ["http://127.0.0.1:4001", "http://127.0.0.1:4002"]


def test_secrets_are_readable_by_their_owner_only(home: Home) -> None:
    node = init(home).nodes[0]
    assert stat.S_IMODE(home.folder.stat().st_mode) == 0o700
    assert stat.S_IMODE(node.key.stat().st_mode) == 0o600
    assert stat.S_IMODE(node.config.stat().st_mode) == 0o600


def test_an_existing_cluster_is_replaced_only_by_force(home: Home) -> None:
    key = init(home).nodes[0].key
    old = key.read_bytes()
    with pytest.raises(CommandError, match="--force"):
        init(home)
    assert key.read_bytes() == old
    assert len(init(home, nodes=1, force=True).nodes) == 1
    assert key.read_bytes() != old
    assert not (home.folder / "node-2").exists()


@pytest.mark.parametrize("bad", [{"nodes": 0}, {"nodes": 16}, {"base_port": 80}, {"base_port": 65_534}, {"name": "a b"}])
def test_impossible_numbers_are_usage_errors(home: Home, bad: dict[str, int]) -> None:
    with pytest.raises(CommandError) as refused:
        init(home, **bad)  # type: ignore[arg-type]
    assert refused.value.code is Exit.USAGE
    assert not home.folder.exists()


def test_the_broker_changes_two_lines_and_keeps_what_a_person_wrote(home: Home) -> None:
    path = init(home).nodes[0].config
    path.write_text(path.read_text().replace("[[members]]", "prepare_timeout_s = 7.5  # slow disks\n\n[[members]]", 1))
    direct = path.read_text()
    set_transport(path, "amqp://node-1:p%40ss@127.0.0.1:5672/gitquorum")
    config = Config.from_file(path)
    assert (config.transport, config.amqp_url) == ("amqp", "amqp://node-1:p%40ss@127.0.0.1:5672/gitquorum")
    assert config.prepare_timeout_s == 7.5
    assert "# slow disks" in path.read_text()
    set_transport(path, None)
    assert path.read_text() == direct


def test_the_transport_is_added_where_it_was_removed(home: Home) -> None:
    path = init(home).nodes[0].config
    path.write_text(path.read_text().replace('transport = "direct"\n', ""))
    set_transport(path, "amqp://a:b@host/v")
    assert Config.from_file(path).amqp_url == "amqp://a:b@host/v"


def test_a_damaged_cluster_file_is_one_clear_line(home: Home) -> None:
    init(home)
    home.file.write_text('{"format": 1}')
    with pytest.raises(CommandError, match=r"cluster\.json is damaged"):
        home.load()


def test_two_commands_at_once_wait_for_each_other(home: Home) -> None:
    init(home)
    with home.locked(), pytest.raises(CommandError, match="another gitquorum command") as refused, home.locked(wait_s=0.2):
        raise AssertionError("both hold the lock")
    assert refused.value.code is Exit.UNAVAILABLE
