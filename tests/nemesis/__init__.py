"""Real nodes, a real broker and real git under faults; what clients saw is recorded, and judged by checkers that are pure.

``history.py`` is what is recorded, ``linearizability.py`` and ``chains.py`` judge it, ``replicas.py`` judges the disks;
``brokers`` to ``workload`` make it happen, ``__main__.py`` runs it: ``python -m tests.nemesis --minutes 10 --seed 1``.
"""
