"""``gitquorum init --compose``: what it makes fits together, nothing is overwritten, and only the right users can read it."""

import json
import os
import stat
from pathlib import Path

import pytest

import node.__main__ as command
from node.command.compose import FOLDER, IMAGE_UID, Wish, init_compose
from node.command.output import CommandError, Exit
from node.config import Config
from node.keys import Keyring, read_private
from node.protocol.ids import NodeId
from tests.unit.command_cluster import Recorder


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "compose.yaml").write_text("services: {}\n")
    return tmp_path


def made(project: Path, **wish: object) -> list[str]:
    return init_compose(project, Wish(**wish), Recorder())["made"]  # type: ignore[arg-type]


def env(project: Path) -> dict[str, str]:
    lines = (project / ".env").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def everything(project: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in project.rglob("*") if path.is_file()}


def configs(project: Path) -> list[Config]:
    return [Config.from_file(project / FOLDER / f"node-{number}" / "node.toml") for number in (1, 2, 3)]


def test_every_node_can_verify_every_other_and_log_in_to_the_broker(project: Path) -> None:
    made(project, name="berlin")
    words = json.loads((project / FOLDER / "passwords.json").read_text())
    described = json.loads((project / FOLDER / "broker" / "definitions.json").read_text())
    assert {user["name"] for user in described["users"]} == {"node-1", "node-2", "node-3", "gitquorum-operator"} == set(words)
    for config in configs(project):
        assert config.amqp_url == f"amqp://{config.node_id}:{words[config.node_id]}@rabbitmq:5672/gitquorum"
        assert (config.cluster, config.transport, config.queue_type) == ("berlin", "amqp", "classic")
        assert config.urls[config.me] == f"http://{config.node_id}:3001"
        Keyring(config.me, read_private(config.private_key), {NodeId(m.id): m.public_keys for m in config.members})


def test_no_secret_is_in_env_and_only_the_owner_reads_the_others(project: Path) -> None:
    made(project)
    words = json.loads((project / FOLDER / "passwords.json").read_text()).values()
    assert not any(word in (project / ".env").read_text() for word in words)
    assert stat.S_IMODE((project / ".env").stat().st_mode) == 0o644
    assert not any(word in (project / FOLDER / "broker" / "definitions.json").read_text() for word in words)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (project / FOLDER).rglob("*")}
    assert stat.S_IMODE((project / FOLDER).stat().st_mode) == modes["node-1"] == modes["broker"] == 0o700
    assert {modes[name] for name in ("key.pem", "node.toml", "passwords.json", "erlang.cookie")} == {0o600}
    assert {modes[name] for name in ("definitions.json", "rabbitmq.conf")} == {0o644}, "for the broker's user, whoever that is"


@pytest.mark.parametrize(("caller", "reader"), [(0, IMAGE_UID), (4711, 4711)])
def test_the_nodes_run_as_whoever_may_read_the_keys_and_never_as_root(
    project: Path, monkeypatch: pytest.MonkeyPatch, caller: int, reader: int
) -> None:
    given: dict[str, int] = {}
    monkeypatch.setattr(os, "geteuid", lambda: caller)
    monkeypatch.setattr(os, "chown", lambda path, uid, gid, follow_symlinks: given.setdefault(str(path), uid))
    made(project)
    assert env(project)["GITQUORUM_UID"] == str(reader)
    own = {str(project / FOLDER / f"node-{number}" / "key.pem") for number in (1, 2, 3)}
    assert (own <= set(given) and set(given.values()) == {reader}) if caller == 0 else not given


def test_a_second_time_changes_nothing_and_says_so(project: Path) -> None:
    made(project)
    before, output = everything(project), Recorder()
    assert init_compose(project, Wish(), output) == {"made": []}
    assert everything(project) == before
    assert output.said[0].startswith("all is there")


def test_what_was_asked_for_and_is_otherwise_there_is_said(project: Path) -> None:
    made(project, images={"RABBITMQ_IMAGE": "mine"})
    before, output = everything(project), Recorder()
    wish = Wish(base_port=3002, management_port=9999, name="other", images={"RABBITMQ_IMAGE": "theirs"})
    assert init_compose(project, wish, output) == {"made": []}
    assert everything(project) == before
    said = "\n".join(output.said)
    assert f"kept GITQUORUM_PORT_1=3001 (not 3002): {project}/.env says so" in said
    assert "kept GITQUORUM_MANAGEMENT_PORT=15672 (not 9999)" in said
    assert "kept RABBITMQ_IMAGE=mine (not theirs)" in said
    assert f"kept cluster = 'gitquorum' (not 'other'): {project}/{FOLDER}/node-1/node.toml says so" in said
    same = Recorder()
    init_compose(project, Wish(base_port=3001, images={"RABBITMQ_IMAGE": "mine"}), same)
    assert "kept" not in "\n".join(same.said)


@pytest.mark.parametrize(
    "name",
    ["", "passwords.json", "lock", "broker", "broker/erlang.cookie", "node-2", "node-2/key.pem", "node-2/node.toml", "../.env"],
)
def test_a_symbolic_link_is_refused_and_what_it_leads_to_stays(
    project: Path, tmp_path_factory: pytest.TempPathFactory, name: str
) -> None:
    """Root would overwrite it or give it away."""
    made(project)
    path = project / FOLDER / name
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "moved"
    path.rename(elsewhere)
    path.symlink_to(elsewhere)
    before = {each: (each.lstat().st_uid, each.lstat().st_mtime_ns) for each in (elsewhere, *elsewhere.rglob("*"))}
    with pytest.raises(CommandError, match="is a symbolic link"):
        made(project)
    assert {each: (each.lstat().st_uid, each.lstat().st_mtime_ns) for each in before} == before


def test_a_symbolic_link_that_leads_nowhere_is_refused_too(project: Path) -> None:
    (project / FOLDER).mkdir()
    (project / FOLDER / "passwords.json.new").symlink_to("/nowhere")
    with pytest.raises(CommandError, match=r"passwords\.json\.new is a symbolic link"):
        made(project)


@pytest.mark.parametrize(
    "line",
    ["GITQUORUM_UID=", "GITQUORUM_UID=me", "GITQUORUM_UID=-1", "GITQUORUM_SECRETS=", "GITQUORUM_SECRETS=/nowhere"],
)
@pytest.mark.parametrize("second", [False, True])
def test_a_line_that_nobody_can_use_is_named(project: Path, line: str, second: bool) -> None:
    """Compose would say: run gitquorum init --compose; which says that all is there."""
    if second:
        made(project)
    (project / ".env").write_text(f"{line}\n")
    before = everything(project)
    with pytest.raises(CommandError, match=f"says {line}, which is .*; remove the line, then run it again"):
        made(project)
    assert everything(project) == before
    (project / ".env").write_text("")
    made(project)


def test_another_way_to_name_the_folder_of_secrets_is_as_good(project: Path) -> None:
    (project / ".env").write_text(f"GITQUORUM_SECRETS='{project}/{FOLDER}/'\n")
    made(project)


def test_what_root_made_is_named_in_one_line_to_an_ordinary_user(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, *_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    made(project)
    monkeypatch.setattr(Path, "is_symlink", refuse)
    with pytest.raises(CommandError) as refused:
        made(project)
    said = str(refused.value)
    owner = "root" if os.geteuid() == 0 else f"user {os.geteuid()}"
    assert said.startswith(
        f"not permitted: {project / FOLDER}; {project / FOLDER} belongs to {owner}: run it as {owner} (sudo)"
    )
    assert "\n" not in said


@pytest.mark.parametrize(
    "name", ["node-2/node.toml", "broker/rabbitmq.conf", "broker/definitions.json", "broker/erlang.cookie"]
)
def test_what_was_made_from_the_sources_is_made_again(project: Path, name: str) -> None:
    made(project)
    before = everything(project)
    (project / FOLDER / name).unlink()
    assert made(project) == [f"{FOLDER}/{name}"]
    changed = {str(path.relative_to(project / FOLDER)) for path, text in everything(project).items() if before[path] != text}
    assert changed <= {"broker/definitions.json", "broker/erlang.cookie"} & {name}, "salt and chance, and nothing else"


@pytest.mark.parametrize("name", ["node-2/key.pem", "passwords.json"])
def test_a_lost_source_is_not_replaced_beside_what_was_made_from_it(project: Path, name: str) -> None:
    made(project)
    (project / FOLDER / name).unlink()
    before = everything(project)
    with pytest.raises(CommandError, match=r"is missing, and node\.toml was made from it"):
        made(project)
    assert everything(project) == before


def test_an_env_that_was_there_keeps_every_line_and_gets_what_it_lacks(project: Path) -> None:
    own = "# mine\nGITQUORUM_PORT_2=9002\nexport OTHER='x y'\nRABBITMQ_IMAGE=mine"
    (project / ".env").write_text(own)
    made(project, images={"RABBITMQ_IMAGE": "theirs", "BASE_IMAGE": "local/python"})
    text = (project / ".env").read_text()
    assert text.startswith(own + "\n")
    assert "theirs" not in text
    found = env(project)
    assert (found["GITQUORUM_PORT_1"], found["GITQUORUM_PORT_2"], found["BASE_IMAGE"]) == ("3001", "9002", "local/python")


def test_a_broker_cluster_has_quorum_queues_and_nodes_know_all_its_brokers(project: Path) -> None:
    made(project, broker_cluster=True)
    assert env(project)["COMPOSE_PROFILES"] == "broker-cluster"
    config = configs(project)[2]
    assert config.queue_type == "quorum"
    hosts = [url.partition("@")[2] for url in str(config.amqp_url).split(",")]
    assert hosts == [f"{host}:5672/gitquorum" for host in ("rabbitmq", "rabbitmq-2", "rabbitmq-3")]
    described = json.loads((project / FOLDER / "broker" / "definitions.json").read_text())
    assert {queue["arguments"]["x-queue-type"] for queue in described["queues"]} == {"quorum"}
    assert "classic_config.nodes.3 = rabbit@rabbitmq-3" in (project / FOLDER / "broker" / "rabbitmq.conf").read_text()
    (project / FOLDER / "node-1" / "node.toml").unlink()
    assert made(project) == [f"{FOLDER}/node-1/node.toml"]
    assert configs(project)[0].queue_type == "quorum", "it stays what it is without being told again"


def test_one_broker_does_not_become_three_unnoticed(project: Path) -> None:
    made(project)
    before = everything(project)
    with pytest.raises(CommandError, match=r"made for a single broker; docs/containers\.md"):
        made(project, broker_cluster=True)
    assert everything(project) == before


def test_profiles_that_somebody_chose_are_not_changed(project: Path) -> None:
    (project / ".env").write_text("COMPOSE_PROFILES=mine\n")
    with pytest.raises(CommandError, match="add broker-cluster to it"):
        made(project, broker_cluster=True)
    assert not (project / FOLDER).exists()


@pytest.mark.parametrize(
    "bad", [{"nodes": 5}, {"base_port": 0}, {"management_port": 70_000}, {"management_port": 3002}, {"name": "a b"}]
)
def test_what_does_not_fit_is_a_usage_error(project: Path, bad: dict[str, object]) -> None:
    with pytest.raises(CommandError) as refused:
        made(project, **bad)
    assert refused.value.code is Exit.USAGE
    assert not (project / FOLDER).exists()


def test_the_command_says_what_comes_next(
    project: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the folder that one is in, wherever a local cluster is."""
    monkeypatch.chdir(project)
    monkeypatch.setenv("GITQUORUM_HOME", "/nowhere/.gitquorum")
    assert command.main(["init", "--compose", "--json"]) == Exit.OK
    said = capsys.readouterr()
    assert ".env" in json.loads(said.out)["made"]
    assert "next: docker compose up -d" in said.err
    assert command.main(["init", "--compose", "--force"]) == Exit.USAGE
    assert command.main(["--directory", str(project / ".gitquorum"), "init", "--broker-cluster"]) == Exit.USAGE
    capsys.readouterr()
    assert command.main(["--directory", str(project / ".gitquorum"), "init", "--compose"]) == Exit.USAGE
    assert "--directory does not go with it" in capsys.readouterr().err
    (project / "x").mkdir()
    monkeypatch.chdir(project / "x")
    assert command.main(["init", "--compose"]) == Exit.USAGE
    assert "no compose.yaml in" in capsys.readouterr().err
