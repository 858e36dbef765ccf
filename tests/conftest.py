"""Flags of the whole suite."""

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--rewrite-transcripts", action="store_true", help="write what happens now into tests/scenarios/*.txt; read the diff"
    )
    parser.addoption("--seed", default="0", help="look at one schedule of the simulation")
