"""The schema: types, ranges, neighbours, the guide's spellings, files that read back."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from conftest import LONG
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from bimact.config import (
    Config,
    is_text,
    keys,
    list_of_text,
    load_config,
    save_config,
    setting_names,
    setting_value,
    to_config,
)
from bimact.errors import UserError

CONFIGS = Path(__file__).parents[1] / "configs"


@pytest.mark.parametrize(
    "path", sorted(set(CONFIGS.glob("*.yaml")) - {CONFIGS / "sweep.yaml"}), ids=lambda path: path.name
)
def test_shipped_configs_are_valid(path: Path) -> None:
    assert isinstance(load_config(path), Config)


def test_overrides_win_and_take_the_guides_spellings() -> None:
    config = load_config(
        None,
        ["lr=5e-6", "encoder.freeze=false", "wandb_tags=clip,baseline,rtx5090", "encoder.pretrained=null"],
    )
    assert config.lr == 5e-6
    assert config.encoder.freeze is False
    assert config.wandb_tags == ["clip", "baseline", "rtx5090"]
    assert config.encoder.pretrained is None


def test_scientific_notation_without_a_point_is_a_number(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("lr: 1e-6\n")
    assert load_config(tmp_path / "c.yaml").lr == 1e-6


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ("learning_rat=1", "no setting named 'learning_rat'"),
        ("chunksize=1", "did you mean 'chunk_size'"),
        ("encoder.frezee=true", "did you mean 'encoder.freeze'"),
        ("batch_size=many", "setting 'batch_size'"),
        ("batch_size=0", "at least 1"),
        ("val_split=1", "less than 1"),
        ("lr=0", "more than 0"),
        ("action_loss=l3", "l1 or l2"),
        ("encoder.fuse=sum", "mean or concat_mlp or gated or tokens"),
        ("nheads=7", "multiple of nheads"),
        ("execute_steps=51", "cannot be more than chunk_size"),
        ("encoder.crop=0.5,0,0.6,1", "encoder.crop"),
        ("encoder.image_size=224", "encoder.image_size"),
        ("image_size=0,3", "'image_size' is not a setting: runs record it"),
        ("encoder.image_mean=0.5,0.5,0.5", "'encoder.image_mean' is not a setting"),
        ("cameras=[a", "cannot read the list"),
        ("cameras=[[a],b]", "cannot read the list"),
        ("encoder=conv", "set encoder.name"),
        ("encoder={name: conv}", "set encoder.name"),
        ("num_steps=", "is '', it has to be a whole number or null"),
        ("num_steps=~", "is '~', it has to be a whole number or null"),
        ("lr=null", "is 'null', it has to be a number"),
        ("lr=${seed}", "it has to be a number"),
        ("lr=[1", "it has to be a number"),
        ("batch_size=a: b", "it has to be a whole number"),
        ("mixed_precision=False", "is 'False', it has to be auto or no or bf16 or fp16"),
        ("action_loss=null", "is 'null', it has to be l1 or l2"),
        ("output_dir=", "is '', it has to be a path or null"),
        ("dataset_dir=caf\udce9", "not UTF-8"),
    ],
)
def test_faults_are_named(setting: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        load_config(None, [setting])


@pytest.mark.parametrize(
    ("recorded", "sentence"),
    [
        ({"image_size": [0, 3]}, "image_size is"),
        ({"encoder": {"image_mean": [0.5]}}, "encoder.image_mean is"),
        ({"encoder": {"image_mean": [0, 0, float("inf")]}}, "encoder.image_mean is"),
        ({"encoder": {"image_std": [1, 1, 0]}}, "more than 0"),
    ],
)
def test_faults_in_what_a_run_has_recorded_are_named(recorded: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        to_config(recorded)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="config file not found"):
        load_config(tmp_path / "absent.yaml")
    (tmp_path / "broken.yaml").write_text("a: [1")
    with pytest.raises(UserError, match=r"broken\.yaml, line 1: this cannot be read as YAML"):
        load_config(tmp_path / "broken.yaml")
    (tmp_path / "list.yaml").write_text("- 1\n")
    with pytest.raises(UserError, match="no `key: value` lines"):
        load_config(tmp_path / "list.yaml")


def test_saved_config_reads_back(tmp_path: Path) -> None:
    config = to_config({"lr": 3e-4, "encoder": {"name": "conv", "crop": [0, 0, 0.5, 1]}, "wandb_tags": ["a"]})
    save_config(config, tmp_path / "config.yaml")
    assert load_config(tmp_path / "config.yaml") == config
    loaded = OmegaConf.load(tmp_path / "config.yaml")
    assert loaded.encoder.name == "conv" and loaded.chunk_size == config.chunk_size


def test_every_setting_has_a_meaning() -> None:
    for entry in keys().values():
        assert entry.metadata["meaning"]
    assert "encoder.freeze" in setting_names() and "lr" in setting_names()


@pytest.mark.parametrize("spelling", ["no", "'no'", '"no"'])
def test_no_precision_in_all_spellings(spelling: str, tmp_path: Path) -> None:
    """YAML 1.1 reads a bare `no` as false."""
    (tmp_path / "config.yaml").write_text(f"mixed_precision: {spelling}\n")
    assert load_config(tmp_path / "config.yaml").mixed_precision == "no"
    assert load_config(None, ["mixed_precision=no"]).mixed_precision == "no"


def test_two_ways_of_acting_exclude_each_other() -> None:
    with pytest.raises(UserError, match=r"execute_steps \(5\) has no effect"):
        load_config(None, ["temporal_ensemble=true", "execute_steps=5"])


# Text ------------------------------------------------------------------------------------------------

# What YAML 1.1, YAML 1.2 or OmegaConf make something else of, and what a parser might stumble over.
TEXTS = (
    *("007", "2024_10_05", "2024-10-05", "1.10", "1e3", "1_0", "0x10", "0o7", "0b1", "0x_", "12:30:45", "0:14", "+1"),
    *(
        "yes",
        "no",
        "on",
        "off",
        "y",
        "True",
        "FALSE",
        "None",
        "nan",
        ".nan",
        ".inf",
        "-",
        "--x",
        "<<",
        "=",
        "=x",
        "a=b",
    ),
    *("012345670123", "é😀", "a\\b", "\\n", "it's", "a b", "~x", "a~", "a:b", "a#b", "$x", "$$", "100%"),
)
# What YAML needs quotes for.
SIGNS = (
    *(
        "",
        " ",
        " a ",
        "#",
        "a #b",
        "/data/cups #2",
        "a: b",
        "[x]",
        "{y}",
        "[",
        "]",
        "'",
        '"',
        "'q'",
        '"q"',
        "a,b",
        "!t",
    ),
    *("&a", "*a", "|", ">", "@x", "`x", "%x", "? a", "- a", "null", "Null", "~", "true", "false", "\t", "a\nb", "a\t"),
    *(
        "${now:%Y}",
        "${",
        "${x}",
        "\\${x}",
        "\\\\${",
        "a ${oc.env:HOME} \\b",
        "???",
        "\\???",
        "\ufeff",
        "\x85",
        "\u2028",
    ),
)
TEXT_SETTINGS = [name for name in setting_names() if is_text(name)]
LISTS = ("cameras", "state_keys", "action_keys", "episodes", "exclude_episodes", "wandb_tags")
FREE_TEXT = ("wandb_name", "wandb_project", "filter_key", "state_dims", "action_dims", "device", "encoder.name")
PATHS = ("dataset_dir", "output_dir", "cache_dir", "sample_weights", "encoder.pretrained")


# All settings of a type are read alike: one of each type is tried with all texts, the others with some.
THOROUGHLY = ("wandb_name", "dataset_dir", "encoder.pretrained", "encoder.name", "cameras")


def texts_for(name: str, texts: tuple[str, ...]) -> tuple[str, ...]:
    return texts if name in THOROUGHLY else texts[::6]


def read_yaml(folder: Path, text: str) -> Config:
    (folder / "c.yaml").write_text(text, encoding="utf-8")
    return load_config(folder / "c.yaml")


def in_quotes(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def test_all_settings_of_type_text_are_known_here() -> None:
    others = {"action_loss", "scale_lr", "lr_schedule", "mixed_precision", "wandb_checkpoints", "color_order"}
    others |= {"encoder.fuse", "encoder.model_name", "action_mode", "relative_dims", "keep_states", "keep_checkpoints"}
    others |= {"eval_task", "patience_metric", "task_conditioning", "task_text_model", "task_text_pretrained"}
    others |= {"state_normalization", "action_normalization"}
    assert {*LISTS, *FREE_TEXT, *PATHS, *others} == set(TEXT_SETTINGS)


@pytest.mark.parametrize("name", [*FREE_TEXT, *PATHS])
def test_text_of_a_command_line_is_taken_as_it_is(name: str) -> None:
    for text in texts_for(name, (*TEXTS, *SIGNS)):
        as_truth_value = name == "encoder.pretrained" and text in ("true", "false", "True", "FALSE")
        is_null = text == "null" and name not in ("device", "encoder.name")
        if as_truth_value or is_null or (name in PATHS and text in ("", "~")):
            continue  # below
        assert setting_value(load_config(None, [f"{name}={text}"]), name) == text


@pytest.mark.parametrize("name", [*FREE_TEXT, *PATHS])
def test_text_in_yaml_is_taken_as_it_is_written(name: str, tmp_path: Path) -> None:
    key = "encoder:\n  name" if name == "encoder.name" else name
    for text in texts_for(name, TEXTS):
        if name == "encoder.pretrained" and text in ("True", "FALSE"):
            continue
        if text != "-":
            assert setting_value(read_yaml(tmp_path, f"{key}: {text}\n"), name) == text
        assert setting_value(read_yaml(tmp_path, f"{key}: {in_quotes(text)}  # why\n"), name) == text


@pytest.mark.slow
@pytest.mark.parametrize("name", LISTS)
def test_lists_of_text(name: str, tmp_path: Path) -> None:
    for text in texts_for(name, TEXTS):
        assert setting_value(load_config(None, [f"{name}={text}"]), name) == [text]
        assert setting_value(load_config(None, [f"{name}= b ,{text} "]), name) == ["b", text]
        quoted = in_quotes(text)
        forms = [f"[b, {quoted}]", f"\n- b\n- {quoted}", f"b,{text}"]
        forms += [] if text == "-" else [f"[b, {text}]", f"\n- b\n- {text}", f"\n  - b\n  - {text}  # why"]
        for form in forms:
            assert setting_value(read_yaml(tmp_path, f"{name}: {form}\n"), name) == ["b", text], form
    for text in texts_for(name, SIGNS):
        if "${" not in text and "???" not in text and "\n" not in text:
            items = [text, "b"]
            yaml = OmegaConf.to_yaml(OmegaConf.create({name: items}))
            assert setting_value(read_yaml(tmp_path, yaml), name) == items


@pytest.mark.parametrize(
    ("text", "items"),
    [
        ("", []),
        ("[]", []),
        ("a,,b,", ["a", "b"]),
        ("[a, b]", ["a", "b"]),
        ('"a,b",c', ["a,b", "c"]),
        ('"say ""a""",b', ['say "a"', "b"]),
        ('"a"b,c', ['"a"b', "c"]),
        ("'a',it's", ["'a'", "it's"]),
        ('["a,b","\\u00e9\\n"]', ["a,b", "é\n"]),  # of JSON
        ("['left', \"it's\", '007']", ["left", "it's", "007"]),  # of Python, as W&B's agent gives a list
        ('["[x]", {y}]', ["[x]", "{y}"]),
    ],
)
def test_lists_in_one_text(text: str, items: list[str]) -> None:
    assert list_of_text(text) == items
    assert load_config(None, [f"cameras={text}"]).cameras == items


def test_null_and_nothing(tmp_path: Path) -> None:
    for name in ("wandb_name", "dataset_dir", "encoder.pretrained", "cameras", "num_steps", "encoder.spatial"):
        assert setting_value(load_config(None, [f"{name}=null"]), name) is None
        for spelling in ("null", "~", "", "Null", "# why"):
            assert setting_value(read_yaml(tmp_path, f"{name}: {spelling}\n"), name) is None
    assert load_config(None, ["wandb_name="]).wandb_name == ""
    assert read_yaml(tmp_path, "wandb_name: ''\n").wandb_name == ""
    assert read_yaml(tmp_path, "cameras: ''\n").cameras == [] == read_yaml(tmp_path, "cameras: []\n").cameras
    assert read_yaml(tmp_path, "encoder:\n") == read_yaml(tmp_path, "") == Config()


@pytest.mark.parametrize(
    ("written", "value"),
    [("true", True), ("false", False), ("null", None), ("openai", "openai"), ("2b", "2b"), ("yes", "yes"), ("1", "1")],
)
def test_pretrained_is_a_truth_value_null_or_text(written: str, value: Any, tmp_path: Path) -> None:
    assert load_config(None, [f"encoder.pretrained={written}"]).encoder.pretrained is value or value == written
    assert read_yaml(tmp_path, f"encoder:\n  pretrained: {written}\n").encoder.pretrained == value
    assert read_yaml(tmp_path, f"encoder.pretrained: '{written}'\n").encoder.pretrained == written


def test_a_home_folder_is_put_in_the_place_of_its_sign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in PATHS:
        for text, path in (("~/x", f"{tmp_path}/x"), ("~", f"{tmp_path}"), ("~nobody-here/x", "~nobody-here/x")):
            assert setting_value(load_config(None, [f"{name}={text}"]), name) == path
            assert setting_value(read_yaml(tmp_path, f"{name}: '{text}'\n"), name) == path
            assert setting_value(to_config({name: text}), name) == path
    assert read_yaml(tmp_path, "wandb_name: ~/x\n").wandb_name == "~/x"
    assert load_config("~/c.yaml").wandb_name == "~/x"


@pytest.mark.parametrize(
    ("yaml", "sentence"),
    [
        ("wandb_name: ${now:%Y}", "line 1: setting 'wandb_name': .* cannot be resolved"),
        ("\nlr: ${oc.env:BIMACT_UNSET}", "line 2: setting 'lr': .*BIMACT_UNSET"),
        ("wandb_tags:\n- a\n- ${oc.env:BIMACT_UNSET}", "line 1: setting 'wandb_tags': .*BIMACT_UNSET"),
        ("lr: 1\noutput_dir: ${", "line 2: setting 'output_dir'"),
        ("encoder:\n  model_name: ${nope}", "line 2: setting 'encoder.model_name': .*'nope' not found"),
        ("wandb_name: ${wandb_name}", "line 1: setting 'wandb_name'"),
        ("wandb_name: ${encoder}", "line 1: setting 'wandb_name' is"),
        ("lr: 1\nencoder:\n\tname: conv", "line 3: the line is indented by a tab"),
        ("lr: 1\n\nlearning_rat: 1", "line 3: no setting named 'learning_rat'"),
        ("encoder:\n  frezee: true", "line 2: no setting named 'encoder.frezee'; did you mean 'encoder.freeze'"),
        ("encoder.frezee: true", "line 1: no setting named 'encoder.frezee'; did you mean 'encoder.freeze'"),
        ("encoder: conv", "line 1: 'encoder' .*: set encoder.name"),
        ("seed: 1\nlr: many", "line 2: setting 'lr': Value 'many'"),
        ("seed: 1\nlr: 0", "line 2: setting 'lr' is 0.0, it has to be more than 0"),
        ("seed: 1\naction_loss: l3", "line 2: setting 'action_loss' is 'l3', it has to be l1 or l2"),
        ("device: null", "line 1: setting 'device' is null, it has to be text"),
        ("image_size: 3", "line 1: setting 'image_size' is 3, it has to be a list of whole numbers or null"),
        ("wandb_name: [x]", "line 1: setting 'wandb_name' is a list, it has to be text or null: put it in quotes"),
        ("wandb_name: {y}", "line 1: setting 'wandb_name' is a group of keys, .*: put it in quotes"),
        ("cameras:\n- [a]", "line 1: an item of setting 'cameras' is a list"),
        ("cameras:\n- a: b", "line 1: an item of setting 'cameras' is a group of keys"),
        ("cameras:\n- a\n-", "line 1: an item of setting 'cameras' is empty"),
        ("encoder.name: a\nencoder:\n  name: b", "line 3: 'encoder.name' is given twice, first in line 1"),
    ],
)
def test_faults_name_file_and_line(yaml: str, sentence: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"^{tmp_path}/c\.yaml, {sentence}"):
        read_yaml(tmp_path, yaml)


def test_keys_of_the_encoder_may_stand_with_a_dot(tmp_path: Path) -> None:
    config = read_yaml(tmp_path, "encoder.name: conv\nencoder:\n  fuse: tokens\n")
    assert (config.encoder.name, config.encoder.fuse) == ("conv", "tokens")
    assert to_config({"encoder.name": "conv"}).encoder.name == "conv"


def test_interpolations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BIMACT_TEST", "007")
    monkeypatch.setenv("BIMACT_CAMERAS", "left,012345670123")
    text = """
output_dir: ${oc.env:HOME}/runs/${wandb_name}
wandb_name: ${oc.env:BIMACT_TEST}
wandb_project: ${seed}-${encoder.name}
filter_key: ${seed}
wandb_tags: [a, '${wandb_name}', '\\${b}', '\\???']
cameras: ${oc.env:BIMACT_CAMERAS}
episodes: ${cameras}
ensemble_window: ${chunk_size}
encoder:
  model_name: ${.name}
"""
    config = read_yaml(tmp_path, text)
    assert config.wandb_name == "007" and config.output_dir == f"{Path.home()}/runs/007"
    assert (config.wandb_project, config.filter_key) == ("0-clip_vit", "0")
    assert config.wandb_tags == ["a", "007", "${b}", "???"]
    assert config.cameras == ["left", "012345670123"] == config.episodes
    assert config.ensemble_window == config.chunk_size == 50 and config.encoder.model_name == "clip_vit"
    changed = load_config(tmp_path / "c.yaml", ["wandb_name=${x}", "seed=3"])
    assert changed.output_dir == f"{Path.home()}/runs/${{x}}" and changed.filter_key == "3"
    loaded = to_config(OmegaConf.load(tmp_path / "c.yaml").copy() | {"cameras": ["a"], "episodes": None})
    assert loaded == dataclasses.replace(config, cameras=["a"], episodes=None)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("wandb_name: 007", "'wandb_name' is read as the number 7, .*: put it in quotes"),
        ("mixed_precision: no", "'mixed_precision' is read as the truth value false, .*: put it in quotes"),
        ("cameras: [012345670123]", "'cameras' is read as the number 1402433619, .*: put it in quotes"),
        ("encoder:\n  pretrained: 2024", "'encoder.pretrained' is read as the number 2024, .*: put it in quotes"),
        ("foo: ${bar}", "no setting named 'foo'"),
        ("wandb_name: ${seed}\nencoder: 5", "set encoder.name"),
    ],
)
def test_what_omegaconf_has_made_a_number_of_is_refused(content: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        to_config(OmegaConf.create(content))


def test_values_of_python() -> None:
    config = to_config({"dataset_dir": Path("/data"), "cameras": ("a", "b"), "wandb_name": "${x}", "wandb_tags": "a,b"})
    assert (config.dataset_dir, config.cameras, config.wandb_tags) == ("/data", ["a", "b"], ["a", "b"])
    assert config.wandb_name == "${x}" and to_config(config) == config
    for content in ({"wandb_name": ["a"]}, {"wandb_name": b"a"}, {"cameras": [["a"]]}, {"lr": "${seed}"}):
        with pytest.raises(UserError, match="it has to be"):
            to_config(content)


ANY_TEXT = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
    st.text("ab01_.:-+eE${}\\?[],\"' #~\t\n=&*!|>%@`\u2028\x85é😀\ufeff\x7f<", max_size=8),
    st.sampled_from([*TEXTS, *SIGNS]),
)


@pytest.mark.slow
@settings(max_examples=500 if LONG else 25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ANY_TEXT, st.lists(ANY_TEXT, max_size=3))
@example("???", ["\\???", "${"])
@example("\\???", ["${x} \\", "\\\\${"])
def test_any_text_survives_in_a_file(tmp_path: Path, text: str, items: list[str]) -> None:
    is_path = text and "\0" not in text and not text.startswith("~")
    config = Config(wandb_name=text, wandb_tags=items, cameras=items, dataset_dir=text if is_path else None)
    save_config(config, tmp_path / "config.yaml")
    assert load_config(tmp_path / "config.yaml") == config
    loaded = OmegaConf.load(tmp_path / "config.yaml")
    assert (loaded.wandb_name, list(loaded.wandb_tags), loaded.dataset_dir) == (text, items, config.dataset_dir)
    assert to_config(loaded) == config == to_config(config)
    if text != "null":
        assert load_config(None, [f"wandb_name={text}"]).wandb_name == text


def test_the_other_name_of_an_encoder_is_kept(tmp_path: Path) -> None:
    save_config(load_config(None, ["encoder.name=resnet"]), tmp_path / "config.yaml")
    assert load_config(tmp_path / "config.yaml").encoder.name == "resnet"


def test_datasets_are_read_and_written(tmp_path: Path) -> None:
    """Text in an item stays text, as in the same setting of a run."""
    text = """
datasets:
  - path: ~/cube
    weight: 2
    name: 007
    state_dims: 0:7
    episodes: [0:40, 45]
    cameras: [top=cam_high]
    task: pour
    skip_idle: true
  - data/peg
"""
    config = read_yaml(tmp_path, text)
    assert config.datasets == [
        {
            "path": str(Path.home() / "cube"),
            "weight": 2,
            "name": "007",
            "state_dims": "0:7",
            "episodes": ["0:40", "45"],
            "cameras": ["top=cam_high"],
            "task": "pour",
            "skip_idle": True,
        },
        {"path": "data/peg"},
    ]
    save_config(config, tmp_path / "saved.yaml")
    assert load_config(tmp_path / "saved.yaml") == config == to_config(OmegaConf.load(tmp_path / "saved.yaml"))
    line = "datasets=[{path: ~/cube, weight: 2, state_dims: 0:7}, {path: b}]"
    assert load_config(None, [line]).datasets == [
        {"path": str(Path.home() / "cube"), "weight": 2, "state_dims": "0:7"},
        {"path": "b"},
    ]
    for wrong, sentence in (
        ("3: 4", "item 1 of setting 'datasets' has no path"),
        ("{path: a, max_episodes: x}", "item 1 of setting 'datasets': setting 'max_episodes'"),
        ("{path: a, fps: 25}", "item 1 of setting 'datasets': no key named 'fps'"),
        ("{path: a, ignore_names: 1}", "ignore_names is 1, it has to be true or false"),
    ):
        with pytest.raises(UserError, match=sentence):
            load_config(None, [f"datasets=[{wrong}]"])
