"""What one checkout has made, another gets from a remote and from git, and neither engine does it again."""

import os
import re
import subprocess
import tempfile

import pytest

from toy import ALL, Pipeline

SHARE = ("python", "-m", "semivid.pipeline.share")


def commit(pipeline):
    pipeline.run("git", "add", "--all")
    name = ("-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false")
    pipeline.run("git", *name, "commit", "--quiet", "-m", "all")


def clone_of(pipeline, folder):
    subprocess.run(["git", "clone", "--quiet", pipeline.folder, folder], check=True)
    return Pipeline(folder)


@pytest.fixture(scope="module")
def history(tmp_path_factory):
    """A checkout that has run with options.a = 1, then with 9, and is committed."""
    pipeline = Pipeline(tmp_path_factory.mktemp("sharing") / "first")
    pipeline.write()
    pipeline.run("dvc", "repro", "--quiet")
    pipeline.earlier = pipeline.outputs()
    pipeline.set(options__a=9)
    pipeline.snakemake()
    pipeline.executed()
    commit(pipeline)
    return pipeline


@pytest.fixture(scope="module")
def s3(tmp_path_factory):
    """The address of an S3 server on this machine with a bucket `semivid`; it ends with these tests."""
    server = pytest.importorskip("moto.server", reason="moto is absent: pip install -r requirements-test.txt")
    pytest.importorskip("dvc_s3", reason="dvc-s3 is absent: pip install -r requirements-test.txt")
    import boto3

    none = tmp_path_factory.mktemp("aws") / "config"
    none.touch()
    settings = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1",
                "AWS_EC2_METADATA_DISABLED": "true", "AWS_CONFIG_FILE": str(none),
                "AWS_SHARED_CREDENTIALS_FILE": str(none), "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        for name, value in settings.items():
            patch.setenv(name, value)
        served = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        served.start()
        address = "http://{}:{}".format(*served.get_host_and_port())
        boto3.client("s3", endpoint_url=address).create_bucket(Bucket="semivid")
        yield address
        served.stop()


@pytest.fixture(scope="module")
def pushed(request, history, tmp_path_factory):
    """A checkout with a remote, which stands in git, that holds all it has ever made."""
    folder = tmp_path_factory.mktemp(request.param)
    pipeline = history.copy(folder / "origin")
    if request.param == "folder":
        pipeline.run("dvc", "remote", "add", "--default", "team", str(folder / "remote"))
    else:
        address = request.getfixturevalue("s3")
        pipeline.run("dvc", "remote", "add", "--default", "team", "s3://semivid/cache")
        pipeline.run("dvc", "remote", "modify", "team", "endpointurl", address)
    commit(pipeline)
    pipeline.run("dvc", "push", "--quiet")  # as one does most of the time; the next sends the rest
    pipeline.run(*SHARE, "push")
    return pipeline


@pytest.mark.parametrize(
    ("pushed", "command"),
    [
        ("folder", ("dvc", "pull", "--quiet")),
        ("folder", ("dvc", "pull", "--quiet", "--run-cache")),
        ("folder", (*SHARE, "pull")),
        ("s3", ("dvc", "pull", "--quiet")),
        ("s3", (*SHARE, "pull")),
    ],
    indirect=["pushed"],
    ids=["folder", "folder, run cache", "folder, every run", "s3", "s3, every run"],
)
def test_a_fresh_clone_has_nothing_to_do_after_a_pull(pushed, history, command, tmp_path):
    clone = clone_of(pushed, tmp_path / "clone")
    assert clone.stale() == ALL
    clone.run(*command)
    assert clone.clean()
    assert clone.planned() == []
    assert clone.outputs() == history.outputs()

    if command[:3] == SHARE:  # what was made before the last change came along
        clone.set()
        clone.run("dvc", "repro", "--quiet")
        assert clone.executed() == []
        assert clone.outputs() == history.earlier
        assert clone.clean()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [((), "usage"), (("pull",), "no remote"), (("push", "other"), "'other'"), (("send",), "usage")],
    ids=["nothing", "no remote", "unknown remote", "unknown word"],
)
def test_what_cannot_be_shared_is_one_line(history, arguments, said):
    process = history.start(*SHARE, *arguments)
    output = process.communicate()[0]
    assert process.returncode == 2
    assert said in output and output.count("\n") == 1 and output.startswith("error: ")


def test_two_checkouts_with_one_cache_folder_share_all_at_once(history, tmp_path):
    """For users of one machine or one network disk; no push, no pull."""
    first = history.copy(tmp_path / "first")
    (first.folder / ".dvc/cache").rename(tmp_path / "cache")
    first.run("dvc", "cache", "dir", str(tmp_path / "cache"))
    commit(first)
    second = clone_of(first, tmp_path / "second")
    second.set()
    second.snakemake()
    assert second.executed() == []
    assert second.outputs() == history.earlier
    assert second.clean()


# ---- one copy of each artifact


def test_an_output_and_its_cache_file_are_one_file(history):
    """Also in folders: with `reflink` as the first choice DVC takes the copies there for reflinks, and keeps both."""
    cache = history.folder / ".dvc/cache/files/md5"
    probe = history.folder / ".dvc/tmp/probe"
    try:
        os.link(history.folder / "raw.txt", probe)
    except OSError as error:
        pytest.skip(f"this file system makes no hard links: {error}")
    probe.unlink()
    cached = {p.stat().st_ino for p in cache.rglob("*") if p.is_file()}
    shared = {n for n in history.outputs() if (history.folder / n).stat().st_ino in cached}
    assert shared == {n for n in history.outputs() if not n.startswith("results/")}, "git keeps results/, not DVC"
    assert not [n for n in shared if (history.folder / n).stat().st_mode & 0o222], "a cache file that can be written"


def test_a_cache_on_another_disk_is_linked_to(tmp_path):
    """As docs/sharing.md says; without the link type DVC copies the files of folders."""
    disk = "/dev/shm"
    if not os.access(disk, os.W_OK) or os.stat(disk).st_dev == tmp_path.stat().st_dev:
        pytest.skip(f"no second file system to write to: {disk} is absent or the same as that of {tmp_path}")
    with tempfile.TemporaryDirectory(dir=disk) as cache:
        pipeline = Pipeline(tmp_path / "pipeline")
        pipeline.write()
        pipeline.run("dvc", "cache", "dir", "--local", cache)
        pipeline.run("dvc", "config", "--local", "cache.type", "symlink")
        pipeline.run("dvc", "repro", "--quiet", "train@a")
        for name in ("data/prepared/part.txt", "models/a.txt"):
            assert str((pipeline.folder / name).resolve()).startswith(cache), name
        assert not {"prepare", "train@a"} & set(pipeline.stale())


# ---- a page about the last runs


def test_snakemake_reports_on_its_runs_in_one_file(history, tmp_path):
    pipeline = history.copy(tmp_path / "copy")
    pipeline.snakemake("--report", ".work/report.html")
    page = (pipeline.folder / ".work/report.html").read_text()
    for rule in ("train_a", "score_a", "table"):  # Snakemake ran these
        assert f'"{rule}"' in page
    assert not re.search(r"""<(script|link|img)[^>]+(src|href)=["']?(https?:)?//""", page), "needs the network"
    assert pipeline.clean()
    assert ".work" not in pipeline.run("git", "status", "--porcelain")
