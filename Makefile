# make demo   sets up .venv and trains the two-column network on digits
# make test   sets up .venv and runs the tests
# make verify sets up .venv, runs the slow tests (make slow; those of pages need
#             Chromium, and are skipped without it), and holds every
#             layout to its promises, with an eighth of the width, on every
#             mesh of up to eight simulated devices (make layouts)
# make hosts  sets up .venv and starts runs of several processes, also under
#             Slurm and Open MPI where the machine has them
# make faults sets up .venv and injects faults into running processes
# make slices sets up .venv, in it .venv/tpu with libtpu, and compiles for TPU
#             slices
# make lint   sets up .venv and checks the style
# make docs   sets up .venv and makes the tables and pictures of layouts in docs/
#             again; docs/planner.md has the commands of its own

PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet install

.PHONY: setup demo test verify slow layouts hosts faults slices lint docs

setup: .venv/runtime.done

demo: setup
	$(BIN)/python -m alexnet_jax.main --config=configs/two_device.py \
	  --workdir=runs/demo --data_dir=data

test: .venv/test.done
	$(BIN)/python -m pytest -n 2 --dist loadfile

verify: slow layouts

slow: .venv/test.done
	$(BIN)/python -m pytest -m slow -n 2 --dist loadfile

layouts: .venv/test.done
	JAX_PLATFORMS=cpu JAX_DISABLE_MOST_OPTIMIZATIONS=1 \
	  $(BIN)/python -m alexnet_jax.verify --config.batch_size=8 \
	  --config.network.width=0.125 --config.network.layers.conv1.features=128

hosts: .venv/test.done
	$(BIN)/python -m pytest -m hosts -rs -n 3 --dist loadfile \
	  --no-loadscope-reorder

faults: .venv/test.done
	$(BIN)/python -m pytest -m faults -rs -n 3 --dist loadfile

slices: .venv/tpu.done
	.venv/tpu/bin/python -m pytest -m slices

LAYOUTS := one_device two_column data_parallel two_column_data \
  one_weird_trick tensor_parallel fully_sharded two_column_sharded \
  two_dimensional two_column_2d

docs: setup
	@for layout in $(LAYOUTS); do \
	  $(BIN)/python -m alexnet_jax.inspect \
	    --config=configs/one_device.py:imagenet --config.layout.name=$$layout \
	    --picture=docs/layouts/$$layout.svg --compilation_cache=off \
	    > docs/layouts/$$layout.txt.partial || exit 1; \
	  sed 's/ *$$//' docs/layouts/$$layout.txt.partial \
	    > docs/layouts/$$layout.txt; \
	done
	$(BIN)/python -m alexnet_jax.compare \
	  --config=configs/one_device.py:imagenet --devices=2,4,8 \
	  --batch_sizes=128,1024 --chart=docs/layouts/compare.svg \
	  > docs/layouts/compare.txt.partial
	sed 's/ *$$//' docs/layouts/compare.txt.partial > docs/layouts/compare.txt
	rm docs/layouts/*.partial
	$(BIN)/python -m benchmarks.plain_jit --markdown=docs/plain_jit.md

lint: .venv/lint.done
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/runtime.done: requirements.txt | .venv/bin/python
	$(PIP) -r requirements.txt
	@touch $@

.venv/test.done: requirements-test.txt .venv/runtime.done
	$(PIP) -r requirements-test.txt
	@touch $@

# All of .venv, and libtpu on top: where it is installed, JAX looks for a TPU, so
# other suites, which may run at the same time, do not have it.
.venv/tpu.done: requirements-tpu.txt .venv/test.done
	$(BIN)/python -m venv .venv/tpu
	@$(BIN)/python -c 'import site; print(site.getsitepackages()[0])' \
	  > "$$(.venv/tpu/bin/python -c 'import site; \
	  print(site.getsitepackages()[0])')/venv.pth"
	.venv/tpu/bin/python -m pip --disable-pip-version-check --quiet install \
	  -r requirements-tpu.txt
	@touch $@

.venv/lint.done: requirements-lint.txt | .venv/bin/python
	$(PIP) -r requirements-lint.txt
	@touch $@
