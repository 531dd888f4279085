# Everything a newcomer needs: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
# `make test BOOTS=no` leaves out the tests that boot a systemd; TESTS=tests/test_x.py runs those alone.
BOOTS ?= yes
WORKERS ?= 3
TESTS ?=
# `make test-fresh FRESH='--no-boots trixie'` is the same on one Debian without them.
FRESH ?=
BIN := $(VENV)/bin
# What the Debian package is built with, on a Debian.
DEB_NEEDS := dpkg-deb=dpkg strip=binutils /usr/bin/python3=python3 /usr/bin/py3compile=python3-minimal
# The versions of QEMU that `make test-qemu` runs on, each with the Debian release that has it.
QEMU_VERSIONS ?= 5.2=bullseye 10.0=trixie newest=sid
QEMU_TESTS ?= qemu_version workflow job_outcomes job_places targets down storage_hangs alerts queries \
    prometheus shell admin_workflow admin_refusals admin_filter admin_sharing admin_deaths
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

.PHONY: demo test test-qemu test-fresh truth lint golden dist deb picture bench capacity bench-peers clean

demo: $(VENV)/run  ## run small VMs with block jobs, and the exporter on 127.0.0.1:9709
	@deploy/debian-packages optional qemu-system-x86_64=qemu-system-x86 qemu-img=qemu-utils
	@exec $(BIN)/qemu-block-exporter demo

test: $(VENV)/dev $(VENV)/clusters $(VENV)/wheels lint  ## all checks and all tests, on real QEMU and Prometheus
	@deploy/debian-packages required qemu-system-x86_64=qemu-system-x86 qemu-img=qemu-utils \
	    qemu-storage-daemon=qemu-system-common prometheus=prometheus promtool=prometheus \
	    bindfs=bindfs fusermount3=fuse3 mount=mount setpriv=util-linux \
	    $(DEB_NEEDS) lintian=lintian systemd-nspawn=systemd-container systemd-analyze=systemd \
	    mandoc=mandoc man=man-db zsh=zsh fish=fish ps=procps useradd=passwd git=git \
	    buildah=buildah podman=podman runc=runc amtool=prometheus-alertmanager \
	    libvirtd=libvirt-daemon virsh=libvirt-clients virt-qemu-qmp-proxy=libvirt-clients-qemu
	@test -e /lib/systemd/system/libvirtd.service || \
	    deploy/debian-packages required no-libvirtd-service=libvirt-daemon-system
	@test -e /usr/lib/*/libvirt/connection-driver/libvirt_driver_qemu.so || \
	    deploy/debian-packages required no-libvirt-qemu=libvirt-daemon-driver-qemu
	@$(BIN)/python -m tests.machine $(if $(filter no,$(BOOTS)),--no-boots)
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile $(if $(filter no,$(BOOTS)),-m "not boots") $(TESTS)

test-fresh:  ## `make demo` and `make test` on minimal Debian 12 and 13, from a clone; needs root
	@deploy/debian-packages required debootstrap=debootstrap unshare=util-linux
	@tests/fresh/run $(FRESH)

test-qemu: $(VENV)/dev  ## the tests that depend on QEMU's version, on other versions than the system's
	@deploy/debian-packages required prometheus=prometheus promtool=prometheus bindfs=bindfs \
	    fusermount3=fuse3 mount=mount setpriv=util-linux
	@tests/qemu/run $(BIN)/python $(QEMU_VERSIONS) -- -n 3 --dist loadfile \
	    $(QEMU_TESTS:%=tests/e2e/test_%.py)

lint: $(VENV)/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check exporter
	$(BIN)/lint-imports
	$(BIN)/mypy

truth: $(VENV)/dev  ## random jobs on real QEMU for SECONDS, by SEED, and a judge of what is said of them
	@deploy/debian-packages required qemu-system-x86_64=qemu-system-x86 qemu-img=qemu-utils \
	    qemu-storage-daemon=qemu-system-common
	$(BIN)/python -m tests.truth $(addprefix --seconds=,$(SECONDS)) $(addprefix --seed=,$(SEED)) \
	    $(addprefix --profile=,$(PROFILE)) $(addprefix --json=,$(JSON))

golden: $(VENV)/dev  ## regenerate all generated files: METRICS.md, goldens, released names, man page, rules
	$(BIN)/python -m pytest -q --update-golden tests/metrics/test_table.py tests/expose/test_golden.py \
	    tests/cli/test_command_line.py tests/project/test_released.py tests/deploy/test_scale.py
	deploy/kubernetes/rules
	git diff --stat -- METRICS.md tests/golden tests/data/released deploy/man deploy/completions \
	    deploy/prometheus/scale deploy/kubernetes/monitoring

dist: $(VENV)/dev  ## build wheel, sdist and SBOM into dist/, the same to the byte each time
	@PYTHON=$(BIN)/python deploy/dist dist
	@ls dist

deb: dist  ## build the Debian package into dist/, for the Debian that it is built on
	@deploy/debian-packages required $(DEB_NEEDS)
	@PYTHON=$(BIN)/python deploy/debian/build dist
	@ls dist

picture: $(VENV)/run  ## draw docs/jobs.svg, the picture in the README, from a running demo
	@deploy/debian-packages required qemu-system-x86_64=qemu-system-x86 qemu-img=qemu-utils
	$(BIN)/python docs/picture.py

bench: $(VENV)/bench  ## measure, write bench/RESULTS.md, and fail where a bar is missed
	@deploy/debian-packages required qemu-system-x86_64=qemu-system-x86 qemu-img=qemu-utils
	$(BIN)/python -m bench

capacity: $(VENV)/run  ## measure what a Prometheus needs for a fleet; writes deploy/prometheus/scale/CAPACITY.md
	@deploy/debian-packages required qemu-system-x86_64=qemu-system-x86 qemu-img=qemu-utils \
	    prometheus=prometheus promtool=prometheus
	$(BIN)/python -m bench.capacity

bench-peers:  ## install Debian's libvirt exporter and a libvirtd, which `make bench` then measures
	@deploy/debian-packages required libvirtd=libvirt-daemon virsh=libvirt-clients \
	    setpriv=util-linux prometheus-libvirt-exporter=prometheus-libvirt-exporter
	@test -e /usr/lib/*/libvirt/connection-driver/libvirt_driver_qemu.so || \
	    deploy/debian-packages required no-libvirt-qemu=libvirt-daemon-driver-qemu

clean:
	rm -rf $(VENV) dist .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis

$(VENV)/pip: constraints.txt
	@deploy/debian-packages optional $(PYTHON)=python3
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || deploy/debian-packages required ensurepip=python3-venv
	@$(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV)"
	@$(PIP) install -c constraints.txt pip hatchling editables
	@touch $@

$(VENV)/run: $(VENV)/pip pyproject.toml
	@$(PIP) install -c constraints.txt --no-build-isolation -e .[speed] || \
	    $(PIP) install -c constraints.txt --no-build-isolation -e .
	@touch $@

$(VENV)/dev: $(VENV)/run
	@$(PIP) install -c constraints.txt --group dev
	@touch $@

$(VENV)/clusters: $(VENV)/run
	@$(PIP) install -c constraints.txt --group clusters
	@touch $@

$(VENV)/wheels: $(VENV)/run deploy/docker/requirements.txt deploy/docker/requirements-build.txt
	@$(PIP) download --no-deps --require-hashes --dest=$@ -r deploy/docker/requirements.txt \
	    -r deploy/docker/requirements-build.txt
	@touch $@

$(VENV)/bench: $(VENV)/run
	@$(PIP) install -c constraints.txt --group bench
	@touch $@
