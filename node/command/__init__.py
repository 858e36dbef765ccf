"""What the ``gitquorum`` command does, one idea per file; ``node.__main__`` only parses the command line and calls these.

    state        the ``.gitquorum/`` folder: which nodes and which broker this cluster has
    init         make that folder: keys, configuration, data directories
    up, down     the whole local cluster as detached processes
    processes    start and end one process, and never signal a stranger
    sockets      which ports are free, and who holds the others
    brokers      which broker to use, and the three ways to have one (``docker`` and ``rabbitmq`` are two of them)
    faults       kill and start single nodes and the broker, to try failures
    drill        kill, pause and cut off one node at a time while pushes go on (drill_* are its parts)
    client       HTTP to a node
    status, repos, transactions, selfcheck, doctor     what the words say
    output       progress on stderr, results on stdout, exit codes

Everything here is synchronous: a command is a short-lived process of its own. ``serve`` is the exception and the
composition root of a node.
"""
