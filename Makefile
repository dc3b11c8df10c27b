# make demo   set up .venv, train on real handwritten digits, write runs/demo/report.html (about 3 minutes)
# make demo-latent   an autoencoder and a latent DiT of twelve photographs, into runs/photos (14 minutes)
# make test   set up .venv with the test tools, run the tests (minutes)
# make check  formatting, lint, types, layering, words
# make docs   build the documentation into build/site
#
# TORCH=cpu (default) never installs CUDA; TORCH=cuda takes PyTorch's default build; TORCH=keep leaves the
# torch that the venv can see (its own, or the system's: the venv is then made with --system-site-packages).

PYTHON ?= python3
TORCH ?= cpu
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
CPU_INDEX := https://download.pytorch.org/whl/cpu

ifeq ($(TORCH),cpu)
CONSTRAINT := --constraint constraints/cpu.txt
else ifeq ($(TORCH),cuda)
CONSTRAINT :=
else ifeq ($(TORCH),keep)
CONSTRAINT := --constraint $(VENV)/kept-torch.txt
SYSTEM := --system-site-packages
else
$(error TORCH=$(TORCH) is not known: use cpu, cuda or keep)
endif

.PHONY: setup demo demo-latent test test-slow test-faults check docs format clean

setup: $(VENV)/.installed

$(VENV)/.torch-$(TORCH): constraints/cpu.txt
	@for stamp in $(VENV)/.torch-*; do case "$$stamp" in \
	  *'*'|*/.torch-$(TORCH)) ;; *) echo "making $(VENV) anew for TORCH=$(TORCH)"; rm -rf $(VENV);; esac; done
	@rm -f $(VENV)/.installed $(VENV)/.installed-dev
	@python=$(BIN)/python; test -x $$python || python=$(PYTHON); \
	  $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "make: $$python is not Python 3.11 or newer; name one with PYTHON=python3.11"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(SYSTEM) $(VENV) || \
	  { echo "make: cannot make a virtual environment; install python3-venv"; exit 1; }
ifeq ($(TORCH),cpu)
	@echo "installing PyTorch for the CPU (200 MB)"
	@$(PIP) $(CONSTRAINT) torch 2>$(VENV)/torch.log || \
	  $(PIP) --retries 0 --timeout 5 --extra-index-url $(CPU_INDEX) $(CONSTRAINT) torch 2>>$(VENV)/torch.log || \
	  { cat $(VENV)/torch.log; \
	    echo "make: PyTorch's CPU build was found neither in pip's own places nor at $(CPU_INDEX):"; \
	    echo "      connect to the internet, or put its wheel into a folder and run PIP_FIND_LINKS=FOLDER make $(MAKECMDGOALS),"; \
	    echo "      or choose TORCH=cuda (gigabytes) or TORCH=keep (the torch that is installed)"; exit 1; }
else ifeq ($(TORCH),cuda)
	@echo "installing PyTorch with CUDA (gigabytes)"
	@$(PIP) "torch>=2.10" 2>$(VENV)/pip.log || { cat $(VENV)/pip.log; exit 1; }
else
	@$(BIN)/python -c 'import torch; print(f"torch=={torch.__version__}")' 2>/dev/null >$(VENV)/kept-torch.txt || \
	  { echo "make: TORCH=keep, but $(PYTHON) has no torch to keep; install one or use TORCH=cpu"; exit 1; }
endif
	@touch $@

$(VENV)/.installed: $(VENV)/.torch-$(TORCH) pyproject.toml
	@echo "installing scaledit"
	@$(PIP) $(CONSTRAINT) --editable . 2>$(VENV)/pip.log || { cat $(VENV)/pip.log; exit 1; }
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	@echo "installing the test tools"
	@$(PIP) $(CONSTRAINT) --editable '.[dev]' 2>$(VENV)/pip.log || { cat $(VENV)/pip.log; exit 1; }
	@touch $@

demo: $(VENV)/.installed
	@$(BIN)/scaledit train digits --out runs/demo --resume auto

$(VENV)/.installed-latent: $(VENV)/.installed
	@echo "installing diffusers and scikit-image"
	@$(PIP) $(CONSTRAINT) --editable '.[diffusers,photos]' 2>$(VENV)/pip.log || { cat $(VENV)/pip.log; exit 1; }
	@touch $@

demo-latent: $(VENV)/.installed-latent
	@$(BIN)/scaledit autoencoder train photos-ae --out runs/photos-ae --resume auto
	@$(BIN)/scaledit encode photos --autoencoder runs/photos-ae --no-flip --out runs/photos-latents
	@$(BIN)/scaledit autoencoder train photos-ae-decoder --out runs/photos-ae-decoder --resume auto \
	  train.init=runs/photos-ae
	@$(BIN)/scaledit train photos --out runs/photos --resume auto data.path=runs/photos-latents \
	  autoencoder.compare=runs/photos-ae-decoder

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow and not faults"

test-slow: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n 2 --dist loadfile -m slow

test-faults: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n 2 --dist worksteal -m faults tests/faults --table docs/reliability.md

check: $(VENV)/.installed-dev
	$(BIN)/ruff format --check src tests benchmarks examples docs
	$(BIN)/ruff check src tests benchmarks examples docs
	$(BIN)/pyright
	$(BIN)/lint-imports
	$(BIN)/python tests/words.py

$(VENV)/.installed-docs: $(VENV)/.installed
	@echo "installing the documentation tools"
	@$(PIP) $(CONSTRAINT) --editable '.[docs]' 2>$(VENV)/pip.log || { cat $(VENV)/pip.log; exit 1; }
	@touch $@

# The variables silence the notices of mkdocs-material about its successors.
docs: $(VENV)/.installed-docs
	@NO_MKDOCS_2_WARNING=1 DISABLE_MKDOCS_2_WARNING=true $(BIN)/mkdocs build --quiet
	@echo "the documentation is build/site/index.html"

format: $(VENV)/.installed-dev
	$(BIN)/ruff format src tests benchmarks examples docs
	$(BIN)/ruff check --fix src tests benchmarks examples docs

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis .import_linter_cache build
