"""Every edge of a node as a ``typing.Protocol``: clock, chance, keys, transport, journal, objects, and what the API may ask.

Adapters implement them (``node.storage``, ``broker``), tests bring fakes, ``node.runtime`` knows nothing else. Foreign
exceptions stop at the adapter; what may be raised is defined in ``errors.py``.
"""
