"""Every interleaving of the real protocol machines, within bounds (``bounds.py``), breadth first.

The voter and coordinator of ``node/protocol`` themselves are run, not a model of them. ``search.py`` goes through a
``space.py`` of whole clusters, made of ``parts.py`` of nodes, each of which is a ``local.py``; ``copying.py`` says how time
is done without, ``ghost.py`` and ``views.py`` what must be true in every state, ``settling.py`` what must be possible from
it. Decision record 0013 explains the abstractions and reductions, and why each is sound.

    python -m tests.simulation.exhaustive --list
    python -m tests.simulation.exhaustive --bound takeover --seconds 600 --json
"""
