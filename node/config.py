"""One frozen configuration for a node: every setting with its default, its unit and why, validated in plain sentences.

Read once, by ``node.__main__``: from a TOML file (``gitquorum serve --config node.toml``), overridden by environment
variables ``GITQUORUM_…``. Everything else gets a ``Config`` and never looks at the environment.
"""

from pathlib import Path
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, TomlConfigSettingsSource

from node.faults import FaultPoint
from node.protocol.ids import NodeId
from node.protocol.names import check_node_id
from node.protocol.quorum import VoterSet, majority, quorum
from node.protocol.timing import Timing

Positive = Annotated[float, Field(gt=0, le=86_400)]


def _http_url(value: str) -> str:
    parts = urlsplit(value)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"{value!r} is not an http:// or https:// URL")
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise ValueError("the URL of a node has no user, no query and no fragment: it is shown to everybody")
    try:
        parts.netloc.encode("idna")
        if parts.port == 0:
            raise ValueError("there is no port 0")
        if any(character <= " " or character == "\x7f" for character in value):
            raise ValueError("it has a space or a control character")
    except ValueError as error:
        raise ValueError(f"{value!r} cannot be connected to: {error}") from error
    return value.rstrip("/")


class Member(BaseModel):
    """A configured member of the cluster, this node included."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str = Field(description="Node id, for example node-1.")
    url: str = Field(description="Where its HTTP front end is reached by clients and peers.")
    public_keys: tuple[str, ...] = Field(
        description="Ed25519 public keys, base64; the first one is in use, the others are retired but still verify."
    )

    @field_validator("id")
    @classmethod
    def _id(cls, value: str) -> str:
        return check_node_id(value)

    @field_validator("url")
    @classmethod
    def _url(cls, value: str) -> str:
        return _http_url(value)

    @field_validator("public_keys")
    @classmethod
    def _keys(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value:
            raise ValueError("a member needs at least one public key")
        return value


class Config(BaseSettings):
    """A node's settings."""

    model_config = SettingsConfigDict(
        frozen=True,
        extra="forbid",
        env_prefix="GITQUORUM_",
        env_nested_delimiter="__",
        hide_input_in_errors=True,  # amqp_url holds a password
    )

    node_id: str = Field(description="This node's id; one of the members'.")
    cluster: str = Field(
        default="gitquorum",
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$",
        description="Name of the cluster; bound into every signature.",
    )
    members: tuple[Member, ...] = Field(
        description="All members, this node included. Voters of repositories created from now on."
    )
    data_dir: Path = Field(description="Repositories, journal, quarantine and stage; one process per directory.")
    private_key: Path = Field(description="File with this node's Ed25519 private key, PEM, readable by its owner only.")
    host: str = Field(default="127.0.0.1", description="Address that the front end listens on.")
    port: int = Field(default=3001, ge=1, le=65_535, description="Port that the front end listens on.")
    public_url: str | None = Field(
        default=None,
        description="Where clients reach this node, when that is not its URL in members (published ports of a container, a "
        "proxy); shown to people, never used between nodes.",
    )

    quorum: str = Field(
        default="majority", description="Yes votes a change needs: majority, all, or a number not below a majority."
    )
    transport: Literal["direct", "amqp"] = Field(default="direct", description="How prepare, commit and abort travel.")
    amqp_url: str | None = Field(
        default=None,
        repr=False,  # it holds the password
        description="amqp://user:password@host:port/vhost of this node's broker user; several brokers of one RabbitMQ cluster "
        "separated by commas, tried in turn. A comma in a password is written %2C.",
    )
    queue_type: Literal["classic", "quorum"] = Field(
        default="classic", description="Kind of the queues that are declared; quorum for a RabbitMQ cluster of several brokers."
    )
    inspect_length: int = Field(
        default=1000, ge=0, le=100_000, description="How many recent protocol messages gitquorum.inspect keeps; 0 turns it off."
    )

    consistency: Literal["linearizable", "local"] = Field(
        default="linearizable", description="Reads that do not say which they want."
    )

    prepare_timeout_s: Positive = Field(default=2.0, description="Quorum deadline of a write, from submission to decision.")
    abort_timeout_s: Positive = Field(
        default=0.6, description="How much longer a client waits for the abort before it is told unknown."
    )
    read_timeout_s: Positive = Field(
        default=5.0, description="How long a linearizable read waits for a majority, or for a doubt to be settled."
    )
    heartbeat_s: Positive = Field(default=0.5, description="Between questions to each peer whether it is alive.")
    suspect_after_s: Positive = Field(default=1.5, description="Silence after which a peer is not waited for.")
    stage_stall_timeout_s: Positive = Field(
        default=10.0, description="A pack transfer without progress for this long is given up."
    )

    body_timeout_s: Positive = Field(
        default=30.0, description="A client that sends nothing of its request body for this long is cut off."
    )
    pack_bytes_max: int = Field(default=2 * 1024**3, ge=1024, description="Largest pack a push may send.")
    json_bytes_max: int = Field(default=64 * 1024, ge=1024, description="Largest JSON request body.")
    push_commands_bytes_max: int = Field(
        default=4 * 1024**2, ge=4096, description="Largest command list of a push, before its pack."
    )
    fetch_request_bytes_max: int = Field(default=16 * 1024**2, ge=4096, description="Largest want/have list of a fetch.")
    gzip_ratio_max: int = Field(default=200, ge=2, description="How many times its size a compressed request body may become.")
    connections_max: int = Field(
        default=512, ge=8, description="Client connections served at once; the next ones are closed with 503."
    )
    pushes_max: int = Field(default=8, ge=1, description="Packs being received or indexed at once; more wait, then get 503.")
    fetches_max: int = Field(default=16, ge=1, description="git upload-pack processes at once; more wait, then get 503.")
    writes_max: int = Field(
        default=128, ge=1, description="Pushes, creations and deletions that are being decided at once; more wait."
    )
    repository_writes_max: int = Field(default=64, ge=1, description="Of these, for one repository.")
    writes_waiting_max: int = Field(
        default=256, ge=1, description="How many wait for that, half of them for one repository at most; the next ones get 503."
    )
    reads_max: int = Field(
        default=256, ge=1, description="Reads that ask other nodes or wait for a version at once; more wait."
    )
    repository_reads_max: int = Field(default=128, ge=1, description="Of these, of one repository.")
    reads_waiting_max: int = Field(
        default=256, ge=1, description="How many wait for that, half of them of one repository at most; the next ones get 503."
    )
    turn_wait_s: Positive = Field(default=5.0, description="How long a read or write waits for its turn before it gets 503.")
    git_memory_bytes_max: int = Field(default=512 * 1024**2, ge=64 * 1024**2, description="Address space of one git process.")
    git_cpu_s_max: int = Field(default=600, ge=1, description="CPU time of one git process.")
    inflated_bytes_max: int = Field(
        default=4 * 1024**3, ge=1024**2, description="Largest single object a pack may declare, and sum for small packs."
    )
    free_bytes_min: int = Field(default=256 * 1024**2, ge=0, description="Below this much free disk the node votes no.")

    scrub_interval_s: Positive = Field(default=21_600.0, description="Between two looks at everything that this node stores.")
    scrub_bytes_per_s: float = Field(
        default=8 * 1024**2, ge=1024, description="How fast the scrub reads packs from the disk, at the most."
    )

    drill_token: str | None = Field(
        default=None,
        min_length=16,
        repr=False,
        description="For staging: who names this secret may cut the node off from its peers for a minute at most (gitquorum "
        "drill does); without it nobody may.",
    )
    anti_entropy_interval_s: Positive = Field(
        default=30.0, description="Between two comparisons of everything with one peer, if the roots of both trees differ."
    )

    fault_points: tuple[FaultPoint, ...] = Field(
        default=(), description="For tests: where this process shall die; see node/faults.py."
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Arguments, then the environment, then the TOML file that ``from_file`` names."""
        return (init_settings, env_settings, TomlConfigSettingsSource(settings_cls))

    @classmethod
    def from_file(cls, path: Path) -> "Config":
        """Read ``path``; the environment overrides it. Relative paths in it are relative to its folder.

        Raises:
            ValueError: (pydantic's ``ValidationError``) with a sentence for every setting that is wrong.
            OSError: if it cannot be read.
        """

        class _FromFile(cls):  # type: ignore[valid-type, misc]
            model_config = SettingsConfigDict(toml_file=path)

        if not path.is_file():
            raise FileNotFoundError(f"{path} does not exist; make one with: gitquorum init")
        config = _FromFile()
        folder = path.resolve().parent
        return Config(
            **{**config.model_dump(), "data_dir": folder / config.data_dir, "private_key": folder / config.private_key}
        )

    @field_validator("public_url")
    @classmethod
    def _public(cls, value: str | None) -> str | None:
        return value and _http_url(value)

    @field_validator("quorum", mode="before")
    @classmethod
    def _number(cls, value: object) -> object:
        """``quorum = 2`` is as good as ``quorum = "2"``."""
        return str(value) if isinstance(value, int) and not isinstance(value, bool) else value

    @field_validator("amqp_url")
    @classmethod
    def _amqp_urls(cls, value: str | None) -> str | None:
        """Every URL is one, and all are the same user's on the same vhost; passwords are never in what is said."""
        urls = [url.strip() for url in value.split(",")] if value else []
        identities = [_broker_identity(url, number) for number, url in enumerate(urls, start=1)]
        if len(set(identities)) > 1:
            raise ValueError("all URLs in amqp_url need the same user, password and vhost: they are one RabbitMQ cluster")
        return value

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        ids = [member.id for member in self.members]
        if self.node_id not in ids:
            raise ValueError(f"node_id {self.node_id!r} is not one of the members ({', '.join(ids) or 'none'})")
        if len(set(ids)) != len(ids) or len({member.url for member in self.members}) != len(ids):
            raise ValueError("two members share an id or a URL")
        quorum(len(ids), self.quorum)
        if self.transport == "amqp" and not self.amqp_url:
            raise ValueError("transport is amqp, but amqp_url is not set")
        if self.suspect_after_s <= self.heartbeat_s:
            raise ValueError("suspect_after_s must be longer than heartbeat_s")
        return self

    @property
    def me(self) -> NodeId:
        return NodeId(self.node_id)

    @property
    def voters(self) -> VoterSet:
        return VoterSet.of(NodeId(member.id) for member in self.members)

    @property
    def write_quorum(self) -> int:
        return self.voters.quorum(self.quorum)

    @property
    def urls(self) -> dict[NodeId, str]:
        return {NodeId(member.id): member.url for member in self.members}

    @property
    def client_url(self) -> str:
        """Where a client is told to find this node."""
        return self.public_url or self.urls[self.me]

    @property
    def timing(self) -> Timing:
        return Timing(prepare_s=self.prepare_timeout_s, abort_s=self.abort_timeout_s)

    @property
    def survives(self) -> int:
        """How many nodes may be gone while writes go on."""
        return len(self.members) - max(self.write_quorum, majority(len(self.members)))


def _broker_identity(url: str, number: int) -> tuple[str | None, str | None, str]:
    """Who connects where by one of the URLs; ``number`` names it without showing it."""
    parts = urlsplit(url)
    try:
        port = parts.port or 5672
    except ValueError:
        port = 0
    if parts.scheme not in ("amqp", "amqps") or not parts.hostname or not port:
        raise ValueError(f"URL {number} in amqp_url is not amqp://user:password@host:port/vhost, nor amqps://…")
    return parts.username, parts.password, parts.path
