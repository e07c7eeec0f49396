# Everything runs in .venv, made from requirements.lock by `make setup`; the other targets make it when it is missing
# or older than the lock. Needed: one of the Pythons below, make, and a package index.

# The first of these that is 3.11, 3.12 or 3.13. Another one: make setup PYTHON=/path/to/python
PYTHON = python3.11 python3.12 python3.13 python3
IN_RANGE = import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))
VENV_PACKAGE = import sys; print("python%d.%d-venv" % sys.version_info[:2])

UV = .venv/bin/uv
EXTRAS = aws bench browser compare databases dev docs hub jax onnx openvino postgresql test
READY = .venv/ready

# uv trusts the certificates and asks the index that pip does.
export UV_SYSTEM_CERTS = true
ifdef PIP_INDEX_URL
export UV_DEFAULT_INDEX ?= $(PIP_INDEX_URL)
endif

# Tests are many and small: one thread each is quicker than waking a pool for every matrix.
test test-slow test-statistics test-browser test-databases test-image test-nginx test-runners test-flink coverage: export OMP_NUM_THREADS = 1
test test-slow test-statistics test-browser test-databases test-image test-nginx test-runners test-flink coverage: export TF_CPP_MIN_LOG_LEVEL = 2

.PHONY: help setup demo test test-slow test-statistics test-browser test-databases test-image test-nginx test-runners test-flink coverage check docs lock clean
.PHONY: bench bench-ingest bench-urls bench-extract bench-store bench-train bench-calibrate bench-categorize bench-decisions bench-corrections bench-serve bench-serve-hard bench-writers

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | expand -t 12

setup: $(READY) ## .venv with exactly what requirements.lock names, and shelfmark itself, editable

# uv alone first, by pip and by the lock's hashes: it then installs the rest in seconds, pip takes minutes.
$(UV): requirements.lock
	@for python in $(PYTHON); do \
	  "$$python" -c '$(IN_RANGE)' 2>/dev/null && break; \
	done || { echo 'error: none of "$(PYTHON)" is Python 3.11, 3.12 or 3.13;' \
	  'install one, or name it: make setup PYTHON=/path/to/python' >&2; exit 1; }; \
	"$$python" -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "error: $$python cannot make virtual environments (it has no ensurepip);" \
	  "on Debian and Ubuntu: apt install $$("$$python" -c '$(VENV_PACKAGE)')" >&2; exit 1; }; \
	set -ex; "$$python" -m venv --clear .venv
	@awk '/^[^ ]/ {wanted = /^uv==/} wanted' requirements.lock > .venv/uv.txt
	.venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r .venv/uv.txt
	@touch $(UV)

$(READY): $(UV) setup.cfg
	$(UV) pip sync --python .venv/bin/python --require-hashes --compile-bytecode requirements.lock
	$(UV) pip install --quiet --python .venv/bin/python --no-deps --no-build-isolation --editable .
	@touch $(READY)

demo: $(READY) ## draws a small catalogue and runs everything on it, in demo-workspace
	.venv/bin/shelfmark demo --workspace demo-workspace

test: $(READY) ## the quick tests
	.venv/bin/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder

test-slow: $(READY) ## the slow tests alone
	.venv/bin/python -m pytest -q -m slow

test-statistics: $(READY) ## simulations of the promises
	.venv/bin/python -m pytest -q -m statistics

test-browser: $(READY) ## the pages in a headless Chromium (Debian and Ubuntu: apt install chromium)
	.venv/bin/python -m pytest -q -m browser tests/test_browser.py tests/test_audit_page.py

test-databases: $(READY) ## decisions and corrections in PostgreSQL and SQLite, on a server that the tests start
	REQUIRE_DATABASES=1 .venv/bin/python -m pytest -q -m "databases or not databases" tests/test_decisions_table.py tests/test_corrections.py

# IMAGE=clean_directory: without Podman's containers. Debian and Ubuntu: apt install podman runc debootstrap
test-image: $(READY) ## the image: the steps of its build in a clean directory; with Podman the containers, too (3.5 GB)
	.venv/bin/python -m pytest -q -m image tests/test_image.py $(if $(IMAGE),-k "$(IMAGE)")

test-nginx: $(READY) ## the example of nginx, and the service behind it (Debian and Ubuntu: apt install nginx-light)
	REQUIRE_NGINX=1 .venv/bin/python -m pytest -q -m "slow or not slow" tests/test_deployment.py

test-runners: $(READY) ## ingest and extract on every Beam runner that can be had here: Flink, Prism, job services, processes
	.venv/bin/python -m pytest -q -m runners

test-flink: $(READY) ## ingest and extract on Flink (needs Java; fetches Beam's job server with Maven or by itself)
	REQUIRE_RUNNERS=1 .venv/bin/python -m pytest -q -m runners -k flink

# Without the hostile images: their limits of time and memory do not hold while lines are counted.
coverage: $(READY) ## the quick tests, and the lines and branches they leave out; fails below the floor in setup.cfg
	.venv/bin/coverage erase
	.venv/bin/coverage run -m pytest -q -n 2 --dist loadfile --ignore tests/test_hostile_images.py
	.venv/bin/coverage combine --quiet
	.venv/bin/coverage report

check: $(READY) ## style, types, direction of imports, the Dockerfile, links and commands in the documentation
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/lint-imports
	.venv/bin/hadolint Dockerfile
	.venv/bin/python -m pytest -q tests/test_docs.py

docs: export NO_MKDOCS_2_WARNING = 1
docs: $(READY) ## the generated pages of docs/, then the site, in site/index.html
	.venv/bin/python docs/scripts/pages.py
	.venv/bin/python docs/scripts/schemas.py
	.venv/bin/mkdocs build --strict

bench: $(READY) ## every benchmark, one after the other
	@set -e; for bench in main_job ingest urls plan store extract views views_accuracy engines_agree encoders inception train train_noise calibrate categorize decisions_output corrections small_shops drift serve; do \
	  echo "== $$bench"; .venv/bin/python benchmarks/$$bench.py; done

bench-ingest: $(READY) ## ingest beside a plain loop and a naive Beam pipeline, pictures within Parquet, and the plan of 8 M products; 2.5 GB of disk
	.venv/bin/python benchmarks/ingest.py
	.venv/bin/python benchmarks/pictures.py
	.venv/bin/python benchmarks/plan.py

bench-urls: $(READY) ## photos by URL: ingest's first pass beside the HTTP client alone, against a server of this machine
	.venv/bin/python benchmarks/urls.py

bench-store: $(READY) ## look-ups of 20 M digests, the index, and week two with 1 % new images; 1.2 GB of disk
	.venv/bin/python benchmarks/store.py

bench-extract: $(READY) ## extraction beside the backbone alone, then what engines and image sizes cost in accuracy
	.venv/bin/python benchmarks/extract.py
	.venv/bin/python benchmarks/engines_agree.py
	.venv/bin/python benchmarks/encoders.py
	.venv/bin/python benchmarks/inception.py

bench-views: $(READY) ## what views cost beside their pixels, and what they and recipes of fine-tuning give on photos of other shops; hours
	.venv/bin/python benchmarks/views.py
	.venv/bin/python benchmarks/views_accuracy.py
	.venv/bin/python benchmarks/finetune_recipes.py

bench-train: $(READY) ## training beside scikit-learn and NumPy's products, and 2 M bottlenecks from the disk; 8 GB of disk
	.venv/bin/python benchmarks/train.py

bench-serve-hard: $(READY) ## the service under hostile bodies, switches of its release, overload and signals; half an hour
	.venv/bin/python benchmarks/serve_hard.py

bench-categorize: $(READY) ## a batch beside the bare engine and the bare store, all new and all known, and its memory; 2 GB of disk
	.venv/bin/python benchmarks/categorize.py

bench-calibrate: $(READY) ## certificates, curves and tables of 2 M products in 8,000 categories, beside MAPIE and bare matrix products; 1 GB of disk
	.venv/bin/python benchmarks/calibrate.py

bench-writers: $(READY) ## corrections of writers that training has not seen, on pen strokes; with FONTS=folder on drawn hands, too
	.venv/bin/python benchmarks/writers.py $(FONTS:%=--fonts %)

bench-corrections: $(READY) ## a million corrections in SQLite: look-ups, adding, readers beside writers; 8 GB of disk
	.venv/bin/python benchmarks/corrections.py

bench-serve: $(READY) ## the service over loopback beside the bare engine and TensorFlow under FastAPI, and its memory
	.venv/bin/python benchmarks/serve.py

bench-decisions: $(READY) ## a million decisions into every kind of output; 2 GB of disk
	.venv/bin/python benchmarks/decisions_output.py

# All extras but gpu and torch: a computer without a GPU has no use for CUDA's gigabytes. What gpu adds is in a lock of
# its own, for the image alone; both files together are what an image with a GPU is made from.
COMPILE = $(UV) pip compile setup.cfg --universal --python-version 3.11 --fork-strategy fewest --generate-hashes \
	  --custom-compile-command 'make lock' $(UPGRADE) --quiet
lock: $(UV) ## the locks from setup.cfg, keeping versions that still fit (newest: make lock UPGRADE=--upgrade)
	$(COMPILE) $(EXTRAS:%=--extra %) --output-file requirements.lock
	cp requirements-gpu.lock .venv/gpu.txt
	$(COMPILE) --extra gpu --constraint requirements.lock --output-file .venv/gpu.txt
	(echo '# What the extra gpu adds to requirements.lock; by make lock.'; \
	  awk '/^[^ ]/ {wanted = /^nvidia-/} wanted' .venv/gpu.txt) > requirements-gpu.lock

clean: ## removes what make and the tools made, .venv and demo-workspace included
	rm -rf .venv demo-workspace shelfmark.egg-info build site .coverage* .hypothesis .*_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
