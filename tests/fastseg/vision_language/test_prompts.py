"""Sentences of classes and scenes."""

import numpy as np
import pytest

from fastseg.errors import ConfigError
from fastseg.vision_language.prompts import Prompts, classes_by_area, spoken


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("TrafficSign", "traffic sign"),
        ("traffic_sign", "traffic sign"),
        ("Cars", "cars"),
        ("road", "road"),
        ("LEDLamp", "led lamp"),
        ("rail track2", "rail track2"),
        ("Straße", "straße"),
        ("道路", "道路"),
    ],
)
def test_names_are_spoken_as_words(name, words):
    assert spoken(name) == words


def test_every_class_has_a_sentence():
    assert Prompts(of_class="a blurry {}.").classes(["Road", "SideWalk"]) == [
        "a blurry road.",
        "a blurry side walk.",
    ]


@pytest.mark.parametrize(
    ("classes", "conditions", "sentence"),
    [
        ((), (), "a photo of a street scene"),
        ((), ("fog",), "a photo of a street scene, fog"),
        (("Road",), (), "a photo of a street scene with road"),
        (("Road", "Sky"), ("", "night"), "a photo of a street scene, night, with road and sky"),
        (("a", "b", "c", "d"), (), "a photo of a street scene with a, b and c"),
    ],
)
def test_the_sentence_of_a_scene(classes, conditions, sentence):
    assert Prompts(most_classes=3).scene(classes, conditions) == sentence


def test_classes_are_ordered_by_area_and_ignored_pixels_do_not_count():
    label = np.array([[255, 255, 255, 2], [0, 2, 4, 4]], np.uint8)
    assert classes_by_area(label, 5) == [2, 4, 0]
    assert classes_by_area(np.full((2, 2), 255, np.uint8), 5) == []


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"of_class": "a photo"}, "'a photo'.*expected one {}"),
        ({"of_class": "{} and {}"}, "expected one {}"),
        ({"of_scene": " "}, "words in the second"),
        ({"most_classes": 0}, "at least 1, got 0"),
    ],
)
def test_forms_that_say_nothing_are_refused(fields, said):
    with pytest.raises(ConfigError, match=said):
        Prompts(**fields)
