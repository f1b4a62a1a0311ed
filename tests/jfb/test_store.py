import json
import os
import threading
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from jfb import store
from jfb.checkpoint import save_mixing
from jfb.config import ArchitectureSpec, InputSpec, ModelConfig
from jfb.solvers import Mixing
from jfb.store import (
    CheckpointError,
    ModelVersion,
    Sample,
    VersionNotWritten,
    is_model_name,
    list_models,
    list_versions,
    new_version,
    read_config,
    read_evaluation,
    read_metrics,
)
from tests.disk import full_disk


def config(classes: int = 2) -> ModelConfig:
    return ModelConfig(
        architecture=ArchitectureSpec(name="implicit_mlp"),
        input=InputSpec(shape=(3,), kind="vector"),
        classes=[str(place) for place in range(classes)],
    )


def test_versions_count_up_and_other_files_in_the_store_are_not_versions(tmp_path: Path) -> None:
    with new_version(tmp_path, "letters"):
        pass
    for name in ("12", "latest", "007", "0", "²", ".incomplete-x"):
        (tmp_path / "letters" / name).mkdir()
    (tmp_path / "letters" / "99").write_text("a file, not a version")
    (tmp_path / "empty").mkdir()
    assert list_versions(tmp_path / "letters") == [1, 12]
    assert list_models(tmp_path) == {"letters": [1, 12]}
    with new_version(tmp_path, "letters"):
        pass
    assert list_versions(tmp_path / "letters") == [1, 12, 13]


def test_a_version_that_fails_half_way_leaves_nothing(tmp_path: Path) -> None:
    with new_version(tmp_path, "letters"):
        pass
    half = new_version(tmp_path, "letters")

    def fail_half_way() -> None:
        with half as new:
            (new / "config.json").write_text("{}")
            assert list_versions(tmp_path / "letters") == [1], "visible before it was whole"
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail_half_way()
    assert [path.name for path in (tmp_path / "letters").iterdir()] == ["1"]
    with pytest.raises(RuntimeError, match=r"no version of letters was finished"):
        _ = half.folder


def test_writers_at_the_same_time_each_get_a_version(tmp_path: Path) -> None:
    together = threading.Barrier(4)
    written: dict[int, ModelVersion] = {}

    def write(writer: int) -> None:
        new = new_version(tmp_path, "letters")
        with new as hidden:
            (hidden / "config.json").write_text(f"{writer}")
            together.wait()
        together.wait()  # by now all four versions exist
        written[writer] = new.version
        assert new.folder == new.version.folder(tmp_path)

    writers = [threading.Thread(target=write, args=(writer,)) for writer in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert sorted(written.values()) == [ModelVersion("letters", number) for number in (1, 2, 3, 4)]
    assert {n: (version.folder(tmp_path) / "config.json").read_text() for n, version in written.items()} == {
        n: f"{n}" for n in range(4)
    }


def test_a_version_is_written_as_name_and_number_and_read_back(tmp_path: Path) -> None:
    version = ModelVersion("a-b.c", 10)
    assert str(version) == "a-b.c/10"
    assert ModelVersion.parse(str(version)) == version
    assert version.folder(tmp_path) == tmp_path / "a-b.c" / "10"
    assert ModelVersion("a", 9) < ModelVersion("a", 10) < ModelVersion("b", 1)


@pytest.mark.parametrize("text", ["", "a", "/1", "a/", "a/b/1", "a/0", "a/01", "a/-1", "a/1.0", "a/²", "a/1 "])
def test_other_texts_are_no_versions(text: str) -> None:
    with pytest.raises(ValueError, match=r"^model version: must be NAME/NUMBER \(got "):
        ModelVersion.parse(text)


def test_side_files_are_read_as_they_were_written(tmp_path: Path) -> None:
    metrics = {"accuracy": 0.875, "contraction_bound": None}
    samples = [Sample([[0, 1.5], [2, 3]], "ä"), Sample([], "b")]
    evaluation = {"recommended_tolerance": 1e-3, "outcomes": [{"label": None}]}
    store.write_config(tmp_path, config())
    store.write_metrics(tmp_path, metrics)
    store.write_samples(tmp_path, samples)
    store.write_evaluation(tmp_path, evaluation)
    assert store.read_config(tmp_path) == config()
    assert store.read_metrics(tmp_path) == metrics
    assert store.read_samples(tmp_path) == samples
    assert store.read_evaluation(tmp_path) == evaluation
    store.write_config(tmp_path, config(classes=3))
    assert store.read_config(tmp_path) == config(classes=3)
    names = ["config.json", "evaluation.json", "metrics.json", "samples.json"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names, "nothing incomplete is left"


def test_side_files_may_be_missing(tmp_path: Path) -> None:
    assert store.read_metrics(tmp_path) is None
    assert store.read_samples(tmp_path) == []
    assert store.read_evaluation(tmp_path) is None
    with pytest.raises(CheckpointError, match=r"config\.json: No such file"):
        store.read_config(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not JSON"),
        ("\udcff", "not JSON"),
        ('{"input": [1]}', r"samples: .*list"),
        ('[{"input": [1]}]', r"0\.label: Field required"),
        ('[{"input": 1, "label": "a"}]', r"0\.input: .*list"),
    ],
)
def test_samples_in_another_form_are_rejected_by_name(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "samples.json").write_text(content, errors="surrogateescape")
    with pytest.raises(CheckpointError, match=rf"samples\.json: {message}"):
        store.read_samples(tmp_path)


def test_metrics_that_are_no_object_are_rejected(tmp_path: Path) -> None:
    (tmp_path / "metrics.json").write_text("[1]")
    with pytest.raises(CheckpointError, match=r"metrics\.json: must be a JSON object \(got list\)"):
        store.read_metrics(tmp_path)


@dataclass(frozen=True)
class Line:
    epoch: int
    loss: float | None


def test_a_table_has_a_column_for_each_field_and_a_line_for_each_row(tmp_path: Path) -> None:
    store.write_table(tmp_path / store.HISTORY, Line, [Line(1, 0.5), Line(2, None)])
    assert (tmp_path / "history.csv").read_text().split() == ["epoch,loss", "1,0.5", "2,"]
    store.write_table(tmp_path / store.HISTORY, Line, [])
    assert (tmp_path / "history.csv").read_text().split() == ["epoch,loss"]


def test_names_that_lead_elsewhere_or_are_too_long_are_no_models(tmp_path: Path) -> None:
    store = tmp_path / "store"
    (store / "good" / "1").mkdir(parents=True)
    (tmp_path / "beside" / "1").mkdir(parents=True)
    (store / ".hidden" / "1").mkdir(parents=True)
    (store / "with space" / "1").mkdir(parents=True)
    (store / os.fsdecode(b"not-utf8-\xff") / "1").mkdir(parents=True)
    assert list_models(store) == {"good": [1]}
    for name in ("..", ".hidden", "a" * 129, "a" * 5000, "nul\0", "with space"):
        assert list_versions(store / name) == []
    for name in ("..", "../beside", ".hidden", "a" * 129, "a" * 5000, "nul\0", ""):
        assert not is_model_name(name)
        with pytest.raises(ValueError, match="model name: must be 1 to 128"):
            new_version(store, name)


def test_what_cannot_be_a_version_is_left_out(tmp_path: Path) -> None:
    model = tmp_path / "model"
    for number in ("7", str(2**31 - 1)):
        (model / number).mkdir(parents=True)
    for name in ("0", "07", str(2**31), "1" * 20, "٣", "-1"):
        (model / name).mkdir()
    (model / "1").symlink_to(model / "nowhere")
    (model / "2").symlink_to(model / "2")
    os.mkfifo(model / "3")
    assert list_versions(model) == [7, 2**31 - 1]


def test_side_files_that_would_block_or_lead_nowhere_are_errors(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "config.json")
    (tmp_path / "metrics.json").symlink_to(tmp_path / "nowhere")
    (tmp_path / "evaluation.json").symlink_to(tmp_path / "evaluation.json")
    with pytest.raises(CheckpointError, match=r"config\.json: must be a regular file"):
        read_config(tmp_path)
    with pytest.raises(CheckpointError, match=r"metrics\.json: No such file"):
        read_metrics(tmp_path)
    with pytest.raises(CheckpointError, match=r"evaluation\.json: Too many levels"):
        read_evaluation(tmp_path)


@pytest.mark.parametrize("content", ["[" * 100_000, '{"a": ' * 100_000, '{"name": "\\ud800"}'])
def test_json_that_could_not_be_sent_on_is_an_error(tmp_path: Path, content: str) -> None:
    (tmp_path / "metrics.json").write_text(content)
    with pytest.raises(CheckpointError, match="not JSON"):
        read_metrics(tmp_path)


def test_a_full_disk_leaves_nothing_of_a_version_and_the_message_says_so(tmp_path: Path) -> None:
    with new_version(tmp_path, "letters"):
        pass
    message = r"letters: no version was written, and the store is as it was: File too large"

    def write() -> None:
        with new_version(tmp_path, "letters") as folder:
            (folder / "config.json").write_text("{}")
            save_mixing(folder, Mixing(torch.eye(64), torch.zeros(64), 0.9))

    with full_disk(4096), pytest.raises(VersionNotWritten, match=message):
        write()
    assert [path.name for path in (tmp_path / "letters").iterdir()] == ["1"]


def test_a_store_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "store").touch()
    with pytest.raises(VersionNotWritten, match=r"store/letters: no version was written, .*: Not a directory"):
        new_version(tmp_path / "store", "letters").check()


def test_a_check_leaves_no_version(tmp_path: Path) -> None:
    new = new_version(tmp_path, "letters")
    new.check()
    assert list((tmp_path / "letters").iterdir()) == []
    with new:
        pass
    assert new.version == ModelVersion("letters", 1)


def test_a_side_file_that_does_not_fit_on_the_disk_stays_as_it_was(tmp_path: Path) -> None:
    store.write_metrics(tmp_path, {"accuracy": 1})
    store.write_table(tmp_path / store.HISTORY, Line, [Line(1, 0.5)])
    with full_disk(4096):
        with pytest.raises(OSError, match="File too large"):
            store.write_metrics(tmp_path, {"accuracy": "x" * 10_000})
        with pytest.raises(OSError, match="File too large"):
            store.write_table(tmp_path / store.HISTORY, Line, [Line(1, 0.5)] * 1000)
    assert store.read_metrics(tmp_path) == {"accuracy": 1}
    assert (tmp_path / "history.csv").read_text().split() == ["epoch,loss", "1,0.5"]
    assert len(list(tmp_path.iterdir())) == 2, "nothing incomplete is left"


def test_a_picture_is_replaced_as_a_whole_or_stays(tmp_path: Path) -> None:
    picture = tmp_path / store.CURVES
    picture.write_bytes(b"old")

    def draw() -> None:
        with store.replaced_file(picture) as incomplete:
            incomplete.write_bytes(bytes(10_000))

    with full_disk(4096), pytest.raises(OSError, match="File too large"):
        draw()
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"old"]
    draw()
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [bytes(10_000)]


def test_an_alias_names_a_version_until_it_is_moved(tmp_path: Path) -> None:
    for _ in range(2):
        with new_version(tmp_path, "letters"):
            pass
    assert store.read_aliases(tmp_path / "letters") == {}
    assert store.set_alias(tmp_path, "stable", ModelVersion("letters", 1)) is None
    assert store.set_alias(tmp_path, "canary", ModelVersion("letters", 2)) is None
    assert store.set_alias(tmp_path, "stable", ModelVersion("letters", 2)) == 1
    assert store.read_aliases(tmp_path / "letters") == {"canary": 2, "stable": 2}
    assert list_versions(tmp_path / "letters") == [1, 2]
    with full_disk(1), pytest.raises(OSError, match="File too large"):
        store.set_alias(tmp_path, "stable", ModelVersion("letters", 1))
    with pytest.raises(ValueError, match=r"version: must be one of 1, 2 in .*letters \(got 3\)"):
        store.set_alias(tmp_path, "stable", ModelVersion("letters", 3))
    assert store.read_aliases(tmp_path / "letters") == {"canary": 2, "stable": 2}
    with pytest.raises(ValueError, match=r"must be one of canary, stable \(got 'stabel'; did you mean 'stable'\?\)"):
        store.remove_alias(tmp_path / "letters", "stabel")
    assert store.remove_alias(tmp_path / "letters", "stable") == 2
    assert store.read_aliases(tmp_path / "letters") == {"canary": 2}


@pytest.mark.parametrize(
    "alias", ["", "1", "01", "-1", "1.5", "v1", "V12", "v", "v1.2", ".a", "_a", "a/b", "a b", "ä", "a" * 129, "a\n"]
)
def test_what_could_be_a_number_or_no_part_of_a_path_is_no_alias(tmp_path: Path, alias: str) -> None:
    with new_version(tmp_path, "letters"):
        pass
    with pytest.raises(ValueError, match="alias: must be a letter and up to 127"):
        store.set_alias(tmp_path, alias, ModelVersion("letters", 1))
    (tmp_path / "letters" / "aliases.json").write_text(json.dumps({alias: 1}))
    with pytest.raises(CheckpointError, match=r"aliases\.json: alias: must be"):
        store.read_aliases(tmp_path / "letters")


@pytest.mark.parametrize(
    "content", ["{", "[]", '{"a": 0}', '{"a": "1"}', '{"a": true}', '{"a": 1.0}', '{"a": 1e99}', '{"a": null}']
)
def test_aliases_of_another_form_are_an_error(tmp_path: Path, content: str) -> None:
    (tmp_path / "aliases.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"aliases\.json: "):
        store.read_aliases(tmp_path)


def test_a_model_has_a_limited_number_of_aliases(tmp_path: Path) -> None:
    with new_version(tmp_path, "letters"):
        pass
    (tmp_path / "letters" / "aliases.json").write_text(json.dumps({f"a{number}": 1 for number in range(100)}))
    assert store.set_alias(tmp_path, "a5", ModelVersion("letters", 1)) == 1
    with pytest.raises(ValueError, match="at most 100"):
        store.set_alias(tmp_path, "b", ModelVersion("letters", 1))


def test_a_version_was_published_when_its_oldest_file_was_written(tmp_path: Path) -> None:
    (tmp_path / store.WEIGHTS).touch()
    os.utime(tmp_path / store.WEIGHTS, (1000, 1000))
    store.write_metrics(tmp_path, {"accuracy": 1})  # as `evaluate` does later
    assert store.publication_time(tmp_path) == 1000
    with pytest.raises(store.CheckpointError, match="gone: No such file"):
        store.publication_time(tmp_path / "gone")
