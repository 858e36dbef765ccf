"""``gitquorum serve``: one node in the foreground. The composition root: the only place where all adapters meet.

Order matters: the data directory is locked and the journal opened first (a second process is refused before it touches
anything), then replay and the protocol, then the front end; at the end the other way round.
"""

import asyncio
import sys
from pathlib import Path
from tomllib import TOMLDecodeError

import structlog
from pydantic import ValidationError

from api.app import create_app
from api.server import serve as serve_http
from api.smart_http import SmartHttp
from broker.amqp import AmqpTransport
from broker.codec import Codec
from broker.direct import DirectTransport, HttpPeers
from broker.direct_server import DirectServer
from node.command.doctor import plain
from node.config import Config
from node.isolation import GatedEndpoint, GatedPeers, GatedTransport, Isolation
from node.keys import KeyRefused, Keyring, read_private
from node.logs import configure
from node.ports.errors import NodeError
from node.ports.transport import DirectEndpoint, Peers, Transport
from node.protocol.ids import NodeId
from node.retries import RetryBudget
from node.runtime import Runtime
from node.storage.git import GitLimits
from node.storage.journal import SqliteJournal
from node.storage.objects import DiskObjects
from node.system import SystemClock, SystemEntropy

log = structlog.get_logger()

SWITCH_INTERVAL_S = 0.0001
"""A busy loop must not win the interpreter lock back from the journal's thread each time SQLite lets go of it: with Python's
own 5 ms a push beside a saturated loop took 41 s, with this one 7 ms."""


def serve(config_path: Path) -> None:
    """Run until SIGTERM or SIGINT. Exits 1 with one clear line when the node cannot start."""
    configure()
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    try:
        config = Config.from_file(config_path)
        asyncio.run(_serve(config))
    except ValidationError as error:
        sys.stderr.write(f"gitquorum: {config_path}: {plain(error)}\n")
        raise SystemExit(1) from None
    except TOMLDecodeError as error:
        sys.stderr.write(f"gitquorum: {config_path} is not TOML: {error}\n")
        raise SystemExit(1) from None
    except (NodeError, KeyRefused, OSError) as error:
        sys.stderr.write(f"gitquorum: {error}\n")
        raise SystemExit(1) from None


async def _serve(config: Config) -> None:
    signer = _keyring(config)
    config.data_dir.mkdir(parents=True, exist_ok=True)
    journal = await asyncio.to_thread(SqliteJournal.open, config.data_dir, node=config.me, cluster=config.cluster)
    store = await asyncio.to_thread(DiskObjects, config.data_dir, _limits(config))
    codec = Codec(config.cluster, config.me, journal.identity.incarnation, signer, members=config.voters.nodes)
    clock = SystemClock()
    budget = RetryBudget(clock)
    http_peers = HttpPeers(codec, config.urls, budget.take)
    peers: Peers = http_peers
    transport = _transport(config, codec, http_peers)
    isolation = Isolation() if config.drill_token else None
    if isolation is not None:
        transport, peers = GatedTransport(transport, isolation), GatedPeers(peers, isolation)
    runtime = Runtime(
        config,
        clock=clock,
        entropy=SystemEntropy(),
        signer=signer,
        journal=journal,
        store=store,
        transport=transport,
        peers=peers,
        rejoined=lambda incarnation: setattr(codec, "incarnation", incarnation),
        budget=budget,
    )
    direct: DirectEndpoint = DirectServer(
        codec,
        transport_handler=runtime.serving.on_request if config.transport == "direct" else None,
        direct_handler=runtime.serving.on_question,
        fetch_handler=runtime.serving.on_fetch,
    )
    if isolation is not None:
        direct = GatedEndpoint(direct, isolation)
    smart_http = SmartHttp(runtime.service, config)
    app = create_app(
        runtime.service,
        config,
        direct=direct,
        smart_http=smart_http,
        isolation=isolation,
        care=runtime.care,
        rejoins=runtime.membership,
    )
    try:
        await runtime.start()
        await serve_http(app, config)
    finally:
        await runtime.stop()
    log.info("node stopped", node=config.node_id)


def _keyring(config: Config) -> Keyring:
    public = {NodeId(member.id): member.public_keys for member in config.members}
    return Keyring(config.me, read_private(config.private_key), public)


def _transport(config: Config, codec: Codec, peers: HttpPeers) -> Transport:
    if config.transport == "amqp":
        assert config.amqp_url is not None, "checked by Config"
        return AmqpTransport(
            codec,
            url=config.amqp_url,
            members=config.voters.nodes,
            inspect_length=config.inspect_length,
            queue_type=config.queue_type,
        )
    return DirectTransport(codec, peers)


def _limits(config: Config) -> GitLimits:
    return GitLimits(
        memory_bytes_max=config.git_memory_bytes_max,
        cpu_s_max=config.git_cpu_s_max,
        inflated_bytes_max=config.inflated_bytes_max,
        pack_bytes_max=config.pack_bytes_max,
        free_bytes_min=config.free_bytes_min,
        pushes_max=config.pushes_max,
        fetches_max=config.fetches_max,
    )
