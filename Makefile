# What a person types here. `make demo` needs root, and Rust and Go on the machine; it installs and builds what else it
# needs, once.

.PHONY: help deps build crds control-plane demo lab lab-down test bench bench-datapath proof images images-twice

# PODLANE_BIN_DIR would make the lab take other programs than those that are built here.
lab := env -u PODLANE_BIN_DIR ./target/debug/podlane-lab

help:
	@echo 'make demo      tell the story in a cluster of its own, of three kubelets: about a minute (the first time 20 minutes, to build)'
	@echo 'make lab       bring the lab up and leave it up'
	@echo 'make lab-down  take it down'
	@echo 'make test      from format to scenarios in namespaces: below ten minutes once all is built'
	@echo 'make test TESTS=all  that, the long scenarios (clusters of three kubelets, the chart and more), and older kernels in qemu: half an hour and more'
	@echo 'make proof     ten million numbered packets over changing lanes, agents killed, paused and upgraded, nodes rebooted: half an hour or more'
	@echo 'make bench     the figures; make bench PART=cluster: only those of images, of what they take and of how long an install takes'
	@echo 'make bench-datapath  the ways between pods against each other, and docs/performance.md: an hour, on an idle machine'
	@echo 'make build     the programs'
	@echo 'make images    build the images of operator and agent into target/images, with buildah'
	@echo 'make images-twice  that, once more elsewhere: the digests have to be the same'
	@echo 'make crds      write crds/yaml and the chart'\''s types out of the types'
	@echo 'make deps      install what is missing of the tools (apt-get)'

deps:
	@./.ci/install-dependencies
	@./.ci/bpf-toolchain

control-plane: deps
	@./e2e/control-plane/build --cluster >/dev/null

build:
	@echo 'building Podlane (about 2 minutes the first time, seconds later)'
	@cargo build --locked -p podlane-operator -p podlane-agent -p podlane-e2e

crds:
	@cargo run -q -p podlane-crds --bin generate-crds

images: deps
	@./images/build

# Twice, the second time elsewhere, and held to what is said of them.
images-twice: deps
	@./.ci/images

# The programs in the images are those of a quick build, linked statically.
demo: deps control-plane build
	@./e2e/helm/fetch >/dev/null
	@PODLANE_IMAGES_PROFILE=dev ./images/build >/dev/null
	@PODLANE_IMAGES=target/images/dev $(lab) demo

lab: deps build
	@$(lab) up

# Only builds where nothing was built: a lab can be taken down in the middle of a change.
lab-down:
	@test -x target/debug/podlane-lab || cargo build --locked -p podlane-e2e
	@$(lab) down

# TESTS=all: with the slow part, which is the long scenarios and the older kernels. Continuous integration runs that.
test:
	@./.ci/test $(if $(filter all,$(TESTS)),--all,$(if $(TESTS),$(error TESTS is all or empty)))

# What `make test TESTS=all` does with a million packets, and what it does a few times.
proof: deps control-plane build
	@./e2e/helm/fetch >/dev/null
	@PODLANE_PROOF_PACKETS=10000000 cargo test --locked -p podlane-e2e --test changes
	@PODLANE_STORM_KILLS=50 PODLANE_STORM_LEADERS=10 PODLANE_STORM_API_AWAY_SECONDS=120 \
		cargo test --locked -p podlane-e2e --test storms
	@cargo test --locked -p podlane-e2e --test cluster --test nodes

bench: deps
	@./.ci/bench $(PART)

# BENCH="--quick --only cilium" and the like, for less than all of it: the document is then left as it is.
bench-datapath: deps
	@cargo run --locked --quiet --release -p podlane-datapath-bench -- run $(BENCH)
	@$(if $(BENCH),,cargo run --locked --quiet --release -p podlane-datapath-bench -- render)
