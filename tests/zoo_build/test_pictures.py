"""The picture generator: repeatable, true to its captions, and really two distributions."""

from dataclasses import replace

import numpy as np
import pytest

from bico.data import embedded
from bico.data.drawing.strokes import SKELETONS
from bico.errors import ConfigError
from zoo_build.pictures import STYLES, Scene, describe, draw_pool, glyphs
from zoo_build.pictures.captions import WORDS

TASKS = list(embedded.TASKS.values())


@pytest.fixture
def plain_fonts(monkeypatch):
    """Both styles with matplotlib's fonts only: the extra `zoo` need not be installed to test."""
    for name, style in list(STYLES.items()):
        kept = tuple(font for font in style.fonts if font.startswith("matplotlib/"))
        monkeypatch.setitem(STYLES, name, replace(style, fonts=kept))


@pytest.mark.parametrize("name", ["a", "b", "ab"])
def test_a_seed_determines_the_pool(plain_fonts, name):
    once, again, other = (draw_pool(name, 40, seed) for seed in (3, 3, 4))
    assert np.array_equal(once.images, again.images)
    assert once.captions == again.captions
    assert not np.array_equal(once.images, other.images)
    longer = draw_pool(name, 60, 3)
    assert np.array_equal(once.images, longer.images[:40])


def test_captions_alone_are_those_of_the_pictures(plain_fonts):
    assert draw_pool("a", 50, 1).captions == draw_pool("a", 50, 1, pictures=False).captions


def test_distributions_share_no_font_and_few_words():
    a, b = STYLES["a"], STYLES["b"]
    assert not set(a.fonts) & set(b.fonts)
    assert {font.split("/")[0] for font in a.fonts} & {font.split("/")[0] for font in b.fonts} == {"matplotlib"}
    assert set(a.backgrounds) & set(b.backgrounds) == {"plain"}
    assert not set(a.palette.values()) & set(b.palette.values())
    texts = [{c.text for cs in draw_pool(n, 3000, 0, pictures=False).captions for c in cs} for n in "ab"]
    assert len(texts[0] & texts[1]) < 0.25 * min(map(len, texts))


def test_distributions_differ_measurably(plain_fonts):
    saturation, lightness = {}, {}
    for name in "ab":
        images = draw_pool(name, 400, 5).images.astype(float)
        saturation[name] = (images.max(axis=3) - images.min(axis=3)).mean(axis=(1, 2))
        lightness[name] = images[:, 0].mean(axis=(1, 2))  # the top row is mostly ground
    assert saturation["a"].std() > 1.3 * saturation["b"].std()
    assert lightness["b"].mean() > lightness["a"].mean() + 15


@pytest.mark.parametrize("name", ["a", "b"])
def test_captions_say_what_is_drawn(name):
    pool = draw_pool(name, 1500, 2, pictures=False)
    for scene, captions in zip(pool.scenes, pool.captions, strict=True):
        for caption in captions:
            said = caption.text.replace("lower-case letter", "small")
            assert scene.subject in said or WORDS.get(scene.subject, "-") in said
            assert {scene.kind, scene.subject} <= set(caption.meaning)
            for fact in caption.meaning[2:]:
                assert fact in (scene.colour, scene.ground, scene.background, scene.effect, scene.detail)
                assert fact in caption.text


def test_one_meaning_however_it_is_said():
    scene = Scene("digit", "7", "red", "plain", "white")
    rng = np.random.default_rng(0)
    said = {describe(scene, "a", rng) for _ in range(300)}
    plain = {caption.text for caption in said if caption.meaning == ("digit", "7")}
    assert {"7", "the digit seven", 'a photo of the number: "7".'} <= plain
    assert {caption.meaning for caption in said if "red" in caption.text} >= {("digit", "7", "red")}


def test_every_kind_of_scene_shows_something(plain_fonts):
    for kind in STYLES["a"].kinds:
        for name in "ab":
            images = draw_pool(name, 12, 8, kind=kind).images
            assert (images.reshape(12, -1).std(axis=1) > 3).all()


def test_every_character_has_a_skeleton():
    assert sorted(SKELETONS) == sorted("0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz")


def test_unknown_distribution_is_refused():
    with pytest.raises(ConfigError, match="no distribution 'c'"):
        draw_pool("c", 1, 0)


def test_missing_fonts_name_the_cure():
    with pytest.raises(ConfigError, match=r"pip install bico\[zoo\]"):
        glyphs.locate("font_that_nobody_has/Any.ttf")
    with pytest.raises(ConfigError, match="Nothing.ttf"):
        glyphs.locate("matplotlib/Nothing.ttf")


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
class TestEmbedded:
    def test_a_seed_determines_the_task_without_any_font(self, task, monkeypatch):
        monkeypatch.setattr(glyphs, "locate", None)
        images, labels = task.render("train", 60, seed=1)
        again, same_labels = task.render("train", 60, seed=1)
        assert np.array_equal(images, again) and np.array_equal(labels, same_labels)
        shorter, _ = task.render("train", 25, seed=1)
        assert np.array_equal(images[:25], shorter)
        assert not np.array_equal(images, task.render("train", 60, seed=2)[0])
        assert images.dtype == np.uint8 and images.shape == (60, 32, 32, 3)

    def test_labels_are_balanced(self, task):
        classes = len(task.class_names)
        _, labels = task.render("test", 10 * classes + 3)
        counts = np.bincount(labels, minlength=classes)
        assert counts.min() == 10 and counts.max() == 11
        assert len(np.unique(labels[: 2 * classes].reshape(2, classes), axis=0)) == 2  # no fixed order

    def test_splits_share_no_picture(self, task):
        train, test = ({image.tobytes() for image in task.render(split, 150)[0]} for split in ("train", "test"))
        assert len(train) == len(test) == 150
        assert not train & test

    def test_classes_look_different(self, task):
        """Nearest mean silhouette of one split beats chance by far on the other: labels belong to their pictures."""
        edges = {}
        for split in ("train", "test"):
            images, labels = task.render(split, 300)
            grey = images.astype(float).mean(axis=3)
            contrast = np.abs(grey - np.median(grey, axis=(1, 2), keepdims=True))
            blurred = sum(np.roll(contrast, (dx, dy), (1, 2)) for dx in range(-2, 3) for dy in range(-2, 3))
            flat = blurred.reshape(300, -1)
            edges[split] = flat / np.linalg.norm(flat, axis=1, keepdims=True), labels
        (x, y), (u, v) = edges["train"], edges["test"]
        means = np.stack([x[y == label].mean(axis=0) for label in range(10)])
        assert ((u @ (means / np.linalg.norm(means, axis=1, keepdims=True)).T).argmax(axis=1) == v).mean() > 0.2

    def test_an_unknown_split_is_refused(self, task):
        with pytest.raises(ValueError, match="'train' or 'test'"):
            task.render("validation", 1)
