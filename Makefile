# The two commands of a fresh machine: `make report` and `make test`. `make check` is ruff and pyright.
.PHONY: report test check clean
WORKERS ?= $(shell nproc 2>/dev/null || echo 2)
BUDGET ?= 28m

report: .venv/report.done
	.venv/bin/postformer report --budget $(BUDGET)

test: .venv/dev.done
	.venv/bin/python -m pytest -q -n $(WORKERS) --dist worksteal

check: .venv/dev.done
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/pyright

KERNELS = $(wildcard csrc/*.cpp csrc/*.h) csrc/CMakeLists.txt

.venv/report.done: pyproject.toml tools/setup.sh $(KERNELS)
	tools/setup.sh report
	@touch $@

.venv/dev.done: pyproject.toml tools/setup.sh $(KERNELS)
	tools/setup.sh report,dev,peers
	@touch $@

clean:
	rm -rf .venv build
