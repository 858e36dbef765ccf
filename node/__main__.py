"""The command ``gitquorum`` (also ``python -m node``): reads the command line and the environment, calls ``node.command``.

Nobody imports this module. Commands import what they need when they run: ``gitquorum status`` should not wait for a web
framework to load.
"""

import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from node.command.output import CommandError, Exit, Output
from node.command.state import FOLDER, Home

app = typer.Typer(
    name="gitquorum",
    help="A replicated Git server: a push that is acknowledged is on a quorum of machines.",
    epilog="Exit codes: 0 done, 1 failed, 2 usage, 3 not found, 4 unavailable or aborted, 5 outcome unknown.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
broker_app = typer.Typer(help="Kill and start the cluster's own broker, to try its failure.", no_args_is_help=True)
repo_app = typer.Typer(help="Create, list, show and delete repositories.", no_args_is_help=True)
tx_app = typer.Typer(help="Look at transactions.", no_args_is_help=True)
app.add_typer(broker_app, name="broker")
app.add_typer(repo_app, name="repo")
app.add_typer(tx_app, name="tx")

Json = Annotated[bool, typer.Option("--json", help="The result as JSON on stdout; progress stays on stderr.")]
NodeName = Annotated[str, typer.Argument(help="A node's id (node-2), or its number.", metavar="NODE")]
RepoName = Annotated[str, typer.Argument(help="owner/name", metavar="OWNER/REPO")]
At = Annotated[
    str | None, typer.Option("--node", help="Ask this node (id, number or http:// URL), not the first that answers.")
]
Image = Annotated[str | None, typer.Option(envvar="GITQUORUM_RABBITMQ_IMAGE", hidden=True)]


@dataclass(frozen=True, slots=True)
class Settings:
    """What was said before the command's name."""

    home: Home


def _print_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        typer.echo(f"gitquorum {version('gitquorum')}")
        raise typer.Exit


@app.callback()
def settings(
    context: typer.Context,
    directory: Annotated[
        Path,
        typer.Option(
            "--directory", "-C", envvar="GITQUORUM_HOME", help="The cluster's folder: its nodes, keys, repositories and logs."
        ),
    ] = Path(FOLDER),
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    context.obj = Settings(Home(directory))


@app.command()
def init(
    context: typer.Context,
    nodes: Annotated[int, typer.Option(help="How many nodes.")] = 3,
    base_port: Annotated[int, typer.Option(help="Port of node-1; the others follow.")] = 3001,
    cluster: Annotated[str, typer.Option(help="Name of the cluster; bound into every signature.")] = "gitquorum",
    force: Annotated[
        bool, typer.Option("--force", help="Replace a cluster that is there, [bold]with its repositories[/].")
    ] = False,
    compose: Annotated[
        bool,
        typer.Option("--compose", help="For compose.yaml in this folder instead: .env, keys, passwords; overwrites nothing."),
    ] = False,
    broker_cluster: Annotated[
        bool, typer.Option("--broker-cluster", help="With --compose: three RabbitMQ brokers and quorum queues.")
    ] = False,
    management_port: Annotated[int, typer.Option(help="With --compose: port of the broker's management UI.")] = 15672,
    base_image: Annotated[str | None, typer.Option(envvar="BASE_IMAGE", hidden=True)] = None,
    rabbitmq_image: Annotated[str | None, typer.Option(envvar="RABBITMQ_IMAGE", hidden=True)] = None,
    as_json: Json = False,
) -> None:
    """Make keys, configurations and data directories of a local cluster; start nothing."""
    from node.command.init import init as make

    home, output = _home(context), Output(as_json)
    if compose:
        if force:
            raise CommandError("--compose never overwrites anything: --force does not go with it", Exit.USAGE)
        # GITQUORUM_HOME, which people export for a local cluster, says nothing about where compose.yaml is.
        source = context.parent and context.parent.get_parameter_source("directory")
        if source and source.name == "COMMANDLINE":
            raise CommandError("--compose is for the folder you are in: --directory does not go with it", Exit.USAGE)
        from node.command.compose import Wish, init_compose

        images = {"BASE_IMAGE": base_image, "RABBITMQ_IMAGE": rabbitmq_image}
        wish = Wish(nodes, base_port, management_port, cluster, broker_cluster, {k: v for k, v in images.items() if v})
        output.result(init_compose(Path.cwd(), wish, output))
        return
    if broker_cluster:
        raise CommandError("--broker-cluster goes with --compose only", Exit.USAGE)
    with home.locked(make=True):
        made = make(home, nodes=nodes, base_port=base_port, name=cluster, force=force)
    output.progress(f"made {home.folder}: {nodes} nodes; start them with: gitquorum up")
    output.result(
        {"directory": str(home.folder), "nodes": [{"id": n.id, "url": n.url, "config": str(n.config)} for n in made.nodes]}
    )


@app.command()
def serve(config: Annotated[Path, typer.Option("--config", help="The node's configuration (TOML).")]) -> None:
    """Run one node in the foreground until SIGTERM or SIGINT."""
    from node.command.serve import serve as run

    run(config)


@app.command()
def up(
    context: typer.Context,
    nodes: Annotated[int | None, typer.Option(help="How many nodes a new cluster gets (3).")] = None,
    base_port: Annotated[int | None, typer.Option(help="Port of a new cluster's node-1 (3001); the others follow.")] = None,
    broker: Annotated[
        str | None,
        typer.Option(
            envvar="GITQUORUM_BROKER",
            metavar="URL|auto|local|docker|direct",
            help="auto: rabbitmq-server of this machine (local), else Docker, else direct: no broker at all. "
            "Or amqp://user:password@host:port/vhost.",
        ),
    ] = None,
    selfcheck: Annotated[bool, typer.Option("--selfcheck", help="Then prove it: see the command selfcheck.")] = False,
    image: Image = None,
    as_json: Json = False,
) -> None:
    """Start the cluster (or what is missing of it) and return when all its nodes can write."""
    from node.command import docker
    from node.command.selfcheck import selfcheck as check
    from node.command.up import Wish, next_steps
    from node.command.up import up as start

    home, output = _home(context), Output(as_json)
    result = start(home, Wish(nodes, base_port, broker, image or docker.IMAGE), output)
    if selfcheck:
        result["selfcheck"] = check(home, output)
    output.result(result, next_steps(result, _program(home)))


@app.command()
def down(
    context: typer.Context,
    purge: Annotated[bool, typer.Option("--purge", help="Also remove repositories, keys and configuration.")] = False,
    as_json: Json = False,
) -> None:
    """Stop all nodes, and the broker if it is the cluster's own."""
    from node.command.down import down as stop

    output = Output(as_json)
    output.result(stop(_home(context), output, purge=purge))


@app.command()
def status(context: typer.Context, as_json: Json = False) -> None:
    """Nodes, broker, and every repository's version on every node."""
    from node.command.status import status as show

    show(_home(context), Output(as_json))


@app.command()
def kill(context: typer.Context, node: NodeName, as_json: Json = False) -> None:
    """Kill a node with SIGKILL, as a power cut would."""
    from node.command.faults import kill_node

    output = Output(as_json)
    output.result(kill_node(_home(context), node, output))


@app.command()
def start(context: typer.Context, node: NodeName, as_json: Json = False) -> None:
    """Start a node that was killed."""
    from node.command.faults import start_node

    output = Output(as_json)
    output.result(start_node(_home(context), node, output))


@app.command()
def selfcheck(context: typer.Context, as_json: Json = False) -> None:
    """Push one commit to one node with git, clone it from another, compare."""
    from node.command.selfcheck import selfcheck as check

    output = Output(as_json)
    output.result(check(_home(context), output))


@app.command()
def drill(
    context: typer.Context,
    rounds: Annotated[
        int | None, typer.Option(help="How often each fault is made, each time on another node. Default: once on each node.")
    ] = None,
    only: Annotated[str | None, typer.Option(help="Some of the faults: kill,pause,partition.", metavar="FAULTS")] = None,
    hold: Annotated[float, typer.Option(help="Seconds that a fault lasts.")] = 5.0,
    url: Annotated[
        list[str] | None,
        typer.Option(help="The nodes of another cluster, one --url each: partition only, with --token.", metavar="URL"),
    ] = None,
    token: Annotated[
        str, typer.Option(envvar="GITQUORUM_DRILL_TOKEN", help="The nodes' drill_token; found by itself for a local cluster.")
    ] = "",
    deadline: Annotated[float, typer.Option(help="The cluster's prepare_timeout_s; limits are reckoned in it.")] = 2.0,
    recovery: Annotated[float, typer.Option(help="Seconds in which a node must be current again.")] = 30.0,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: Json = False,
) -> None:
    """Kill, pause and cut off one node at a time while pushes go on; for staging. Undoes what it does."""
    from node.command import drill as drills
    from node.command.drill_report import human

    home, output = _home(context), Output(as_json)
    plan = drills.Plan.of(rounds, only, hold, drills.limits_of(deadline, recovery))
    targets = drills.targets_of(home, url or (), token)
    result, code = drills.drill(home, targets, plan, output, lambda question: yes or _confirm(question, "drill"))
    output.result(result, None if as_json else human(result))
    if code:
        raise typer.Exit(code)


@app.command()
def doctor(context: typer.Context, as_json: Json = False) -> None:
    """Look for what keeps a cluster from working; each problem with the command that fixes it."""
    from node.command.doctor import doctor as look

    look(_home(context), Output(as_json))


@app.command()
def verify(
    context: typer.Context,
    repository: Annotated[str | None, typer.Argument(help="owner/name; else everything.", metavar="[OWNER/REPO]")] = None,
    as_json: Json = False,
) -> None:
    """Every node looks at all it stores, now, and repairs what is damaged; exit code 1 if anything was."""
    from node.command.verify import verify as look

    look(_home(context), repository, Output(as_json))


@app.command()
def repair(
    context: typer.Context,
    name: RepoName,
    node: Annotated[str, typer.Option("--node", help="The node whose copy is repaired (id or number).")],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do it; else only what would be done is shown.")] = False,
    as_json: Json = False,
) -> None:
    """Repair a repository on one node from the others; a dry run first."""
    from node.command.repair import repair as mend

    mend(_home(context), name, node, Output(as_json), yes=yes)


@app.command()
def rejoin(
    context: typer.Context,
    node: Annotated[str, typer.Option("--node", help="The node that cannot rejoin by itself (id or number).")],
    sources: Annotated[
        str | None,
        typer.Option("--from", metavar="NODE,…|none", help="Whose records are taken for everything; none: it starts empty."),
    ] = None,
    accept_loss: Annotated[
        bool, typer.Option("--accept-loss", help="Acknowledged pushes that only other nodes hold are lost for good.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do it; else only what would be done is shown.")] = False,
    as_json: Json = False,
) -> None:
    """Let a node that lost its data go on although no majority of the others can tell what it had; a dry run first."""
    from node.command.rejoin import rejoin as take

    take(_home(context), node, sources, Output(as_json), accept_loss=accept_loss, yes=yes)


@app.command()
def dataloss(context: typer.Context, as_json: Json = False) -> None:
    """What would be lost if the cluster went on from the nodes that answer; changes nothing."""
    from node.command.dataloss import dataloss as look

    look(_home(context), Output(as_json))


@broker_app.command("kill")
def broker_kill(context: typer.Context, as_json: Json = False) -> None:
    """Kill the broker with SIGKILL."""
    from node.command.faults import kill_broker

    output = Output(as_json)
    output.result(kill_broker(_home(context), output))


@broker_app.command("start")
def broker_start(context: typer.Context, as_json: Json = False) -> None:
    """Start it again, where the nodes look for it."""
    from node.command.faults import start_broker

    output = Output(as_json)
    output.result(start_broker(_home(context), output))


@repo_app.command("create")
def repo_create(context: typer.Context, name: RepoName, node: At = None, as_json: Json = False) -> None:
    """Create an empty repository on a quorum of nodes."""
    from node.command import repos

    repos.create(_url(context, node), name, Output(as_json))


@repo_app.command("list")
def repo_list(context: typer.Context, node: At = None, as_json: Json = False) -> None:
    """All repositories."""
    from node.command import repos

    repos.show_list(_url(context, node), Output(as_json))


@repo_app.command("show")
def repo_show(context: typer.Context, name: RepoName, node: At = None, as_json: Json = False) -> None:
    """One repository, and where each replica stands."""
    from node.command import repos

    repos.show(_url(context, node), name, Output(as_json))


@repo_app.command("delete")
def repo_delete(
    context: typer.Context,
    name: RepoName,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    node: At = None,
    as_json: Json = False,
) -> None:
    """Delete a repository on every node; asks first."""
    from node.command import repos

    repos.delete(_url(context, node), name, Output(as_json), lambda question: yes or _confirm(question, "delete"))


@tx_app.command("show")
def tx_show(
    context: typer.Context,
    transaction: Annotated[str, typer.Argument(help="A transaction id, as a push or an answer named it.")],
    node: At = None,
    as_json: Json = False,
) -> None:
    """What became of a transaction: outcome, votes, phases, who settled it."""
    from node.command import transactions

    transactions.show(_url(context, node), transaction, Output(as_json))


def _confirm(question: str, what: str) -> bool:
    try:
        return typer.confirm(question, err=True)
    except typer.Abort as error:
        raise CommandError(f"nobody answered; {what} without asking with: --yes", Exit.USAGE) from error


def _program(home: Home) -> str:
    """How this command was called, so that what it tells people to type works."""
    called = Path(sys.argv[0])
    program = "gitquorum" if called.name != "gitquorum" or shutil.which("gitquorum") == str(called) else sys.argv[0]
    return program if home.folder == Path(FOLDER).absolute() else f"{program} -C {home.folder}"


def _home(context: typer.Context) -> Home:
    chosen: Settings = context.obj
    return chosen.home


def _url(context: typer.Context, node: str | None) -> str:
    """The node to ask."""
    from node.command.client import first_alive

    if node is not None and node.startswith(("http://", "https://")):
        return node.rstrip("/")
    cluster = _home(context).load()
    return cluster.node(node).url if node is not None else first_alive(each.url for each in cluster.nodes)


def main(arguments: list[str] | None = None) -> int:
    """Run the command; every expected failure is one line on stderr and an exit code."""
    from pydantic import ValidationError

    from node.command.client import NodeSilent
    from node.ports.errors import NodeError

    try:
        answer: Any = app(arguments, standalone_mode=True)
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else Exit.FAILED
    except CommandError as error:
        return _say(str(error), error.code)
    except NodeSilent as error:
        return _say(str(error), Exit.UNAVAILABLE)
    except ValidationError as error:
        from node.command.doctor import plain

        return _say(f"the configuration is wrong: {plain(error)}", Exit.USAGE)
    except (NodeError, OSError) as error:
        return _say(str(error), Exit.FAILED)
    except KeyboardInterrupt:
        return _say("interrupted", Exit(Exit.FAILED))
    return answer if isinstance(answer, int) else Exit.OK


def _say(line: str, code: int) -> int:
    sys.stderr.write(f"gitquorum: {line}\n")
    return int(code)


if __name__ == "__main__":
    sys.exit(main())
