"""The directory of a run: one config for ever, and a log that never stops a training."""

import json
import logging

import pytest

from masc.runtime.errors import InputError
from masc.runtime.run import (
    MetricsLog,
    Provenance,
    begin_run,
    check_run,
    read_metrics,
    read_provenance,
    run_label,
    split_label,
    upgrade_config,
)


def test_a_changed_config_is_refused_by_the_keys_that_differ(tmp_path):
    config = {"steps": 10, "rates": {"lr": 0.1}, "tracking": {"mode": "offline"}}
    run, tree = tmp_path / "run", {"tree": "a" * 64}
    assert check_run(run, config, tree, ()) is None and not run.exists()
    begin_run(run, config, tree, ("tracking.",), "masc")
    assert check_run(run, config, tree, ()) == upgrade_config(config)
    assert check_run(run, config | {"tracking": {"mode": "disabled"}}, tree, ("tracking.",)) == upgrade_config(config)
    with pytest.raises(InputError, match=r"rates.lr: 0.1 there, 0.2 now\n.*RUN_DIR") as error:
        check_run(run, config | {"rates": {"lr": 0.2}}, tree, ("tracking.",))
    assert "steps" not in str(error.value)
    with pytest.raises(InputError, match="sha256 of the tree"):
        check_run(run, config, {"tree": "b" * 64}, ("tracking.",))


def test_the_metrics_log_drops_what_lies_beyond_the_checkpoint(tmp_path):
    log = MetricsLog(tmp_path / "metrics.jsonl", 0)
    for step in (1, 2, 3):
        log.write({"step": step})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "tra')  # the process died here
    MetricsLog(tmp_path / "metrics.jsonl", 2).write({"step": 3, "again": 1})
    assert read_metrics(tmp_path / "metrics.jsonl") == [{"step": 1}, {"step": 2}, {"step": 3, "again": 1}]
    provenance = tmp_path / "run2"
    begin_run(provenance, {}, {}, ("x",), "masc")
    found = json.loads((provenance / "provenance.json").read_text())
    assert found["packages"]["numpy"] and (found["label"], found["volatile"]) == ("masc", ["x"])


@pytest.mark.parametrize(
    ("head", "tree", "loss", "label"),
    [
        ("flat", None, "ce", "flat"),
        ("masc", "masc", None, "masc"),
        ("masc-two-level", "kmeans", "ce", "masc-two-level-on-kmeans"),
        ("flat", None, "soft-codes", "flat-with-soft-codes"),
        ("flat", "kmeans", "cluster", "flat-on-kmeans-with-cluster"),
    ],
)
def test_a_label_gives_head_tree_and_loss_back(head, tree, loss, label):
    assert run_label(head, tree, loss) == label and split_label(label) == (head, tree or "masc", loss or "ce")


SPOILED = {
    "missing": None,
    "empty": b"",
    "truncated": b"{",
    "a list": b"[1]",
    "other bytes": b"\xff\x00",
    "a tag": b"a: !!python/name:os.system",
}


@pytest.mark.parametrize("name", ["config.yaml", "provenance.json"])
@pytest.mark.parametrize("content", SPOILED.values(), ids=SPOILED)
def test_a_run_whose_papers_are_damaged_is_kept_and_refused(tmp_path, name, content):
    run = tmp_path / "run"
    begin_run(run, {"steps": 10}, {"tree": "a"}, (), "masc")
    (run / "checkpoints" / "last").mkdir(parents=True)
    (run / name).unlink() if content is None else (run / name).write_bytes(content)
    with pytest.raises(InputError, match=f"{run / name}.*copy it back, or choose another directory") as error:
        check_run(run, {"steps": 10}, {"tree": "a"}, ())
    assert "rm -r" not in str(error.value) and "\n" not in str(error.value)
    assert (run / name).exists() == (content is not None)


def test_provenance_of_older_runs_is_read(tmp_path):
    (tmp_path / "provenance.json").write_text('{"parents": {"codebook": "a"}, "commit": null, "later": 1}')
    assert read_provenance(tmp_path) == Provenance({"codebook": "a"})


BROKEN = [
    *(b"\xff\xfe", b"[1]", b"null", b'{"a": 1}', b'{"step": true}', b'{"step": 1.5}', b'{"step": -1}'),
    *(b'{"step": 1, "x": "a"}', b"[" * 10**5, b"1" * 10**4),
]


def test_lines_that_are_no_rows_are_skipped_with_one_warning(tmp_path, caplog):
    log = tmp_path / "metrics.jsonl"
    log.write_bytes(b"\n".join([b'{"step": 0, "x": NaN}', *BROKEN, b'{"step": 2, "x": 1}', b'{"step": 3, "tra']))
    with caplog.at_level(logging.WARNING):
        assert [row["step"] for row in read_metrics(log)] == [0, 2]
    assert len(caplog.records) == 1 and f"skipping {len(BROKEN) + 1} broken line(s)" in caplog.text
    MetricsLog(log, 2).write({"step": 3})
    assert [row["step"] for row in read_metrics(log)] == [0, 2, 3]
