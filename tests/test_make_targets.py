"""Every make target but ``clean`` and ``format``, and every benchmark, is run by a test in its smallest form: what nobody runs is broken.

The runs themselves stand beside what they are about; here are the law, and the targets that belong nowhere else.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
import torch
from make_support import EXEMPT, MAKEFILE, ROOT, copy_of_the_repository, make, started, targets

TESTS = ROOT / "tests"
BENCHMARKS = ROOT / "benchmarks"

# Target: the test, or the fixture, that runs its line.
RUN_BY = {
    "help": "test_make_targets.py::test_help_tells_of_every_target",
    "setup": "test_make_targets.py::test_what_ci_runs_sets_up_first",
    "test": "test_make_targets.py::test_what_ci_runs_sets_up_first",
    "check": "test_make_targets.py::test_check_passes",
    "fast": "test_make_targets.py::test_each_set_of_tests_runs_its_own",
    "slow": "test_make_targets.py::test_each_set_of_tests_runs_its_own",
    "long": "test_make_targets.py::test_each_set_of_tests_runs_its_own",
    "gpu-check": "test_make_targets.py::test_gpu_checks_skip_where_there_is_no_gpu",
    "docs": "test_make_targets.py::test_generated_documentation_is_fresh",
    "demo": "test_end_to_end.py::finished",
    "wheel": "test_packaging.py::wheel",
    "site": "test_docs_site.py::test_the_site_builds_without_a_warning",
    "compare": "test_compare.py::test_a_short_comparison_and_one_that_resumes",
    "mutations": "test_make_targets.py::test_a_few_mutants_are_met",
    "bench-families": "test_make_targets.py::test_a_family_is_tried",
    "chaos": "test_benchmarks.py::test_a_run_resumes_after_a_kill",
    "seeds": "test_benchmarks.py::test_a_seed_is_a_row",
    "bench-branching": "test_benchmarks.py::test_branching_recomputes_nothing_but_partial_blocks",
    "bench-entropy": "test_benchmarks.py::test_entropies_are_compared_with_the_plain_engine",
    "bench-verifier": "test_benchmarks.py::test_verifiers_agree_with_bare_math_verify",
    "bench-weights": "test_benchmarks.py::test_weights_are_handed_over",
    "bench-learner": "test_bench_groups.py::test_every_way_computes_the_same_and_the_tree_least",
    "bench-scale": "test_bench_scale.py::test_scale_as_a_user_starts_it",
    "bench-staleness": "test_bench_system.py::test_staleness_as_a_user_starts_it",
    "bench-system": "test_bench_system.py::test_all_sections_as_a_user_starts_them",
}
# Benchmarks without a target.
SCRIPTS = {
    "long_tails": "test_benchmarks.py::test_long_tails_in_the_simulator_and_over_ray",
    "delivery": "test_actors_stream.py::test_the_ways_to_deliver_are_compared",
    "groups": "test_bench_groups.py::test_recorded_groups_are_told_of",
    "verifier_mutations": "test_verify_shared.py::test_mutated_references_are_looked_at",
    "simulator": "test_simulate_calibrate.py::test_the_benchmark_puts_prediction_and_measurement_side_by_side",
}


# ---- the law ----


def function(place: str) -> ast.FunctionDef:
    """The test or fixture at file::name."""
    file, _, name = place.partition("::")
    (found,) = [
        node for node in ast.parse((TESTS / file).read_text(encoding="utf-8")).body if isinstance(node, ast.FunctionDef) and node.name == name
    ]  # fmt: skip
    return found


def left_out(place: str) -> bool:
    """It is marked as one that `make test` leaves out, itself or with all of its file."""
    body = ast.parse((TESTS / place.partition("::")[0]).read_text(encoding="utf-8")).body
    of_all = [node.value for node in body if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "pytestmark"]
    return any(re.search(r"mark\.(long|skip)\b", ast.unparse(mark)) for mark in (*function(place).decorator_list, *of_all))


def test_every_target_is_run_by_a_test() -> None:
    assert targets() == set(RUN_BY) | set(EXEMPT)
    for target, place in RUN_BY.items():
        assert re.search(rf"'{target}'", ast.unparse(function(place))), f"{place} does not run make {target}"


def test_every_target_is_phony_and_none_other() -> None:
    (line,) = re.findall(r"^\.PHONY: (.*)$", MAKEFILE, flags=re.MULTILINE)
    assert set(line.split()) == targets()


def test_nothing_of_it_is_left_out_of_make_test() -> None:
    assert [place for place in (*RUN_BY.values(), *SCRIPTS.values()) if left_out(place)] == []


def test_every_benchmark_is_run_or_is_a_part_of_one_that_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from scale import SECTIONS

    sources = {path.stem: path.read_text(encoding="utf-8") for path in BENCHMARKS.glob("*.py")}
    by_target = {
        name: target for target, name in re.findall(r"^([a-z-]+):.*\n\t.*benchmarks/(\w+)\.py", MAKEFILE, flags=re.MULTILINE)
    }
    assert {name for name, text in sources.items() if "__main__" in text} == set(by_target) | set(SCRIPTS)
    assert set(by_target.values()) <= set(RUN_BY)
    for name, place in SCRIPTS.items():
        assert f"{name}.py" in ast.unparse(function(place)), f"{place} does not run benchmarks/{name}.py"
    reached: set[str] = set()
    todo = [*by_target, *SCRIPTS, *(f"scale_{section}" for section in SECTIONS)]
    while todo:
        name = todo.pop()
        reached.add(name)
        todo += [other for other in sources if other not in reached and re.search(rf"\b{other}\b", sources[name])]
    assert set(sources) - reached == set(), "no benchmark uses these"


def test_the_law_can_fail() -> None:
    with pytest.raises(ValueError, match="not enough values"):
        function("test_make_targets.py::no_such_test")
    assert not left_out("test_make_targets.py::test_check_passes")
    assert started("no-such-target").returncode == 2


# ---- what tests are run ----


def test_help_tells_of_every_target() -> None:
    listed = make("help").stdout.splitlines()
    assert {line.split()[0] for line in listed} == targets()
    assert all(len(line.split()) > 2 for line in listed)


def test_what_ci_runs_sets_up_first(tmp_path: Path) -> None:
    """CI itself is the run of `setup` and `test`: what is left to see is that the one leads to the other."""
    commands = re.sub(r"#.*", "", (ROOT / ".ci" / "run").read_text(encoding="utf-8"))
    assert re.search(r"\bmake\b.*\btest\b", commands)
    for target in ("setup", "test"):
        would = make(target, VENV=str(tmp_path / "venv"), flags=("--dry-run",)).stdout
        assert re.search(r"PYTHON=\S+ VENV=\S+ FLAVOUR=(cpu|cuda) bash scripts/setup\.sh", would), target
    assert "pytest" in would
    refused = started("setup", VENV=str(tmp_path / "venv"), DEVICE="tpu")
    assert refused.returncode == 2
    assert "DEVICE must be auto, cpu or cuda, got tpu" in refused.stderr
    assert not (tmp_path / "venv").exists()


MARKED = """
import pytest

def test_of_the_fast_ones(): pass

@pytest.mark.slow
def test_of_the_slow_ones(): pass

@pytest.mark.long
@pytest.mark.slow
def test_of_the_long_ones(): pass
"""


@pytest.fixture
def marked(tmp_path: Path) -> tuple[str, ...]:
    """Arguments of pytest: a test of each set, instead of the repository's."""
    file = tmp_path / "test_marked.py"
    file.write_text(MARKED)
    return ("-rA", "-c", str(ROOT / "pyproject.toml"), "-p", "no:cacheprovider", "-n0", str(file))


@pytest.mark.slow
def test_each_set_of_tests_runs_its_own(marked: tuple[str, ...]) -> None:
    for target in ("fast", "slow", "long"):
        done = make(target, *marked)
        assert re.findall(r"PASSED .*test_of_the_(\w+)_ones", done.stdout) == [target]


@pytest.mark.slow
def test_check_passes(marked: tuple[str, ...]) -> None:
    """Format, lint and types of the whole, which nothing else in CI looks at; of the fast tests it runs one."""
    done = make("check", *marked)
    assert "already formatted" in done.stdout
    assert "no issues found" in done.stdout
    assert re.findall(r"PASSED .*test_of_the_(\w+)_ones", done.stdout) == ["fast"]


@pytest.mark.slow
def test_gpu_checks_skip_where_there_is_no_gpu() -> None:
    here = torch.cuda.is_available()
    done = make("gpu-check", "tests/test_gpu.py", *(["--collect-only"] if here else []))
    assert here or re.search(r"SKIPPED \[\d+\] .*needs a CUDA GPU", done.stdout)
    assert "failed" not in done.stdout


def test_a_few_mutants_are_met() -> None:
    """Which they are; meeting them is run by tests/test_mutate.py, on a small repository."""
    listed = make("mutations", "--list", "--count", "3").stdout.splitlines()
    assert len([line for line in listed if "fr3e_async/" in line]) >= 3


@pytest.mark.slow
def test_a_family_is_tried() -> None:
    assert "right in the learner; no engine was asked" in make("bench-families", "OLMo 2", "--learner").stdout


# ---- what writes files ----


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.slow
def test_generated_documentation_is_fresh(tmp_path: Path) -> None:
    copy = copy_of_the_repository(tmp_path / "copy")
    before = contents(copy)
    make("docs", folder=copy)
    after = {name: found for name, found in contents(copy).items() if "__pycache__" not in name}
    assert set(after) == set(before)
    assert [name for name in before if before[name] != after[name]] == [], "run: make docs"
