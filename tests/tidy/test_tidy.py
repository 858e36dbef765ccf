"""What a machine can check of how the code is written; one tool a test, its own words on failure."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = ("node", "broker", "api", "tests", "bench", "docs")
BIN = Path(sys.executable).parent


def run(*command: str) -> None:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)
    if done.returncode:
        pytest.fail(f"{' '.join(command)}\n{done.stdout[-6000:]}{done.stderr[-2000:]}", pytrace=False)


def test_ruff_finds_nothing() -> None:
    run(sys.executable, "-m", "ruff", "check", *SOURCES)


def test_everything_is_formatted() -> None:
    run(sys.executable, "-m", "ruff", "format", "--check", *SOURCES)


@pytest.mark.timeout(600)
def test_types_are_strict() -> None:
    run(sys.executable, "-m", "mypy")


def test_imports_keep_their_direction() -> None:
    run(str(BIN / "lint-imports"))


def test_the_table_of_settings_is_in_step() -> None:
    run(sys.executable, "docs/generate_settings.py", "--check")


def test_the_asyncapi_document_is_in_step() -> None:
    run(sys.executable, "docs/generate_asyncapi.py", "--check")


def test_every_document_that_is_named_exists() -> None:
    missing = []
    for page in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        for name in re.findall(
            r"`((?:docs|tests|node|broker|api|bench|tools)/[\w./-]+\.(?:md|py|json|txt))`", page.read_text()
        ):
            if not (ROOT / name).exists():
                missing.append(f"{page.relative_to(ROOT)} names {name}")
    assert not missing


def test_architecture_names_every_file_of_runtime_and_front_end() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text()
    runtime, _, front_end = page.partition("| file in `api/` | idea |")
    for text, folder in ((runtime, "node"), (front_end.partition("\n\n")[0], "api")):
        files = {path.name for path in (ROOT / folder).glob("*.py") if not path.name.startswith("__")}
        assert files <= set(re.findall(r"`(?:node/)?(\w+\.py)`", text)), folder


def test_decisions_are_numbered_once() -> None:
    numbers = [page.name[:4] for page in sorted((ROOT / "docs" / "decisions").glob("*.md"))]
    assert numbers == sorted(set(numbers))
    assert all(number.isdecimal() for number in numbers)


def test_top_level_names_have_one_owner() -> None:
    """``node`` and ``api`` are common words: nobody else in the environment may bring them along."""
    wanted = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"])
    site = next(Path(path) for path in sys.path if path.endswith("site-packages"))
    strangers = {path.name for path in site.iterdir() if path.name in wanted or (path.stem in wanted and path.suffix == ".py")}
    assert not strangers


def test_no_test_folder_shadows_a_package() -> None:
    assert (ROOT / "tests" / "__init__.py").exists()
    assert not {"node", "broker", "api"} & {path.name for path in (ROOT / "tests").iterdir()}
