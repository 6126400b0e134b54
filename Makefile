# The recipes are the only commands to remember. `make` lists them.

PYTHON ?= python3
VENV := .venv
APPS := .apps
CARGO ?= cargo
MUTANTS := 27.1.0

# Root of a namespace of one's own may mount a disk as well …
AS_ROOT := $(if $(filter 0,$(shell id -u)),,unshare --user --map-root-user --mount)

# … and may have a network of its own.
IN_NETWORK := $(if $(filter 0,$(shell id -u)),,unshare --user --map-root-user --mount --net \
  sh -c 'ip link set lo up && exec "$$@"' sh)

FUZZ_TARGETS ?= agent_protocol journal api_bodies gateway_headers
FUZZ_SECONDS ?= 15
CARGO_FUZZ := 0.13.2

# What has a program need nothing of the host that it runs on.
STATIC := -C target-feature=+crt-static

# Outside, for it is long in the making and the same for every checkout.
KUBERNETES ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/dwell-tests/kubernetes-1.20.2

.PHONY: help run agent test test-unit test-simulation test-parts test-tunnel test-e2e test-faults test-engines test-slurm test-bare test-clusters test-kubernetes test-ha test-browser setup setup-slurm setup-kubernetes setup-postgres setup-browser lint deny soak fuzz mutants bench bench-containers bench-slurm bench-kubernetes

help: ## List the recipes
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: ## A first session: a web server, its URL and the time left
	$(CARGO) run --release -- run -- python3 -m http.server {port}

test: lint test-unit test-simulation setup test-parts test-tunnel test-e2e test-browser test-faults test-engines test-bare test-clusters test-ha fuzz ## Everything, cheap checks first; what CI runs

test-unit: ## Unit and property tests, in seconds once built
	$(CARGO) test --workspace --lib

test-simulation: ## The core through seeded faults
	$(CARGO) test -p dwell-core --test simulation

test-parts: setup setup-postgres ## The store, the gateway, the agent, the API's document, the command line
	$(CARGO) test --test store --test gateway --test acme --test agent --test openapi --test cli
	tests/setup/unprivileged.sh

test-tunnel: setup ## Sessions on other hosts: network namespaces, and networks that fail
	tests/setup/debian.sh ip=iproute2 nft=nftables unshare=util-linux
	$(CARGO) test --test tunnel --no-run
	$(IN_NETWORK) $(CARGO) test --test tunnel

test-e2e: setup setup-postgres ## Real binaries, real clients, real apps
	$(CARGO) test --test e2e

test-faults: ## Processes killed at every step and at random; disks that are full, broken, locked
	$(CARGO) test --test faults --no-run
	$(AS_ROOT) $(CARGO) test --test faults -- --test-threads=4

test-ha: setup setup-postgres ## Several servers behind a haproxy: killed, paused, cut off from each other
	tests/setup/debian.sh haproxy=haproxy ip=iproute2 unshare=util-linux
	$(CARGO) test --test ha --no-run
	$(IN_NETWORK) $(CARGO) test --test ha -- --test-threads=2

test-engines: setup $(APPS)/jupyter.tar ## Sessions in containers: Docker Engine and Podman, installed where that is possible
	tests/setup/debian.sh dockerd=docker.io podman=podman runc=runc busybox=busybox-static \
	  /usr/lib/podman/aardvark-dns=aardvark-dns /usr/lib/podman/netavark=netavark \
	  iptables=iptables ip=iproute2 unshare=util-linux mkfs.btrfs=btrfs-progs \
	  docker-registry=docker-registry
	$(CARGO) test --test engines --no-run
	tests/setup/alone.sh $(CARGO) test --test engines docker::
	tests/setup/alone.sh $(CARGO) test --test engines podman::

setup-slurm: ## Slurm's programs, and no cluster
	tests/setup/debian.sh slurmctld=slurmctld slurmd=slurmd squeue=slurm-client \
	  slurmrestd=slurmrestd '/usr/lib/*/slurm-wlm/auth_jwt.so=slurm-wlm-jwt-plugin' \
	  ip=iproute2 unshare=util-linux setpriv=util-linux

test-slurm: setup setup-slurm ## Sessions on Slurm: clusters of the tests' own
	$(CARGO) test --test engines --no-run
	tests/setup/alone.sh $(CARGO) test --test engines slurm::

agent: ## The static agent, which runs on any Linux: target/release/dwell-agent
	$(CARGO) rustc --release -p dwell-agent -- $(STATIC)

test-bare: ## The static agent where there is nothing but BusyBox
	tests/setup/debian.sh busybox=busybox-static ip=iproute2 unshare=util-linux
	$(CARGO) test --test bare --no-run
	$(CARGO) rustc -p dwell-agent -- $(STATIC)
	tests/setup/alone.sh $(CARGO) test --test bare

# Tests on Slurm wait for most of their time.
test-clusters: setup setup-slurm ## Both, while Kubernetes is built if it has to be
	$(MAKE) --jobs=2 --output-sync test-slurm setup-kubernetes
	$(MAKE) test-kubernetes

setup-kubernetes: ## A Kubernetes for the tests, built in ten minutes the first time
	tests/setup/kubernetes.sh $(KUBERNETES)

test-kubernetes: setup-kubernetes setup-postgres ## Sessions in Pods: a Kubernetes of two nodes
	$(CARGO) test --test engines --no-run
	$(CARGO) rustc -p dwell-agent -- $(STATIC)
	DWELL_TEST_KUBERNETES=$(KUBERNETES) tests/setup/alone.sh $(CARGO) test --test engines kubernetes::

$(APPS)/jupyter.tar: tests/requirements.txt tests/setup/jupyter-image.sh
	tests/setup/jupyter-image.sh $(PYTHON) $@

test-browser: setup setup-browser ## JupyterLab, Gradio and VS Code through every kind of URL, and frames, in a browser
	tests/setup/debian.sh ip=iproute2 unshare=util-linux
	$(CARGO) test --test browser --no-run
	$(IN_NETWORK) $(CARGO) test --test browser -- --test-threads=3

setup: $(VENV)/.ready ## What the tests need: pinned Python packages in .venv

$(VENV)/.ready: tests/requirements.txt tests/setup/venv.sh
	PYTHON="$(PYTHON)" tests/setup/venv.sh $(VENV)
	touch $@

setup-postgres: ## Postgres's programs, and no server
	tests/setup/postgres.sh

setup-browser: $(APPS)/.ready ## A browser, and code-server in .apps

$(APPS)/.ready: tests/setup/browser.sh tests/setup/debian.sh
	tests/setup/browser.sh $(APPS)
	touch $@

lint: ## Formatting and lints, warnings being errors
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets -- -D warnings
	$(CARGO) clippy --test engines --test bare -- -D warnings

deny: ## Licences, advisories and duplicates of dependencies (needs cargo-deny)
	cargo deny check

soak: ## The simulation with fresh seeds until stopped
	DWELL_SIMULATION_SCHEDULES=0 $(CARGO) test --release -p dwell-core --test simulation every_schedule -- --nocapture

mutants: ## Which changes of leases, metering and sessions does no test notice?
	$(CARGO) mutants --version 2>/dev/null | grep -qF " $(MUTANTS)" || \
	  $(CARGO) install cargo-mutants --version $(MUTANTS) --locked
	DWELL_SIMULATION_SCHEDULES=100 $(CARGO) mutants --package dwell-core --output target \
	  --file core/src/lease.rs --file core/src/metering.rs --file core/src/session.rs

fuzz: ## What comes from outside, with made-up input, FUZZ_SECONDS=15 a target
	cargo fuzz --version >/dev/null 2>&1 || cargo install cargo-fuzz --locked --version $(CARGO_FUZZ)
	fuzz/run.sh $(FUZZ_SECONDS) $(FUZZ_TARGETS)

bench: setup-postgres ## The figures of the README, or FIGURES="gateway …" alone
	$(CARGO) build --release --workspace
	target/release/dwell-bench target/release/dwell $(FIGURES)

bench-containers: ## The figure of containers, beside `docker run`, as root
	tests/setup/debian.sh dockerd=docker.io runc=runc busybox=busybox-static iptables=iptables \
	  ip=iproute2 unshare=util-linux
	$(CARGO) build --release --workspace
	tests/setup/alone.sh target/release/dwell-bench target/release/dwell containers

bench-slurm: setup-slurm ## The figure of Slurm, beside `sbatch`, as root
	$(CARGO) build --release --workspace
	tests/setup/alone.sh target/release/dwell-bench target/release/dwell slurm

bench-kubernetes: setup-kubernetes ## The figure of Kubernetes, beside a Pod by itself, as root
	$(CARGO) build --release --workspace
	$(CARGO) rustc --release -p dwell-agent -- $(STATIC)
	DWELL_TEST_KUBERNETES=$(KUBERNETES) tests/setup/alone.sh target/release/dwell-bench target/release/dwell kubernetes
