# `make demo` needs Python 3.11 to 3.14 and nothing else. Set PYTHON to choose one.
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 15))' 2>/dev/null && echo $$p && break; done)
# Another interpreter, beside the first: make test VENV=.cache/3.13 PYTHON=python3.13
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
PURE := protos ingest streamer
CALM := $(wildcard tests/test_*.py $(addprefix tests/,$(PURE) fuzz))
BESIDE := $(wildcard $(addprefix tests/,integration faults real_clients security rfc6455 loadtest services))
ALONE := $(wildcard tests/services/test_flush.py tests/loadtest/test_fanout.py tests/slow \
	$(addprefix tests/faults/test_,host.py ingest_kills.py poison.py redis.py streamer_ends.py))

.DEFAULT_GOAL := help
.PHONY: help demo test coverage $(PURE:%=coverage-%) compile test-compiled check fuzz mutation audit bench proto lock clean

help:
	@echo "make demo    live order books in the browser, everything on this machine"
	@echo "make test    all tests, the quick ones first"
	@echo "make coverage  lines and branches of the pure packages that their own tests reach; fails below 99 %"
	@echo "make compile a wheel with the hot packages compiled, unpacked in build/compiled; test-compiled tests it"
	@echo "make check   format, lint, types, generated code"
	@echo "make fuzz    look for inputs that break something; FUZZ_S=60 seconds for each target"
	@echo "make mutation  mutants of the book, the sequence, the outbox and the session that no test notices"
	@echo "make audit   ask for known vulnerabilities of what is locked"
	@echo "make bench   the figures of docs/benchmarks.md"
	@echo "make proto   generate protos/depthcast_pb2.* from protos/depthcast.proto"
	@echo "make lock    pin the newest allowed dependencies (needs uv)"
	@echo "make clean   remove what the others made"

demo: $(VENV)/.runtime
	@exec $(BIN)/depthcast dev

# Two files at a time: first what only computes, then what waits for conditions, not for so many seconds; there the
# longest files come first, or one of them is left for the end, alone.
# Last and alone what asks how long something took, or how much of something is done in a time.
CHOSEN = $(PYTEST) $(if $(PYTEST),|| test $$? -eq 5) # a choice may leave nothing of one pass
test: $(VENV)/.dev
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile $(CALM) $(CHOSEN)
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder $(BESIDE) $(ALONE:%=--ignore=%) $(CHOSEN)
	$(BIN)/python -m pytest $(ALONE) $(CHOSEN)

# Beside the checkout, which stays pure: what runs in build/compiled, or with it installed, runs compiled.
compile: $(VENV)/.dev
	rm -rf build/wheel build/compiled
	DEPTHCAST_COMPILE=1 $(PIP) wheel --no-deps --no-build-isolation --wheel-dir build/wheel .
	$(BIN)/python -m zipfile -e build/wheel/*.whl build/compiled

# Of each pure package by its own tests, lines and branches together: a package that misses 5 % of its branches fails.
coverage: $(PURE:%=coverage-%)
$(PURE:%=coverage-%): coverage-%: $(VENV)/.dev
	@mkdir -p .cache
	$(BIN)/python -m coverage run --data-file=.cache/coverage-$* --source=$* -m pytest --quiet \
		tests/$* -m "not captures" --ignore=tests/streamer/test_cost.py
	$(BIN)/python -m coverage report --data-file=.cache/coverage-$* --fail-under=99

COMPILED := cd build/compiled && $(abspath $(BIN))/python
test-compiled: compile
	$(COMPILED) -c 'import sys; from services.build import COMPILED; import ingest.native, protos.native, services.kafka.native, services.streamer.native; sys.exit(not COMPILED)'
	$(COMPILED) -m pytest --numprocesses 2 --dist loadfile ../../tests/protos ../../tests/ingest ../../tests/streamer \
		$(addprefix ../../tests/services/test_,kafka.py kafka_fetch.py kafka_frames.py kafka_records.py streamer.py) $(PYTEST)

check: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest --quiet tests/protos/test_generated.py

FUZZ_S ?= 60
fuzz: $(VENV)/.dev
	$(BIN)/python -m tests.fuzz --seconds $(FUZZ_S)

# Takes most of an hour; a piece: make mutation MUTANTS="protos/book.py --seconds 300"
mutation: $(VENV)/.dev
	$(BIN)/python -m tests.mutation $(MUTANTS)

audit: $(VENV)/.dev
	@$(BIN)/python -m tests.support.audit

bench: compile
	$(BIN)/python -m tests.benchmarks

proto: $(VENV)/.dev
	$(BIN)/python -m grpc_tools.protoc -Iprotos --plugin=protoc-gen-mypy=$(BIN)/protoc-gen-mypy \
		--python_out=protos --mypy_out=protos depthcast.proto

LOCK := uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --upgrade
lock:
	$(LOCK) --extra build pyproject.toml -o requirements.txt
	$(LOCK) -c requirements.txt --extra build --extra dev pyproject.toml -o requirements-dev.txt

clean:
	rm -rf .venv .cache .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "depthcast needs Python 3.11 to 3.14; install one, or say make PYTHON=/path/to/python3"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "Python's venv module is missing: apt-get install python3-venv"; exit 1; }
	@echo "depthcast: making $(VENV) with $$($(PYTHON) --version), this once"
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.runtime: requirements.txt pyproject.toml | $(BIN)/python
	@echo "depthcast: installing $$(grep -c == requirements.txt) packages, this once (about half a minute)"
	@$(PIP) install --require-hashes -r requirements.txt
	@$(PIP) install --no-deps --no-build-isolation --editable .
	@touch $@

$(VENV)/.dev: requirements-dev.txt $(VENV)/.runtime
	@echo "depthcast: installing $$(grep -c == requirements-dev.txt) packages for development, this once"
	@$(PIP) install --require-hashes -r requirements-dev.txt
	@touch $@
