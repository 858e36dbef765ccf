"""docs/protocol.md shows the machines' tables as they are."""

import importlib.util
from pathlib import Path
from types import ModuleType

DOCS = Path(__file__).parents[2] / "docs"


def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate_protocol", DOCS / "generate_protocol.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_diagrams_and_tables_are_in_step_with_the_code() -> None:
    text = (DOCS / "protocol.md").read_text()
    assert generator().filled(text) == text, "run: python docs/generate_protocol.py"


def test_every_state_has_a_meaning() -> None:
    for name, part in generator().parts().items():
        assert "|  |" not in part, name
