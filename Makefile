# The two commands of the README are `make up` and `make test`; both do all the set-up they need. `make help` lists the rest.
# Settings: NODES=5  PORT=3101  BROKER=direct  PYTHON=python3.12  TESTS=tests/unit

GITQUORUM = .venv/bin/gitquorum
PY = .venv/bin/python
UP_OPTIONS = $(if $(NODES),--nodes $(NODES)) $(if $(PORT),--base-port $(PORT)) $(if $(BROKER),--broker '$(BROKER)')

.DEFAULT_GOAL := help
.PHONY: help up down status test test-simulation test-planted test-exhaustive test-nemesis test-crash lint format bench lock setup system clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-15s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

up: setup ## set up, start three nodes and a broker, prove it with a replicated push
	@$(GITQUORUM) up --selfcheck $(UP_OPTIONS)

down: ## stop the cluster (repositories stay; gitquorum down --purge removes them)
	@if [ -x $(GITQUORUM) ]; then $(GITQUORUM) down; fi

status: ## what runs, and which versions where
	@$(GITQUORUM) status

test: setup ## set up, run the whole test suite
	$(PY) -m pytest $(TESTS)

SCHEDULES = 100000
FROM = 0
test-simulation: .venv/.installed ## 100,000 seeded schedules (SCHEDULES=, FROM=); prints how often each fault fired
	$(PY) -m tests.simulation --schedules $(SCHEDULES) --from $(FROM)

test-planted: .venv/.installed ## every rule taken out of the core: how many schedules find it
	$(PY) -m tests.simulation.planted

test-exhaustive: .venv/.installed ## every interleaving within bounds, SECONDS=1800 for all of them, two side by side
	$(PY) -m tests.simulation.exhaustive --seconds $(or $(SECONDS),1800) --workers 2

lint: .venv/.installed ## ruff, mypy --strict, import contracts
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	.venv/bin/lint-imports

format: .venv/.installed ## ruff's formatting and safe fixes
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

test-nemesis: setup ## ten minutes of faults on real nodes; MINUTES=60 SEED=1
	$(PY) -m tests.nemesis --minutes $(or $(MINUTES),10) $(if $(SEED),--seed $(SEED))

test-crash: setup ## a crash at every step, and power cuts (root); CUTS=500 SEED=1
	$(PY) -m tests.crash.steps --workers 2
	if [ "$$(id -u)" = 0 ]; then $(PY) -m tests.crash.powercut --cuts $(or $(CUTS),500) --seed $(or $(SEED),1); fi

bench: setup ## wall time of a small push, as a ratio to git http-backend
	$(PY) bench/push.py

setup: system .venv/.installed ## git, rabbitmq-server if permitted, .venv with locked dependencies

system:
	@tools/system

.venv/.installed: requirements.lock pyproject.toml tools/venv
	@tools/venv

LOCK = uv pip compile --universal --generate-hashes --python-version 3.11 --no-header --no-annotate

lock: ## the lock files anew from pyproject.toml (needs uv): all, and of that what the image runs and is built with
	$(LOCK) pyproject.toml --group dev -o requirements.lock
	$(LOCK) pyproject.toml -c requirements.lock -o requirements-runtime.lock
	$(LOCK) --group pyproject.toml:build -c requirements.lock -o requirements-build.lock

clean: ## remove .venv and caches; a cluster stays
	rm -rf .venv .venv.lock .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
