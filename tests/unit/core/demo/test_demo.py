import hashlib
import re
import shutil
from collections import defaultdict
from pathlib import Path

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpmpp_core.config import DemoConfig, load_config
from dpmpp_core.data.annotations import is_generated, pack_mask, unpack_mask
from dpmpp_core.demo import DemoSummary, generate
from dpmpp_core.demo.cameras import make_camera
from dpmpp_core.demo.canvas import Layer
from dpmpp_core.demo.identity import GROUP, caption, identity, member
from dpmpp_core.demo.occluders import COMMON, TEST_KINDS, TRAINING_KINDS, hidden_part
from dpmpp_core.demo.plan import GALLERY, HOLISTIC, QUERY, TRAIN, plan_shots
from dpmpp_core.demo.render import render
from dpmpp_core.errors import ConfigError, DataError

SMALL = DemoConfig(
    train_identities=4,
    test_identities=6,
    cameras=3,
    train_images=5,
    gallery_images=3,
    query_images=3,
    seed=5,
)
NAME = re.compile(r"(\d{4})_c(\d+)s(\d+)_(\d{6})_(\d{2})\.jpg")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo") / "set"
    calls = []
    summary = generate(out, SMALL, lambda done, total: calls.append((done, total)))
    return out, summary, calls


@pytest.fixture(scope="module")
def rows(made):
    return pq.read_table(made[0] / "annotations.parquet").to_pylist()


def digest(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_counts_names_and_sizes_are_those_of_the_layout(made):
    out, summary, calls = made
    expected = {TRAIN: 20, GALLERY: 18, QUERY: 18, HOLISTIC: 18}
    assert isinstance(summary, DemoSummary)
    assert dict(summary.images) == expected
    assert (summary.identities, summary.seconds > 0) == (10, True)
    assert calls == sorted(calls)
    assert calls[-1] == (74, 74)
    assert {p.name for p in out.iterdir()} == {*expected, "annotations.parquet"}
    assert [p.name for p in out.parent.iterdir()] == ["set"]  # no temporary folder is left
    names = []
    for folder, count in expected.items():
        files = list((out / folder).iterdir())
        assert len(files) == count
        names += [f.name for f in files]
        assert all(NAME.fullmatch(f.name) for f in files)
        assert all(cv2.imread(str(f)).shape == (256, 128, 3) for f in files)
    assert len(set(names)) == len(names)


def test_the_same_config_gives_the_same_bytes_and_another_seed_other_people(made, tmp_path):
    tiny = DemoConfig(
        train_identities=2, test_identities=2, cameras=2, train_images=2, gallery_images=1,
        query_images=1, seed=9,
    )  # fmt: skip
    for name in "ab":
        generate(tmp_path / name, tiny)
    assert digest(tmp_path / "a") == digest(tmp_path / "b")
    generate(tmp_path / "c", tiny.model_copy(update={"seed": 10}))
    assert not set(digest(tmp_path / "a").values()) & set(digest(tmp_path / "c").values())
    assert all(identity(9, pid) != identity(10, pid) for pid in range(20))


def test_annotations_agree_with_names_and_identities_are_disjoint(made, rows):
    out, _, _ = made
    pids = defaultdict(set)
    for row in rows:
        assert (out / row["path"]).is_file()
        folder, name = row["path"].split("/")
        parts = NAME.fullmatch(name)
        assert folder == row["split"]
        assert (int(parts[1]), int(parts[2])) == (row["pid"], row["camid"])
        assert row["caption"] == caption(identity(SMALL.seed, row["pid"]))
        pids[folder].add(row["pid"])
    assert len(rows) == 74
    assert pids[TRAIN] == {1, 2, 3, 4}
    assert pids[GALLERY] == pids[QUERY] == pids[HOLISTIC] == {5, 6, 7, 8, 9, 10}


def test_a_drawn_folder_is_recognised_unless_other_pictures_were_added(made, rows, tmp_path):
    paths = [row["path"] for row in rows]
    assert is_generated(str(made[0]), paths)
    assert not is_generated(str(made[0]), [*paths, "query/0005_c1s1_000001_99.jpg"])
    assert not is_generated(str(tmp_path), [])  # no table
    (tmp_path / "annotations.parquet").write_bytes(b"no table")
    assert not is_generated(str(tmp_path), [])
    table = pq.read_table(made[0] / "annotations.parquet").replace_schema_metadata(None)
    pq.write_table(table, tmp_path / "annotations.parquet")  # as somebody else writes one
    assert not is_generated(str(tmp_path), paths)


def test_masks_fit_the_visible_share_and_queries_hide_a_tenth_to_six_tenths(rows):
    for row in rows:
        body, visible = unpack_mask(row["body_mask"]), unpack_mask(row["person_mask"])
        assert not (visible & ~body).any()
        assert row["visible_share"] == pytest.approx(visible.sum() / body.sum())
        assert 0.12 < body.mean() < 0.75  # a person, neither a speck nor the whole picture
        if row["split"] == QUERY:
            assert 0.4 <= row["visible_share"] <= 0.9
        if row["split"] in (GALLERY, HOLISTIC):
            assert row["visible_share"] == 1.0
        if row["split"] == TRAIN:
            assert row["visible_share"] >= 0.75
        hidden = row["visible_share"] < 1
        assert hidden == (row["occluder"] != "none") == (row["hidden"] != "none")
        assert row["hidden"] in {"none", "top", "bottom", "left", "right", "mixed"}


def test_the_mask_lies_on_the_person(made, rows):
    out, _, _ = made
    differences = []
    for row in rows:
        image = cv2.imread(str(out / row["path"])).astype(float)
        mask = unpack_mask(row["person_mask"])
        assert image[mask].std() > 3
        differences.append(np.abs(image[mask].mean(0) - image[~mask].mean(0)).sum())
    assert np.median(differences) > 30


@settings(max_examples=40, deadline=None)
@given(
    cameras=st.integers(2, 12),
    gallery=st.integers(1, 8),
    queries=st.integers(1, 5),
    seed=st.integers(0, 1000),
)
def test_every_query_has_a_positive_from_another_camera(cameras, gallery, queries, seed):
    config = DemoConfig(
        train_identities=2, test_identities=5, cameras=cameras, gallery_images=gallery,
        query_images=queries, seed=seed,
    )  # fmt: skip
    shots = plan_shots(config)
    assert len({(s.folder, s.name) for s in shots}) == len(shots)
    assert all(1 <= s.camid <= cameras for s in shots)
    seen = {(s.pid, s.camid) for s in shots if s.folder == GALLERY}
    occluded = sorted((s.pid, s.camid) for s in shots if s.folder == QUERY)
    whole = sorted((s.pid, s.camid) for s in shots if s.folder == HOLISTIC)
    assert occluded == whole
    for pid, camid in occluded:
        assert any(p == pid and c != camid for p, c in seen)


def test_training_identities_are_seen_by_several_cameras():
    cameras = defaultdict(set)
    for shot in plan_shots(DemoConfig(train_images=3)):
        if shot.folder == TRAIN:
            cameras[shot.pid].add(shot.camid)
    assert all(len(seen) == 3 for seen in cameras.values())


def test_look_alikes_share_colours_and_no_two_people_are_the_same():
    people = [identity(0, number) for number in range(60 * GROUP)]
    assert len(set(people)) == len(people)
    alike = [
        sum(p.upper.colour == q.upper.colour and p.lower.colour == q.lower.colour for q in group)
        for group in (people[i : i + GROUP] for i in range(0, len(people), GROUP))
        for p in group
    ]
    assert np.mean([n >= 3 for n in alike]) > 0.5
    assert len({caption(p) for p in people}) > 0.85 * len(people)


def test_a_used_folder_is_refused_and_left_alone(tmp_path):
    (tmp_path / "kept.txt").write_text("mine")
    with pytest.raises(DataError, match="not empty"):
        generate(tmp_path, SMALL)
    with pytest.raises(DataError, match="is a file"):
        generate(tmp_path / "kept.txt", SMALL)
    assert [p.name for p in tmp_path.iterdir()] == ["kept.txt"]


def test_an_interrupted_run_leaves_nothing(tmp_path):
    def stop(done: int, total: int) -> None:
        if done < total:
            raise KeyboardInterrupt

    out = tmp_path / "set"
    out.mkdir()
    with pytest.raises(KeyboardInterrupt):
        generate(out, SMALL, stop)
    assert list(tmp_path.iterdir()) == [out]
    assert not list(out.iterdir())
    shutil.rmtree(out)


# --- sets that tell methods apart ------------------------------------------------------------


PROOF = load_config("proof").data.demo
PIXELS = [73.347, 58.813, 57.137, 81.401, 44.12, 89.829, 77.681]  # means of seven pictures


def test_the_default_plan_and_drawings_are_what_they_always_were():
    """Figures in tests/bench/results and the weights of the package rest on these bytes."""
    few = {"train_identities": 40, "test_identities": 20}
    for recipe, expected in (("demo", "eca55c586e2c73ad"), ("pretrain", "8877910ff307d022")):
        config = load_config(recipe).data.demo.model_copy(update=few)
        plan = hashlib.sha256()
        for shot in plan_shots(config):
            fields = shot.folder, shot.name, shot.number, shot.orientation, shot.hidden, shot.kinds
            plan.update(repr(fields).encode())
        for pid in range(60):
            plan.update(caption(member(config, pid)).encode())
        assert plan.hexdigest()[:16] == expected
    assert COMMON == (
        "car", "van", "person", "barrier", "railing", "bush", "tree", "pole", "pillar", "bin",
        "boxes", "suitcase", "bench", "sign", "branches", "umbrella",
    )  # fmt: skip
    config = load_config("demo").data.demo
    shots = [s for s in plan_shots(config) if s.camid == 1 and s.folder in (QUERY, TRAIN)]
    camera = make_camera(config.seed, config.cameras, 1)
    hidden = [s for s in shots if s.hidden][:6]
    pixels = [render(shot, camera, config).image for shot in [*hidden, shots[0]]]
    assert np.stack(pixels).mean((1, 2, 3)) == pytest.approx(PIXELS, abs=0.02)


def test_training_and_test_of_an_unseen_set_share_no_occluder_and_no_camera():
    shots = plan_shots(PROOF)
    training = {kind for part in TRAINING_KINDS.values() for kind in part}
    test = {kind for part in TEST_KINDS.values() for kind in part}
    assert not training & test
    assert TRAINING_KINDS.keys() == TEST_KINDS.keys() == {"top", "bottom", "middle", "side"}
    cameras = defaultdict(set)
    by_pid = defaultdict(lambda: defaultdict(set))
    for shot in shots:
        cameras[shot.folder].add(shot.camid)
        by_pid[shot.pid][shot.folder].add(shot.camid)
        allowed = {TRAIN: training, QUERY: test}.get(shot.folder, set())
        assert set(shot.kinds) <= allowed and bool(shot.kinds) == (shot.hidden is not None)
    assert cameras[TRAIN] == set(range(1, 9)) and cameras[GALLERY] == set(range(9, 17))
    assert cameras[QUERY] == cameras[HOLISTIC] == cameras[GALLERY]
    for seen in by_pid.values():
        assert not seen[QUERY] & seen[GALLERY]
    assert sum(shot.folder == QUERY for shot in shots) == 480
    bands = defaultdict(int)
    for shot in shots:
        if shot.folder == QUERY:
            bands[shot.hidden, shot.kinds] += 1
    assert len(bands) == 20 and min(bands.values()) >= 15  # each share with each part


def test_twins_are_one_photograph_with_and_without_an_occluder(tmp_path):
    config = PROOF.model_copy(
        update={"train_identities": 2, "test_identities": 3, "cameras": 4, "gallery_images": 1}
    )
    shots = plan_shots(config)
    twins = {s.name: s for s in shots if s.folder == HOLISTIC}
    queries = [s for s in shots if s.folder == QUERY]
    assert twins.keys() == {s.name for s in queries} and len(queries) == 12
    camera = make_camera(config.seed, config.cameras, 3)
    for shot in [s for s in queries if s.camid == 3]:
        hidden, whole = (render(s, camera, config) for s in (shot, twins[shot.name]))
        assert hidden.occluder in shot.kinds and whole.occluder == "none"
        low, high = shot.hidden
        assert low <= 1 - hidden.visible.sum() / hidden.body.sum() <= high
        assert (hidden.body == whole.body).all() and (whole.visible == whole.body).all()
        moved = np.abs(hidden.image.astype(int) - whole.image).max(2) > 2
        # The camera's blur spreads an edge over a few pixels, no further.
        away = cv2.erode(hidden.visible.astype(np.uint8), np.ones((21, 21))).astype(bool)
        assert not moved[away].any()
        assert moved[hidden.body & ~hidden.visible].mean() > 0.8


def test_an_unseen_set_is_written_with_its_occluders(tmp_path):
    config = PROOF.model_copy(
        update={"train_identities": 8, "test_identities": 2, "cameras": 4, "train_images": 6}
    )
    generate(tmp_path / "set", config)
    rows = pq.read_table(tmp_path / "set" / "annotations.parquet").to_pylist()
    kinds = defaultdict(set)
    for row in rows:
        kinds[row["split"]].add(row["occluder"])
    training = {kind for part in TRAINING_KINDS.values() for kind in part}
    test = {kind for part in TEST_KINDS.values() for kind in part}
    assert kinds[QUERY] <= test and kinds[TRAIN] - {"none"} <= training and len(kinds[TRAIN]) > 1
    assert kinds[HOLISTIC] == kinds[GALLERY] == {"none"}
    assert len(rows) == 8 * 6 + 2 * (4 + 4 + 4)


def test_look_alikes_of_the_proof_set_differ_in_one_garment():
    def pieces(p):
        """What can be seen, apart from the jitter of a person's own cloth and size."""
        upper, lower = p.upper, p.lower
        return [
            (upper.kind, upper.colour, upper.pattern),
            (lower.kind, lower.colour),
            (p.bag, p.bag_colour),
            (p.hair, p.hair_colour),
            p.shoes,
            (p.female, p.boots, p.scarf, p.glasses, p.beard, p.skin, p.logo),
        ]

    for group in range(30):
        first, *others = (
            pieces(identity(3, GROUP * group + place, PROOF.look_alikes, PROOF.one_garment))
            for place in range(GROUP)
        )
        assert [sum(a != b for a, b in zip(first, o, strict=True)) for o in others] == [1, 1, 1]


def test_an_unseen_set_needs_cameras_for_both_sides():
    with pytest.raises(ConfigError, match=r"data\.demo: unseen needs 4 cameras"):
        load_config("proof", ["data.demo.cameras=3"])


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=20, deadline=None)
def test_masks_survive_packing(seed):
    mask = np.random.default_rng(seed).random((256, 128)) < 0.3
    assert (unpack_mask(pack_mask(mask)) == mask).all()


def test_hidden_part_names_the_side():
    body = np.zeros((256, 128), bool)
    body[40:240, 30:100] = True
    for part, cut in {
        "top": np.s_[:120], "bottom": np.s_[150:], "left": np.s_[:, :60], "right": np.s_[:, 70:],
        "mixed": np.s_[100:180, 50:80], "none": np.s_[:5],
    }.items():  # fmt: skip
        visible = body.copy()
        visible[cut] = False
        assert hidden_part(body, visible) == part


def test_layers_composite_by_coverage():
    layer = Layer.clear(2, 2)
    whole = (slice(0, 2), slice(0, 2))
    layer.paint(whole, np.full((2, 2), 0.5, np.float32), (1.0, 0.0, 0.0))
    layer.paint(whole, np.full((2, 2), 0.5, np.float32), (0.0, 1.0, 0.0))
    assert layer.alpha == pytest.approx(0.75)
    assert layer.over(np.ones((2, 2, 3), np.float32))[0, 0] == pytest.approx((0.5, 0.75, 0.25))
