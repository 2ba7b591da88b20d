"""The runner of one stage writes dvc.lock as DVC does, byte for byte."""

import random

import pytest
from dvc.utils.serialize import dumps_yaml, load_yaml, modify_yaml, parse_yaml

from semivid.pipeline.run import only_entry, replace_entry

NAMES = ["train@supervised-random-12-7", "a", "0", "1e3", "no", "table", "größe", "train@supervised-random-12-70"]


def an_entry(rng):
    """A stage's entry as in dvc.lock, of varying length and odd contents."""
    words = [
        "python",
        "stages/train.py",
        "--method",
        "supervised",
        "--selection",
        "published_ds_us",
        "- x",
        "a: b",
        "#",
    ]
    deps = [{"path": f"src/{i} ü.py", "hash": "md5", "md5": "1e5", "size": i} for i in range(rng.randint(1, 4))]
    values = ["none", "no", "1e-3", 1e-3, 1e-07, 100.0, True, None, [], {}, [[1, 2], {"7": 42}], "", "2\nlines", "é"]
    keys = {f"select.x{i}": rng.choice(values) for i in range(rng.randint(1, 5))}
    entry = {"cmd": " ".join(rng.choices(words, k=rng.randint(1, 30))), "deps": deps}
    if rng.random() < 0.3:
        entry["cmd"] = ["first", "second " * 20]
    if rng.random() < 0.7:
        entry["params"] = {"params.yaml": keys}
    return entry | {"outs": [{"path": "models/x", "hash": "md5", "md5": "12.dir", "nfiles": 2}]}


@pytest.mark.parametrize("seed", range(20))
def test_the_bytes_are_those_that_dvc_writes(tmp_path, seed):
    """New entries, changed ones in the first, the last and other places, and unchanged ones."""
    rng = random.Random(seed)
    lock = tmp_path / "dvc.lock"
    text = "schema: '2.0'\nstages:\n"
    for name in rng.choices(NAMES, k=15):
        entry = an_entry(rng)
        with modify_yaml(str(lock)) as data:
            data.update({"schema": "2.0"})
            data["stages"] = data.get("stages", {})
            data["stages"][name] = entry
        text = replace_entry(text, name, entry)
        assert text == lock.read_text()
        assert replace_entry(text, name, entry) == text
        for other in NAMES:  # what is read of the file is the entry of one stage
            known = load_yaml(str(lock))["stages"]
            want = {other: known[other]} if other in known else {}
            assert parse_yaml(only_entry(text, other), "dvc.lock") == {"schema": "2.0", "stages": want}
    assert load_yaml(str(lock))["stages"][name] == entry


@pytest.mark.parametrize(
    "text",
    [
        "",
        "stages: {}\nschema: '2.0'\n",
        "schema: '2.0'\nstages: {}\n",
        "schema: '2.0'\nstages:\n  a:\n    cmd: x\ndatasets: []\n",
    ],
)
def test_another_layout_is_left_to_dvc(text):
    assert replace_entry(text, "a", {"cmd": "y"}) is None
    assert only_entry(text, "a") == text


def test_a_name_is_not_taken_for_one_that_begins_with_it():
    text = dumps_yaml({"schema": "2.0", "stages": {"run-70": {"cmd": "x"}, "run-7": {"cmd": "y"}}})
    after = replace_entry(text, "run-7", {"cmd": "z"})
    assert after == text.replace("cmd: y", "cmd: z")
