"""Any text survives the way through the shell, make and Hydra, and a word that Hydra cannot read is explained."""

import os
import shlex

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf
from stage import load_config
from tree import TreeStage
from words import make_word, override, parse_words, read_words

from masc.runtime.errors import InputError

TEXTS = [
    *("a b", "it's", 'a"b', "[a,b]", "{a: b}", "a=b", "$HOME", "`date`", "a,b", "é 漢", "#", "%", "~a", "*?!", "(a)"),
    *("a\\", 'a\\"', "\\\\", "${oc.env:HOME}", "\\${a}", "${", "007", "1e5", "null", "true", "", " a ", "a\tb", "a\nb"),
]


def held(*overrides: str) -> dict:
    """What a config holds after these overrides."""
    config = OmegaConf.create({})
    for parsed in map(OverridesParser.create().parse_override, overrides):
        assert not parsed.is_sweep_override()
        OmegaConf.update(config, parsed.key_or_group, parsed.value())
    return OmegaConf.to_container(config, resolve=True)


@pytest.mark.parametrize("text", TEXTS)
def test_a_config_holds_the_very_text_of_an_override(text):
    assert held(override("a.b", text)) == {"a": {"b": text}}


def test_lists_numbers_and_nothing_are_held_as_they_are():
    values = {"texts": TEXTS, "mixed": [1, 2.5, True, None], "none": None}
    assert held(*(override(key, value) for key, value in values.items())) == values


def test_plain_text_needs_no_quotes():
    assert override("data.path", "/data/ILSVRC-2012") == "data.path=/data/ILSVRC-2012"
    assert override("seeds", [0, 1]) == "seeds=[0,1]"


def test_texts_stand_before_two_dashes_and_overrides_behind_them():
    words = ["run=a=b $c", "names[]=x y,null", "--", "steps=10", "heads=[a,b]"]
    assert held(*read_words(words)) == {"run": "a=b $c", "names": ["x y", "null"], "steps": 10, "heads": ["a", "b"]}
    assert read_words(["a=1", "b=[2]"]) == ["a=1", "b=[2]"]


def test_a_name_that_is_no_text_is_refused():
    with pytest.raises(InputError, match=r"expected text in utf-8, found 'run=\\udcff'; rename"):
        read_words([os.fsdecode(b"run=\xff"), "--"])


@pytest.mark.parametrize("text", [text for text in TEXTS if text and "\n" not in text])
def test_what_is_printed_for_a_shell_gives_the_text_back(text):
    assert shlex.split(make_word("RUN", text)) == [f"RUN={text}"]


@pytest.mark.parametrize(
    ("words", "found", "text"),
    [
        (["data.path=/a=b"], "cannot read data.path=/a=b", "/a=b"),
        (["data.path=/é"], "cannot read data.path=/é", "/é"),
        (["data.path=/a,b"], "cannot read data.path=/a,b", "/a,b"),
        (["data.path=/a", "b"], "expected KEY=VALUE, found 'b' after data.path=/a", "/a b"),
    ],
)
def test_a_word_that_hydra_cannot_read_is_named_with_the_form_that_it_can(words, found, text):
    with pytest.raises(InputError) as caught:
        parse_words(["a=1", *words])
    problem, _, form = str(caught.value).partition(". Type ")
    assert problem.startswith(found)
    (argument,) = shlex.split(form)  # by the shell that starts make
    (again,) = shlex.split(argument.removeprefix("ARGS="))  # by the shell that make starts
    assert held(again) == {"data": {"path": text}}


def test_a_value_of_another_type_is_told_in_plain_words():
    with pytest.raises(InputError, match=r": head.num_clusters must be a whole number, found 'abc'$"):
        load_config("tree", TreeStage, [override("head.num_clusters", "abc")])
