# make demo     mount a new volume and show it working (MOUNTPOINT=... to choose where)
# make test     linters and every test; needs /dev/fuse, installs what is missing
# make lint     the linters alone
# make acceptance   a standard library, a clone and 1 GiB through a real Ceph and back; figures
# make soak     the simulation of several machines, with fresh seeds (SECONDS=600 SEED=...)
# make fuzz     the parsers of what a store or disk holds, with fresh seeds (SECONDS=3600 SEED=...)
# make bench    the same work on megafs and its peers (BENCH_ARGS="--scale middle"); installs the peers
# make launchday  programs at work through an overloaded, failing store (SECONDS=120)
# make dav-races    eight writers for one name on five WebDAV servers, in each way (DAV_ROUNDS=100)
# make dav-creates  two mounts and a thousand creates each, on each of the five (DAV_CREATES=1000)
# make live     the contract, the races and two mounts in a real account, with your credentials
#               (SERVICE=URL of a folder for tests, OPTIONS=NAME=VALUE,... LIVE_CREATES=50)
# make gdrive-races the same on a server that speaks Google Drive's API (GDRIVE_ROUNDS=100)
# make boot-test   a Debian that boots in qemu: fstab, automount, units, reboots with staged data
# make test-engines   the S3 driver on versitygw and MinIO too; make engines builds them, once
# make setup    only install what megafs needs to run; setup-test: and what its tests need
# make install  megafs for all users (PREFIX=/usr/local, DESTDIR= for a package): an environment of its own,
#               the commands, systemd's units, and fuse.megafs among what updatedb(8) leaves out
# make clean    remove what the targets above made in the checkout
#
# For Debian and Ubuntu, as root or with sudo.  MEGAFS_VENV=... puts the environment elsewhere.

MEGAFS_VENV ?= $(CURDIR)/.venv
export MEGAFS_VENV
BIN := $(MEGAFS_VENV)/bin
PYTEST_ARGS ?=
# ASYNC127 advises another package than httpx, which this project has chosen.  The others are off by
# default as a flake8 plugin: a checkpoint on every path, also where the answer is in memory.
ASYNC_RULES := --disable=ASYNC127,ASYNC900,ASYNC910,ASYNC911,ASYNC912,ASYNC913

.PHONY: demo test boot-test test-engines engines lint acceptance soak fuzz bench launchday dav-races \
	dav-creates live gdrive-races setup setup-test install clean
.DEFAULT_GOAL := demo

demo: setup
	@contrib/demo.sh "$(MOUNTPOINT)"

# The linters first, as they are quick; pytest's own summary is the last line.  Before it stands how
# many branches were taken, by package (tests/branch_coverage.py); COVERAGE= goes without.
COVERAGE ?= -p tests.branch_coverage
test: lint
	$(BIN)/python -m pytest $(COVERAGE) $(PYTEST_ARGS)

engines:
	@tools/engines.sh

test-engines: setup-test engines
	$(BIN)/python -m pytest $(PYTEST_ARGS) tests/engines/test_servers.py

lint: setup-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	find megafs -name '*.py' -print0 | xargs -0 -n 50 -P 2 $(BIN)/flake8-async $(ASYNC_RULES)
	$(BIN)/lint-imports

SECONDS ?= 600
soak: setup-test
	$(BIN)/python -m tests.sim.soak --seconds $(SECONDS) $(if $(SEED),--seed $(SEED))

FUZZ_SECONDS = $(if $(filter command line environment,$(origin SECONDS)),$(SECONDS),3600)
fuzz: setup-test
	$(BIN)/python -m tests.fuzz --seconds $(FUZZ_SECONDS) $(if $(SEED),--seed $(SEED))

BENCH_ARGS ?=
bench: setup-test
	@tools/setup.sh bench
	$(BIN)/python -m benchmarks.compare $(BENCH_ARGS)

acceptance: setup-test
	$(BIN)/python -m benchmarks.acceptance $(ACCEPTANCE_ARGS)

launchday: setup-test
	$(BIN)/python -m benchmarks.launchday --seconds $(if $(filter command line environment,$(origin SECONDS)),$(SECONDS),120)

DAV_ROUNDS ?= 100
dav-races: setup-test
	DAV_ROUNDS=$(DAV_ROUNDS) $(BIN)/python -m pytest tests/stores/test_webdav_races.py

DAV_CREATES ?= 1000
dav-creates: setup-test
	DAV_CREATES=$(DAV_CREATES) $(BIN)/python -m pytest -s --timeout 3600 tests/mount/test_webdav.py -k two_machines

LIVE_CREATES ?= 50
live: setup-test
	@test -n "$(SERVICE)" || { echo "make live SERVICE=URL [OPTIONS=NAME=VALUE,...]" >&2; exit 2; }
	MEGAFS_LIVE_URL='$(SERVICE)' MEGAFS_LIVE_OPTIONS='$(OPTIONS)' MEGAFS_LIVE_CREATES=$(LIVE_CREATES) \
	    $(BIN)/python -m pytest -s tests/live

GDRIVE_ROUNDS ?= 100
gdrive-races: setup-test
	GDRIVE_ROUNDS=$(GDRIVE_ROUNDS) $(BIN)/python -m pytest tests/stores/test_gdrive_races.py

boot-test: setup-test
	@tools/setup.sh boot
	$(BIN)/python -m tests.boot $(BOOT_ARGS)

setup:
	@tools/setup.sh run

setup-test:
	@tools/setup.sh test

# STEPS: some of environment, commands, units, updatedb; all of them without it.
install:
	@DESTDIR='$(DESTDIR)' PREFIX='$(or $(PREFIX),/usr/local)' SBIN='$(or $(SBIN),/usr/sbin)' tools/install.sh $(STEPS)

clean:
	@! grep -Eq "^file(:|%3A)//$(CURDIR)/.demo/store " /proc/mounts || \
	    { echo "clean: the demo is still mounted; megafs umount it first" >&2; exit 1; }
	rm -rf .demo
	rm -rf .venv build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis \
	    .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
