"""Choosing frames with students: what they may read, resuming, and the stages around them."""

import json
import os
import signal
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import select_features
import select_labels
import select_names
import select_student
from semivid.data.store import FrameStore
from semivid.data.streams import LabelledSamples
from semivid.errors import UserError
from semivid.pipeline.params import Params, SelectStudent, pick
from semivid.pipeline.stage import Stage
from semivid.selection import student as module
from semivid.selection.entropy import entropy_score
from semivid.selection.features import read_features
from semivid.selection.lists import read_selection
from semivid.selection.random import random_order
from semivid.selection.student import DepthStudent, EntropyStudent, Student, grow
from semivid.selection.uncertainty import depth_error, highest
from semivid.training import loop
from semivid.training.runtime import Runtime, as_float
from small import small_params, with_no_comparison, write_prepared


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    """Nine training frames with masks and disparities, of 64 x 32 pixels."""
    return write_prepared(tmp_path_factory.mktemp("prepared"), train=(5, 4), val=(2,), disparity=True)


def options(**changes):
    return SelectStudent(**small_params()["select"]["us"] | changes)


class Watched(FrameStore):
    """A store that records which frames' images and labels are read."""

    def __init__(self, **arguments):
        super().__init__(**arguments)
        self.images, self.labels = [], []

    def image(self, frame):
        self.images.append(frame.frame)
        return super().image(frame)

    def label(self, frame):
        self.labels.append(frame.frame)
        return super().label(frame)


class Blind(FrameStore):
    """A store for those who may see no label."""

    def label(self, frame):
        raise AssertionError(f"the label of {frame.frame} was read")


class ToyStudent(Student):
    """One convolution that learns the mean colour; scores by what it has learnt."""

    built: list = []  # noqa: RUF012  (emptied by the fixture below)
    on_step = staticmethod(lambda step: None)

    @classmethod
    def build(cls, options, num_classes):
        network = nn.Conv2d(3, 4, 3, padding=1)
        cls.built.append(network.weight.detach().clone())
        return network

    @staticmethod
    def samples(store, options):
        return LabelledSamples(store, options.crop, flip=0.5)

    def loss(self, batch):
        return (self.network(as_float(batch["image"])).mean((1, 2, 3)) - 1).square().mean()

    def training_step(self, batch, step):
        losses = super().training_step(batch, step)
        type(self).on_step(step)
        return losses

    def score(self, frames, images, store):
        assert not self.training
        return self.network(images).std((1, 2, 3)).tolist()


@pytest.fixture
def toy(monkeypatch):
    monkeypatch.setattr(ToyStudent, "built", [])
    return ToyStudent


def by_score(scores, chosen, add):
    return highest(scores, [i for i in range(len(scores)) if i not in set(chosen)], add)


@pytest.fixture
def run(index, tmp_path):
    """grow() on the nine frames, from positions 3 and 1."""

    def grow_small(kind, choose=by_score, store=None, key="key", seed=42, **changes):
        return grow(
            kind,
            options(**{"iterations": [5, 6], **changes}),
            index.select("train"),
            [3, 1],
            choose,
            store=store or FrameStore(),
            num_classes=3,
            seed=seed,
            work=tmp_path / "work",
            key=key,
        )

    return grow_small


# ---- growing


def test_frames_are_added_step_by_step(run, toy):
    calls = []

    def choose(scores, chosen, add):
        calls.append((scores.copy(), list(chosen), add))
        return by_score(scores, chosen, add)

    chosen = run(toy, choose)
    assert chosen[:2] == [3, 1] and len(chosen) == 4 and len(set(chosen)) == 4
    assert [(c, add) for _, c, add in calls] == [([3, 1], 1), (chosen[:3], 1)]
    for (scores, before, _), added in zip(calls, chosen[2:], strict=True):
        assert np.isnan(scores[before]).all()
        rest = [i for i in range(9) if i not in before]
        assert np.isfinite(scores[rest]).all()
        assert added == rest[int(np.argmax(scores[rest]))]


def test_scores_belong_to_their_frames(run, toy, index):
    """Positions count in the order of the candidates, whatever batches the scoring makes."""

    class Positions(toy):
        def score(self, frames, images, store):
            assert len(images) == len(frames) <= module.SCORE_BATCH
            for frame, image in zip(frames, images, strict=True):
                picture = FrameStore().image(frame).transpose(2, 0, 1)
                assert torch.equal((image * 255).round().to(torch.uint8), torch.from_numpy(picture.copy()))
            return [float(index.select("train").index(f)) for f in frames]

    seen = []
    run(Positions, lambda scores, chosen, add: seen.append(scores) or by_score(scores, chosen, add))
    for scores in seen:
        assert all(np.isnan(s) or s == i for i, s in enumerate(scores))
    assert run(Positions, key="again")[2:] == [8, 7]


def test_each_student_begins_from_scratch_and_learns_from_the_chosen_alone(run, toy, index):
    store = Watched()
    names = [f.frame for f in index.select("train")]
    seen = []

    def choose(scores, chosen, add):
        # Everything read since the last choice: batches of chosen frames, then each of the rest once.
        rest = len(names) - len(chosen)
        training, scoring = store.images[:-rest], store.images[-rest:]
        assert set(training) == {names[i] for i in chosen}
        assert scoring == [n for i, n in enumerate(names) if i not in chosen]
        store.images.clear()
        seen.append(list(chosen))
        return by_score(scores, chosen, add)

    run(toy, choose, store)
    assert len(seen) == len(toy.built) == 2
    assert not torch.equal(*toy.built)
    first = list(toy.built)
    torch.manual_seed(99)
    run(toy, key="again")
    assert all(torch.equal(a, b) for a, b in zip(first, toy.built[2:], strict=True)), "weights depend on the past"


def test_one_step_needs_no_student(run, toy):
    assert run(toy, steps=[2], iterations=[]) == [3, 1]
    assert toy.built == []


def test_all_candidates_can_be_chosen(run, toy):
    assert sorted(run(toy, steps=[2, 9], iterations=[2])) == list(range(9))


def test_more_labels_than_candidates_are_refused_before_any_training(run, toy):
    with pytest.raises(UserError, match=r"10.*9 candidates"):
        run(toy, steps=[2, 4, 10])
    assert toy.built == []


# ---- labels


def test_the_depth_student_reads_no_label(run, index):
    folder = index.frames[0].image.parents[4] / "data/disparity"
    chosen = run(DepthStudent, store=Blind(disparity=folder))
    assert len(chosen) == 4


def test_the_depth_student_runs_without_labels_in_the_index(run, tmp_path):
    index = write_prepared(tmp_path, train=(5,), disparity=True, unlabelled=5)
    frames = index.select("train")
    assert len(frames) == 5 and not any(f.label for f in frames)
    store = FrameStore(disparity=tmp_path / "data/disparity")
    arguments = {"store": store, "num_classes": 0, "seed": 1, "work": tmp_path / "work", "key": "k"}
    assert len(grow(DepthStudent, options(), frames, [0, 4], by_score, **arguments)) == 4


def test_the_entropy_student_reads_the_labels_it_has_bought_alone(run, index):
    store = Watched()
    names = [f.frame for f in index.select("train")]
    bought = []

    def choose(scores, chosen, add):
        bought.append(len(chosen))
        assert set(store.labels) == {names[i] for i in chosen}
        return by_score(scores, chosen, add)

    # more steps than frames, so that each chosen frame comes up
    chosen = run(EntropyStudent, choose, store, iterations=[3, 3])
    assert bought == [2, 3]
    assert set(store.labels) == {names[i] for i in chosen[:3]}, (
        "the last frame's label was read before it was asked for"
    )


# ---- scores


def test_depth_scores_are_errors_against_the_teacher(index):
    teacher = FrameStore(disparity=index.frames[0].image.parents[4] / "data/disparity")
    frames = index.select("train")[:2]
    torch.manual_seed(0)
    student = DepthStudent(DepthStudent.build(options(), 0), options(), 1, Runtime(1, device="cpu")).eval()
    images = torch.rand(2, 3, 32, 64)
    with torch.no_grad():
        scores = student.score(frames, images, teacher)
        disparity = student.network(images)["disp"][0]
    wanted = [depth_error(disparity[i, 0].numpy(), teacher.disparity(f)) for i, f in enumerate(frames)]
    assert scores == pytest.approx(wanted) and scores[0] != scores[1]


def test_entropy_scores_are_mean_entropies():
    torch.manual_seed(0)
    student = EntropyStudent(EntropyStudent.build(options(), 3), options(), 1, Runtime(1, device="cpu")).eval()
    images = torch.rand(2, 3, 32, 64)
    with torch.no_grad():
        logits = student.network(images)
        assert logits.shape == (2, 3, 32, 64)
        assert student.score([], images, None) == pytest.approx(entropy_score(logits.softmax(1)).tolist())


def test_image_and_disparity_of_a_sample_share_a_window(index, monkeypatch):
    frame = index.select("train")[0]
    ramp = np.tile(np.arange(64, dtype=np.uint8), (32, 1))
    store = SimpleNamespace(image=lambda f: np.dstack([ramp] * 3), disparity=lambda f: ramp.astype(np.float32) / 255)
    samples = DepthStudent.samples(store, options(crop=(20, 16)))
    seen = set()
    for seed in range(12):
        sample = samples(frame, np.random.default_rng(seed))
        assert sample["image"].shape == (3, 16, 20) and sample["disparity"].shape == (1, 16, 20)
        assert sample["disparity"].dtype == np.float32
        assert np.array_equal(np.rint(sample["disparity"][0] * 255), sample["image"][0])
        seen.add(bool(sample["image"][0, 0, 0] > sample["image"][0, 0, -1]))
    assert seen == {True, False}, "never or always flipped"


# ---- resuming


@pytest.fixture
def plain(run, toy, tmp_path):
    chosen = run(toy)
    (tmp_path / "work/chosen.json").unlink()
    (tmp_path / "work").rmdir()
    toy.built.clear()
    return chosen


@pytest.mark.parametrize(("student", "step"), [(0, 0), (0, 3), (1, 0), (1, 4)])
def test_a_stopped_run_continues_where_it_was(run, toy, plain, monkeypatch, student, step):
    monkeypatch.setattr(
        toy,
        "on_step",
        lambda s: os.kill(os.getpid(), signal.SIGTERM) if (len(toy.built) - 1, s) == (student, step) else None,
    )
    with pytest.raises(SystemExit) as stop:
        run(toy)
    assert stop.value.code == 143
    done = []
    monkeypatch.setattr(toy, "on_step", done.append)
    assert run(toy) == plain
    finished_students = 0 if student == 0 else 5
    assert len(done) == 5 + 6 - finished_students - (step + 1), "steps were done again, or left out"


def test_a_run_that_fails_between_students_trains_none_twice(run, toy, plain):
    def choose(scores, chosen, add):
        if len(chosen) == 3:
            raise KeyboardInterrupt
        return by_score(scores, chosen, add)

    with pytest.raises(KeyboardInterrupt):
        run(toy, choose)
    assert len(toy.built) == 2
    assert run(toy) == plain
    assert len(toy.built) == 3


def test_another_key_never_resumes(run, toy, plain, tmp_path):
    def stop(scores, chosen, add):
        if len(chosen) == 3:
            raise KeyboardInterrupt
        return [8]  # what the key "key" would never choose here

    with pytest.raises(KeyboardInterrupt):
        run(toy, stop, key="other")
    assert json.loads((tmp_path / "work/chosen.json").read_text())["chosen"] == [3, 1, 8]
    assert plain[2] != 8, "the test shows nothing"
    assert run(toy) == plain


def test_what_is_left_behind_is_the_choice_alone(run, toy, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)
    run(toy)
    assert [p.name for p in (tmp_path / "work").iterdir()] == ["chosen.json"]


# ---- the stages


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A working folder with everything that select stages read; run(stage module, criterion, seed, ...) -> names."""
    index = write_prepared(tmp_path, train=(6, 5), val=(2,), disparity=True)
    names = [f.frame for f in index.select("train")]
    features = torch.randn(len(names), 3, 2, 4, generator=torch.Generator().manual_seed(0))
    save_file({"features": features}, tmp_path / "data/features.safetensors", metadata={"frames": json.dumps(names)})
    monkeypatch.chdir(tmp_path)

    def run(script, criterion, seed=7, **changes):
        params = with_no_comparison(small_params())
        params["select"][criterion].update(changes)
        params["table3"]["labels"] = params["compare"]["labels"] = [1]
        name = script.__name__
        keys = ("data.name", f"select.{criterion}", f"table3.list_seeds.{seed}")
        stage = Stage(
            f"{name}@{criterion}-{seed}",
            SimpleNamespace(criterion=criterion, seed=seed),
            pick(Params.model_validate(params), keys),
        )
        script.main(stage)
        assert not stage.work.exists(), "files to resume from are left"
        return [names.index(n) for n in read_selection(tmp_path / f"splits/selected/{criterion}-{seed}.txt", names)]

    run.names, run.features = names, features.numpy()
    return run


def test_random_is_the_permutation_of_the_runs_own_seed(place):
    assert place(select_names, "random", 7) == random_order(11, 7)
    assert place(select_names, "random", 25) == random_order(11, 25)


def test_selections_begin_as_published(place):
    """Score criteria begin with the first frames of the list seed's permutation, distance criteria with one."""
    order = random_order(11, 42)  # the list seed of seed 7
    us, entropy = place(select_student, "us"), place(select_labels, "entropy")
    ds, ds_us = place(select_features, "ds"), place(select_student, "ds_us", bias=0.0)
    assert us[:2] == entropy[:2] == order[:2]
    assert ds[0] == order[0]
    flat = place.features - place.features.mean((0, 2, 3), keepdims=True)
    flat = (flat / place.features.std((0, 2, 3), ddof=1, keepdims=True)).reshape(11, -1)
    farthest = int(np.linalg.norm(flat - flat[order[0]], axis=1).argmax())
    assert ds[1] == farthest != order[1]
    assert ds_us == ds, "without a bonus DS+US is DS"
    assert all(len(set(c)) == 4 for c in (us, entropy, ds, ds_us))
    assert place(select_student, "us", 25)[:2] == random_order(11, 43)[:2]


def test_a_large_bonus_makes_ds_us_follow_the_uncertainty(place):
    """With a bonus beyond all distances the frame added is the one with the largest error, as in US."""
    same_start = {"steps": [1, 2], "iterations": [2]}
    assert place(select_student, "ds_us", bias=1e9, **same_start) == place(select_student, "us", **same_start)


@pytest.mark.parametrize(
    ("script", "criterion"),
    [(select_student, "us"), (select_student, "ds_us"), (select_labels, "entropy")],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_a_selection_of_one_step_trains_nothing(place, script, criterion):
    assert len(place(script, criterion, steps=[3], iterations=[])) == 3


def test_a_selection_of_one_frame(place):
    assert place(select_features, "ds", labels=1) == random_order(11, 42)[:1]


def test_more_frames_than_there_are(place):
    with pytest.raises(UserError, match=r"select\.ds\.labels.* 12.* 11 candidates"):
        place(select_features, "ds", labels=12)
    for script, criterion in ((select_student, "us"), (select_student, "ds_us"), (select_labels, "entropy")):
        with pytest.raises(UserError, match=r"12.*11"):
            place(script, criterion, steps=[2, 12], iterations=[1])


def test_stages_without_any_mask(place, tmp_path):
    index = (tmp_path / "data/prepared/index.csv").read_text().splitlines()
    bare = [line.rpartition(",")[0] + "," if i else line for i, line in enumerate(index)]
    (tmp_path / "data/prepared/index.csv").write_text("\n".join(bare) + "\n")
    with pytest.raises(UserError, match=r"no training frame has a mask.*data\.masks"):
        place(select_names, "random")
    with pytest.raises(UserError, match=r"0 candidates|no training frame has a mask"):
        place(select_labels, "entropy")


def test_features_are_read_with_their_names(place, tmp_path):
    names, features = read_features(tmp_path / "data/features.safetensors")
    assert names == place.names and np.array_equal(features, place.features)
