"""What the Makefile hands to the scripts, for the worst names that its variables can hold."""

import json
import os
import shlex
import subprocess
import sys

import pytest
from test_words import held
from words import read_words

WORST = """a  b'c"d[e]{f:g}=h$i${oc.env:HOME}`j`$(k)\\,é漢#%~*?!(l)&|;<m>@n"""


@pytest.fixture(scope="module")
def make(root, tmp_path_factory):
    """Runs make with a Python that prints the words of each command; returns the words of the last, and the output."""
    stub = tmp_path_factory.mktemp("a b") / "it's python"
    stub.write_text(f"#!{sys.executable}\nimport json, sys\nprint(json.dumps(sys.argv[1:]))\n")
    stub.chmod(0o755)

    outer = {name: text for name, text in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}  # make test

    def run(*words, **environment):
        command = ["make", "--silent", *words, f"PYTHON={shlex.quote(str(stub))}"]
        done = subprocess.run(command, cwd=root, capture_output=True, text=True, env=outer | environment)
        printed = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]
        return printed[-1] if printed else [], done.stdout + done.stderr

    return run


@pytest.mark.parametrize(
    ("words", "key"),
    [
        ("train RUN_DIR", "run_dir"),
        ("train MODEL", "model"),
        ("train HEAD", "head"),
        ("train RECIPE", "recipe"),
        ("train OPTIM", "optim"),
        ("train TREE", "tree"),
        ("train TOKENIZER", "tokenizer_name"),
        ("train SEED", "seed"),
        ("train INIT", "init"),
        ("train FROM", "from_checkpoint"),
        ("train K", "head.num_clusters"),
        ("race RACE", "race"),
        ("codes DATA", "data"),
        ("codes DATA_PATH", "data.path"),
        ("coco-captions DATA_PATH", "coco"),
        ("sample RUN", "run"),
        ("sample RELEASE", "release"),
        ("sample RUN=r PRESET", "sampling"),
        ("sample RUN=r SAMPLES", "name"),
        ("export RUN", "run"),
        ("eval-fid SAMPLES", "samples"),
        ("eval-coco SAMPLES", "samples"),
        ("doctor RESULTS", "results"),
        ("report RUNS", "runs"),
        ("dashboard RUNS", "runs"),
        ("text-features CAPTIONS", "captions"),
    ],
)
def test_a_script_is_given_the_very_text_of_a_variable(make, words, key):
    target, *given, variable = words.split()
    (_, *arguments), _ = make(target, *given, f"{variable}={WORST}")
    config = held(*(word for word in read_words(arguments) if not word.startswith("+")))
    for part in key.split("."):
        config = config[part]
    assert config == WORST


@pytest.mark.parametrize(
    ("words", "key"),
    [
        ("weights NAME", "names"),
        ("reproduce SEEDS", "seeds"),
        ("race SEEDS", "seeds"),
        ("eval-tokenizer K", "num_clusters"),
    ],
)
def test_a_list_is_split_at_its_commas_only(make, words, key):
    target, variable = words.split()
    (_, *arguments), _ = make(target, f"{variable}={WORST}")
    assert held(*read_words(arguments))[key] == WORST.split(",")


def test_a_smoke_run_is_on_the_embedded_data_whatever_the_size(make):
    for given, data in (
        (["RECIPE=smoke"], "twemoji"),
        ([], "imagenet256"),
        (["RECIPE=smoke", "DATA=lsun256"], "lsun256"),
    ):
        words, _ = make("train", "MODEL=llamagen-xl", *given)
        assert f"data={data}" in words


def test_a_folder_is_not_taken_for_the_default_because_of_a_word_in_its_name(make):
    words, _ = make("eval-fid", "SAMPLES=a default set")
    assert "samples=a default set" in words


def test_a_race_has_the_seeds_of_its_config_unless_some_are_given(make):
    words, _ = make("race", "RACE=smoke")
    assert words == ["scripts/race.py", "race=smoke", "--"]


def test_an_experiment_whose_name_ends_in_smoke_is_the_smoke_test_of_the_other(make):
    words, _ = make("experiment", "NAME=table1-b-base-smoke", "GPUS=2")
    assert words[:3] == ["scripts/experiment.py", "experiment=table1-b-base", "smoke=true"] and "gpus=2" in words
    words, _ = make("experiment", "NAME=table1-b-base")
    assert "experiment=table1-b-base" in words and "smoke=true" not in words
    assert "say which" in make("experiment")[1]


def test_args_are_words_of_the_shell(make):
    words, _ = make("report", "ARGS=a=1 'b=\"c d\"' e=$HOME")
    assert words == ["scripts/report.py", "--", "a=1", 'b="c d"', f"e={os.environ['HOME']}"]


@pytest.mark.parametrize("word", ["STEPS=10", "head=flat", "WORDS=x"])
def test_a_variable_that_does_not_exist_is_refused(make, word):
    words, said = make("train", word)
    name = word.partition("=")[0]
    assert words == [] and f"there is no variable {name}; the variables are MODEL HEAD " in said


def test_a_variable_in_makeflags_is_refused_with_its_place(make):
    words, said = make("train", MAKEFLAGS=" -- V=1")
    assert (
        words == [] and "there is no variable V; " in said and "V stands on the command line, or in MAKEFLAGS" in said
    )


def test_the_variables_of_an_outer_make_are_passed_over(make):
    words, said = make("train", MAKEFLAGS=" -- CC=gcc SEED=3", MAKELEVEL="1")
    assert "seed=3" in words and "CC" not in said


@pytest.mark.parametrize(("given", "node"), [([], "0"), (["NODES=2"], "1"), (["NODES=2", "MACHINE_RANK=0"], "0")])
def test_slurm_numbers_the_machines_of_one_launch_only(make, given, node):
    words, _ = make("train", "GPUS=2", *given, SLURM_NODEID="1")
    assert words[:4] == ["scripts/launch.py", "2", "2" if given else "1", node]


@pytest.mark.parametrize(
    ("words", "unread"),
    [
        (["tree", "HEAD=flat"], "HEAD"),
        (["eval-lite", "RUN=r", "GPUS=8"], "GPUS"),
        (["reproduce", "DATA_PATH=d"], "DATA_PATH"),
        (["sample", "RELEASE=x", "RUN=r"], "RUN"),
        (["codebook", "DATA=twemoji64"], None),  # chooses the tokenizer
        (["train", "MODEL=m", "GPUS=1", "K=2", "RUN_DIR=r"], None),
        (["eval-fid", "RUN=r", "PROTOCOL=adm", "SAMPLES=s", "GPUS=2"], None),
    ],
)
def test_a_variable_that_a_command_does_not_read_is_told(make, words, unread):
    said = f"make {words[0]} does not read {unread}"
    given, output = make(*words)
    assert given and (said in output if unread else "does not read" not in output)


def test_a_signal_to_make_reaches_the_launcher_and_no_shell_between(root):
    """Make sends SIGTERM to what it has started. With quotes in ARGS it starts a shell."""
    prints = shlex.join([sys.executable, "-c", "import os; print(os.getppid())"])
    command = ["make", "--silent", "train", "GPUS=2", f"PYTHON={prints}", 'ARGS=a="b c"']
    with subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True) as process:
        assert process.communicate()[0] == f"{process.pid}\n"


def test_a_line_break_is_refused(make):
    assert "RUN holds a line break" in make("export", "RUN=a\nb")[1]


def test_a_choice_from_the_environment_is_taken_and_told(make):
    words, said = make("weights", NAME="$HOME")
    assert read_words(words[1:]) == ["names=[$HOME]"]
    assert "NAME=$HOME is taken from the environment" in said
