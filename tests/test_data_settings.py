"""Sources as settings: how they are written in YAML and on the command line, and that each mistake names its place."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pytest

from fr3e_async.config import DataConfig, SourceConfig
from fr3e_async.errors import ConfigError
from fr3e_async.evaluation.benchmarks import BENCHMARKS
from fr3e_async.settings.help import entry_knobs, knobs, render_help
from fr3e_async.settings.loader import config_from, load_config
from fr3e_async.store.fingerprint import differences, lasting

SOURCES = "data.train=sources"


def load(*argv: str) -> DataConfig:
    return load_config(["config=toy", *argv]).config.data


def test_sources_on_the_command_line_and_from_the_saved_yaml(tmp_path: Path) -> None:
    given = "data.train_sources=[{path: a.jsonl, levels: [3, 5]}, {path: b.parquet, weight: 2, name: bee}]"
    loaded = load_config(["config=toy", SOURCES, given])
    assert loaded.config.data.train_sources == [
        SourceConfig(path="a.jsonl", levels=[3.0, 5.0]),
        SourceConfig(path="b.parquet", weight=2.0, name="bee"),
    ]
    (tmp_path / "saved.yaml").write_text(loaded.yaml)
    assert load_config([f"config={tmp_path / 'saved.yaml'}"]).config == loaded.config
    assert config_from(asdict(loaded.config)) == loaded.config  # as a journal keeps it


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("[{pth: a}]", "unknown setting data.train_sources[0].pth (did you mean path?)"),
        ("[{path: a}, {path: b, weight: x}]", "data.train_sources[1].weight must be a number, got 'x'"),
        ("[{path: a, kind: parket}]", "data.train_sources[0].kind must be one of auto, jsonl, parquet, saved, hub, got 'parket'"),
        ("[{path: a, revision: 0123}]", "data.train_sources[0].revision must be text, got 83; put it in quotes"),
        ("[{path: a, levels: 3}]", "data.train_sources[0].levels must be a list of numbers, got 3"),
        ("[{path: a, levels: [5, 3]}]", "data.train_sources[0].levels must be [lowest, highest] or empty, got [5.0, 3.0]"),
        ("[{path: a, levels: [5]}]", "data.train_sources[0].levels must be [lowest, highest]"),
        ("[{path: a, weight: 0}]", "data.train_sources[0].weight must be positive, got 0"),
        ("[{path: a, weight: .nan}]", "data.train_sources[0].weight must be positive, got nan"),
        ("[{path: a, max_answer: -1}]", "data.train_sources[0].max_answer must be at least 0, got -1"),
        ("[{path: a, answer_field: ''}]", "data.train_sources[0].answer_field has no value"),
        ("[{path: a, problem_field: ''}]", "data.train_sources[0].problem_field has no value"),
        ("[{name: a}]", "data.train_sources[0].path has no value"),
        (
            "[{path: 'data/*.parquet'}]",
            "data.train_sources[0].name must be letters, digits, '_', '-' and '.', got '*' by its path",
        ),
        ("[{path: a/x.jsonl}, {path: b/x.jsonl}]", "data.train_sources[1] and data.train_sources[0] are both called 'x'"),
        ("[a.jsonl]", "data.train_sources[0] must be a mapping with path, name"),
        ("a.jsonl", "data.train_sources must be a list of mappings with path, name, kind, …, got 'a.jsonl'"),
        ("[{path: '${nope}'}]", "data.train_sources: Interpolation key 'nope' not found"),
        ("[]", "data.train=sources, but data.train_sources is empty"),
    ],
)
def test_mistakes_name_their_place(given: str, message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        load(SOURCES, f"data.train_sources={given}")
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["data.train_sources=[{path: a}]"], "data.train_sources is given, but data.train=toy; set data.train=sources"),
        (["data.heldout=sources"], "data.heldout=sources, but data.heldout_sources is empty"),
        (["data.heldout=sources", "data.heldout_sources=[{path: a, weight: 2}]"], "data.heldout_sources[0].weight is for data.train_sources"),
        (["data.protected=[{path: a, weight: 2}]"], "data.protected[0].weight is for data.train_sources only"),
        (["data.near_copy_share=0"], "data.near_copy_share must be in (0, 1], got 0"),
        (["data.near_copy_words=0"], "data.near_copy_words must be positive"),
    ],
)  # fmt: skip
def test_settings_that_do_not_go_together(argv: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        load(*argv)
    assert message in str(raised.value)


def test_a_file_in_place_of_the_papers_mixture() -> None:
    config = load_config(["config=paper/qwen2.5-7b", "data.train=mine.jsonl", "data.heldout=", "data.protected="]).config
    assert (config.data.train, config.data.heldout, config.data.protected) == ("mine.jsonl", "", [])


def test_the_papers_mixture() -> None:
    data = load_config(["config=paper/qwen2.5-7b"]).config.data
    assert [(source.label, source.path, source.weight) for source in data.train_sources] == [
        ("deepscaler", "agentica-org/DeepScaleR-Preview-Dataset", 1.0),
        ("simplerl", "hkust-nlp/SimpleRL-Zoo-Data", 1.0),
    ]
    assert data.train_sources[1].levels == [3, 5]
    assert len({source.path for source in (*data.heldout_sources, *data.protected)}) == 7  # the paper's benchmarks
    assert (data.on_bad_row, data.on_duplicate, data.on_contamination, data.on_near_copy) == ("drop",) * 4
    known = {benchmark.hub: benchmark.revision for benchmark in BENCHMARKS.values()}
    pinned = {source.path: source.revision for source in (*data.heldout_sources, *data.protected)}
    assert pinned == {path: known[path] for path in pinned}
    assert sum(map(bool, pinned.values())) == 3


def test_a_changed_source_is_named_when_a_run_is_resumed() -> None:
    old, new = (
        load_config(["config=toy", SOURCES, f"data.train_sources=[{{path: a.jsonl, weight: {weight}}}]"]).config
        for weight in (1, 2)
    )
    assert differences(lasting(old), lasting(new)) == ["data.train_sources[0].weight: 1.0 -> 2.0"]
    plain = load_config(["config=toy"]).config
    assert "data.train: 'sources' -> 'toy'" in differences(lasting(old), lasting(plain))


def test_help_lists_what_a_source_may_hold_once() -> None:
    text = render_help()
    assert text.count("  data.train_sources[].levels") == 1
    assert "data.protected[]." not in text
    assert set(entry_knobs("data.train_sources")) == set(asdict(SourceConfig()))
    assert entry_knobs("learner.betas") == {}
    assert knobs()["data.protected"].entry is SourceConfig
