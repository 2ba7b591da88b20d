"""Outputs appear whole or not at all; a failure leaves what was there."""

import json
import os
import resource
import subprocess
import sys
from contextlib import contextmanager

import pytest

from semivid.pipeline.artifacts import replacing, write_json, write_text


@contextmanager
def disk_full(limit=1000):
    """Files cannot grow beyond `limit` bytes: the system refuses as it does on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def tree(folder):
    """{relative path: content} of all files below `folder`."""
    return {str(p.relative_to(folder)): p.read_text() for p in sorted(folder.rglob("*")) if p.is_file()}


def fill(folder, **files):
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_text(content)


# ---- success


def test_a_file_appears_whole(tmp_path):
    path = tmp_path / "new" / "a.txt"
    with replacing(path) as temporary:
        temporary.write_text("half")
        assert not path.exists()
        temporary.write_text("whole")
    assert tree(tmp_path) == {"new/a.txt": "whole"}


def test_an_old_file_is_there_until_the_new_one_is(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with replacing(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert tree(tmp_path) == {"a.txt": "new"}


def test_a_folder_is_replaced_as_a_whole(tmp_path):
    fill(tmp_path / "out", left="1", both="1")
    with replacing(tmp_path / "out") as temporary:
        fill(temporary, both="2", new="2")
        assert tree(tmp_path / "out") == {"left": "1", "both": "1"}
    assert tree(tmp_path) == {"out/both": "2", "out/new": "2"}


def test_temporaries_are_hidden_from_dvc_and_git(tmp_path):
    """.dvcignore and .gitignore hold the pattern `.*.tmp`; else a parent folder as a dependency would see them."""
    with replacing(tmp_path / "a.txt") as temporary:
        assert temporary.parent == tmp_path
        assert temporary.name.startswith(".") and temporary.name.endswith(".tmp")
        temporary.write_text("")


def test_what_a_killed_run_left_is_swept_away(tmp_path):
    with replacing(tmp_path / "out") as temporary:
        temporary.mkdir()
    fill(temporary, garbage="x")  # as if killed in the middle
    with replacing(tmp_path / "out") as temporary:
        assert not temporary.exists()
        fill(temporary, a="1")
    assert tree(tmp_path) == {"out/a": "1"}


# ---- outputs that DVC linked into its cache, read-only


def test_a_hard_link_to_the_cache_is_replaced_not_written_through(tmp_path):
    cached, path = tmp_path / "cache", tmp_path / "a.txt"
    cached.write_text("old")
    cached.chmod(0o444)
    os.link(cached, path)
    write_text(path, "new")
    assert (path.read_text(), cached.read_text()) == ("new", "old")


def test_a_symbolic_link_to_the_cache_is_replaced_not_followed(tmp_path):
    cached, path = tmp_path / "cache", tmp_path / "a.txt"
    cached.write_text("old")
    cached.chmod(0o444)
    path.symlink_to(cached)
    write_text(path, "new")
    assert not path.is_symlink()
    assert (path.read_text(), cached.read_text()) == ("new", "old")


@pytest.mark.parametrize("link", [os.link, os.symlink])
def test_a_folder_of_links_to_the_cache_is_replaced(tmp_path, link):
    cached, out = tmp_path / "cache", tmp_path / "out"
    cached.write_text("old")
    cached.chmod(0o444)
    out.mkdir()
    link(cached, out / "a")
    with replacing(out) as temporary:
        fill(temporary, a="new")
    assert (tree(out), cached.read_text()) == ({"a": "new"}, "old")


# ---- failure


@pytest.mark.parametrize("error", [ValueError, SystemExit, KeyboardInterrupt])
def test_a_failure_leaves_the_old_file(tmp_path, error):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(error), replacing(path) as temporary:
        temporary.write_text("new")
        raise error
    assert tree(tmp_path) == {"a.txt": "old"}


@pytest.mark.parametrize("error", [ValueError, SystemExit])
def test_a_failure_leaves_the_old_folder(tmp_path, error):
    fill(tmp_path / "out", a="old", b="old")
    with pytest.raises(error), replacing(tmp_path / "out") as temporary:
        fill(temporary, a="new")
        raise error
    assert tree(tmp_path) == {"out/a": "old", "out/b": "old"}


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_failing_rename_leaves_the_old(tmp_path, monkeypatch, kind):
    path = tmp_path / "out"
    fill(path, a="old") if kind == "folder" else path.write_text("old")
    before = tree(tmp_path)
    real = {name: getattr(os, name) for name in ("rename", "replace")}

    def refuse_the_new_one(name):
        def rename(source, target, **options):
            if str(source).endswith(".tmp") and os.fspath(target) == str(path) and "new" in content(source):
                raise OSError(5, "Input/output error", str(target))
            return real[name](source, target, **options)

        return rename

    def content(source):
        return tree(source).values() if os.path.isdir(source) else [open(source).read()]

    for name in real:
        monkeypatch.setattr(os, name, refuse_the_new_one(name))
    with pytest.raises(OSError, match="Input/output"), replacing(path) as temporary:
        fill(temporary, a="new") if kind == "folder" else temporary.write_text("new")
    assert tree(tmp_path) == before


KILLED_WHILE_SWAPPING = """
import os, sys
from semivid.pipeline.artifacts import replacing
calls = 0
def counted(call):
    def count_then_call(*args, **options):
        global calls
        calls += 1
        if calls == int(sys.argv[1]):
            os._exit(9)
        return call(*args, **options)
    return count_then_call
with replacing("out") as temporary:
    temporary.mkdir()
    (temporary / "a").write_text("new")
    for name in ("rename", "replace", "unlink", "rmdir", "scandir"):
        setattr(os, name, counted(getattr(os, name)))
"""


def test_a_kill_at_any_moment_leaves_the_old_or_the_new_folder(tmp_path):
    """Seen by the next run, before it writes anything of its own."""
    seen = set()
    for moment in range(1, 12):
        folder = tmp_path / str(moment)
        fill(folder / "out", a="old")
        done = subprocess.run([sys.executable, "-c", KILLED_WHILE_SWAPPING, str(moment)], cwd=folder)
        with pytest.raises(ZeroDivisionError), replacing(folder / "out"):
            seen.add(tree(folder / "out").get("a", "nothing"))
            raise ZeroDivisionError
        assert list(tree(folder)) == ["out/a"]
        if done.returncode == 0:
            break
    assert done.returncode == 0 and moment > 1, "no moment, or not all of them, were tried"
    assert seen == {"old", "new"}


def test_a_full_disk_leaves_the_old_file_and_names_it(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with disk_full(), pytest.raises(OSError) as error:
        write_text(path, "new" * 1000)
    assert error.value.filename == str(path)
    assert tree(tmp_path) == {"a.txt": "old"}


def test_a_full_disk_in_the_middle_of_a_folder(tmp_path):
    fill(tmp_path / "out", a="old")
    with disk_full(), pytest.raises(OSError) as error, replacing(tmp_path / "out") as temporary:
        fill(temporary, a="new", b="new" * 1000)
    assert error.value.filename == str(tmp_path / "out")
    assert tree(tmp_path) == {"out/a": "old"}


def test_a_full_disk_under_safetensors_is_the_same_error(tmp_path):
    """Its library tells the system's error in a text only."""
    import numpy as np
    from safetensors.numpy import save_file

    path = tmp_path / "a.safetensors"
    path.write_text("old")
    with disk_full(), pytest.raises(OSError) as error, replacing(path) as temporary:
        save_file({"x": np.zeros(1000)}, temporary)
    assert error.value.filename == str(path) and error.value.strerror
    assert tree(tmp_path) == {"a.safetensors": "old"}


def test_a_parent_that_is_a_file(tmp_path):
    (tmp_path / "a").write_text("")
    with pytest.raises(OSError) as error:
        write_text(tmp_path / "a" / "b.txt", "x")
    assert str(tmp_path / "a") in str(error.value.filename)


def test_nothing_written_is_an_error_and_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(OSError), replacing(path):
        pass
    assert tree(tmp_path) == {"a.txt": "old"}


# ---- text and JSON


def test_text_is_utf_8_without_translation(tmp_path):
    write_text(tmp_path / "a.txt", "Zürich\n漢\n")
    assert (tmp_path / "a.txt").read_bytes() == "Zürich\n漢\n".encode()


def test_json_reads_back_and_ends_with_a_newline(tmp_path):
    value = {"b": [1, 0.1, None], "a": "ü"}
    write_json(tmp_path / "a.json", value)
    text = (tmp_path / "a.json").read_text()
    assert text.endswith("}\n")
    assert json.loads(text) == value and list(json.loads(text)) == ["b", "a"]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_json_refuses_what_is_no_number(tmp_path, value):
    write_json(tmp_path / "a.json", 1)
    with pytest.raises(ValueError):
        write_json(tmp_path / "a.json", {"x": value})
    assert tree(tmp_path) == {"a.json": "1\n"}
