"""Configuration: what is refused and how it is said, recipes, files, and no key that is dead."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from dpmpp_core.config import Config, config_keys, fingerprint, load_config, recipe_names
from dpmpp_core.config.schedule import find_long_warmups
from dpmpp_core.errors import ConfigError

ROOT = Path(__file__).parents[4]
KEYS = list(config_keys())


@pytest.mark.parametrize("name", recipe_names())
def test_every_shipped_recipe_loads_under_its_name(name):
    config = load_config(name)
    assert config.name == name
    assert load_config(name, ["name=other"]).name == "other"


def test_the_defaults_are_valid_and_frozen():
    config = Config()
    with pytest.raises(ValidationError, match="frozen"):
        config.metric.loss.triplet = 3.0


def test_a_configuration_comes_back_from_its_yaml(tmp_path):
    config = load_config("demo", ["metric.milestones=[3,7]", "model.stride=12", "seed=4"])
    file = tmp_path / "run.yaml"
    file.write_text(config.to_yaml())
    assert load_config(str(file)) == config
    assert fingerprint(load_config(str(file))) == fingerprint(config)
    assert fingerprint(config) != fingerprint(load_config("demo"))
    assert fingerprint(config, 1) != fingerprint(config, 2)


def test_every_key_can_be_overridden_with_its_own_value():
    config = load_config("demo").model_dump(mode="json")
    for key in KEYS:
        value = config
        for part in key.split("."):
            value = value[part]
        text = "null" if value is None else f"'{value}'" if isinstance(value, str) else value
        assert load_config("demo", [f"{key}={text}"]) == load_config("demo"), key


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("metric.epochs=3", "metric.epochs", 3),
        (" metric.epochs = 3", "metric.epochs", 3),
        ("metric.lr=1e-4", "metric.lr", 1e-4),  # a string in YAML 1.1
        ("metric.milestones=[10, 20]", "metric.milestones", (10, 20)),
        ("metric.loss={triplet: 2}", "metric.loss.triplet", 2.0),
        ("model.pretrained=null", "model.pretrained", None),
        ("model.prompt=a = {}", "model.prompt", "a = {}"),
        ("cluster.gpu=false", "cluster.gpu", False),
    ],
)
def test_overrides_are_yaml_values(override, key, value):
    found = load_config("demo", [override])
    for part in key.split("."):
        found = getattr(found, part)
    assert found == value


def test_a_later_override_wins_and_neighbours_stay():
    config = load_config("demo", ["metric.epochs=3", "metric.epochs=5", "metric.loss.text=0"])
    assert config.metric.epochs == 5
    assert config.metric.encoder_lr == load_config("demo").metric.encoder_lr


@pytest.mark.parametrize(
    ("override", "message"),
    [
        # unknown keys name the nearest
        (
            "metric.epoch=1",
            "unknown configuration key 'metric.epoch'; did you mean 'metric.epochs'",
        ),
        ("metric.loss={tripled: 2}", "'metric.loss.tripled'; did you mean 'metric.loss.triplet'"),
        # a right leaf in a wrong section
        ("model.epochs=3", "'model.epochs'; did you mean 'metric.epochs'"),
        ("loss.triplet=1", "'loss.triplet'; did you mean 'metric.loss.triplet'"),
        ("triplet=1", "'triplet'; did you mean 'metric.loss.triplet'"),
        ("metric.seed=1", "'metric.seed'; did you mean 'seed'"),
        ("zzz=1", "unknown configuration key 'zzz'"),
        ("a..b=1", "unknown configuration key 'a..b'"),
        # sections and values confused
        ("metric=3", "metric: input should be a valid dictionary"),
        ("metric.epochs.x=1", "'epochs' is a value, not a section"),
        # wrong types
        ("metric.epochs=2.5", "metric.epochs: .*integer.*2.5"),
        ("metric.epochs=many", "metric.epochs: .*integer.*'many'"),
        ("metric.images=", "metric.images: .*integer.*None"),
        ("metric.milestones=[30, x]", "metric.milestones.1: .*integer"),
        ("data.std=0.5", "data.std: .*tuple"),
        ("data.mean=[0.5, 0.5]", "data.mean.2: field required"),
        ("data.layout=martek", "data.layout: .*'market1501'.*'martek'"),
        # out of range
        ("prompts.batch=-1", "prompts.batch: .*greater than 0.*-1"),
        ("evaluation.batch=0", "evaluation.batch: .*greater than 0"),
        ("metric.identities=1", "metric.identities: .*greater than or equal to 2"),
        ("seed=-1", "seed: .*greater than or equal to 0"),
        ("occlusion.probability=1.1", "occlusion.probability: .*less than or equal to 1"),
        ("metric.loss.arcface_margin=1.6", "metric.loss.arcface_margin: .*less than 1.57"),
        ("metric.lr=.inf", "metric.lr: .*finite"),
        ("metric.loss.text=.nan", "metric.loss.text: .*(finite|greater)"),
        ("data.mean=[.nan, 0, 0]", "data.mean.0: .*finite"),
        ("data.std=[0.5, 0, 0.5]", "data.std.1: .*greater than 0"),
        ("model.taps=[]", "model.taps: .*at least 1 item"),
        ("model.taps=[0, 2]", "model.taps.0: .*greater than 0"),
        ("metric.update=alternating", "metric.update alternating needs a model.mask_generator"),
        ("name=../up", "name: string should match pattern"),
        # syntax
        ("seed", "override 'seed': write it as section.key=value"),
        ("=1", "override '=1': write it as section.key=value"),
        ("metric.lr=[", r"override 'metric.lr=\[': '\[' is not a YAML value"),
        ("name=!!python/name:os.system", "is not a YAML value"),
    ],
)
def test_wrong_overrides_say_what_is_wrong(override, message):
    with pytest.raises(ConfigError, match=message) as caught:
        load_config("demo", [override])
    assert "\n" not in str(caught.value)


def test_a_range_that_holds_nothing_is_refused():
    with pytest.raises(ConfigError, match=r"occlusion: min_ratio 0.9 is above max_ratio 0.6"):
        load_config("demo", ["occlusion.min_ratio=0.9", "occlusion.max_ratio=0.6"])


@given(st.sampled_from([key for key in KEYS if len(key) > 9]), st.data())
def test_a_slip_of_one_letter_finds_the_key(key, data):
    place = data.draw(st.integers(1, len(key) - 2).filter(lambda i: key[i] != "."))
    slipped = key[:place] + "Q" + key[place + 1 :]
    with pytest.raises(ConfigError, match=rf"{re.escape(repr(slipped))}; did you mean '"):
        load_config("demo", [f"{slipped}=1"])


# --- files --------------------------------------------------------------------------------------


def written(tmp_path, text, name="mine.yaml"):
    file = tmp_path / name
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(file)


def test_a_file_extends_a_recipe_key_by_key(tmp_path):
    config = load_config(
        written(tmp_path, "extends: demo\nmetric: {epochs: 3, loss: {text: 0}}\n"), ["seed=2"]
    )
    demo = load_config("demo")
    assert (config.metric.epochs, config.metric.loss.text, config.seed) == (3, 0, 2)
    assert config.metric.encoder_lr == demo.metric.encoder_lr
    assert config.metric.loss.triplet == demo.metric.loss.triplet
    assert config.model == demo.model
    assert config.name == "mine"


def test_a_file_names_itself_and_starts_from_the_defaults(tmp_path):
    assert load_config(written(tmp_path, "")) == Config(name="mine")
    assert load_config(written(tmp_path, "name: best\nextends: demo\n")).name == "best"


def test_files_extend_files(tmp_path):
    first = written(tmp_path, "extends: demo\nseed: 1\nmetric: {epochs: 3}\n", "first.yaml")
    config = load_config(written(tmp_path, f"extends: {first}\nseed: 2\n"))
    assert (config.name, config.seed, config.metric.epochs) == ("mine", 2, 3)
    assert config.model.backbone == "dpmpp-small"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("metric: {epoch: 3}", "mine.yaml: unknown configuration key 'metric.epoch'; did you mean"),
        ("metrics: {epochs: 3}", "did you mean 'metric.epochs'"),
        ("1: 2", "unknown configuration key '1'"),
        ("metric:", "metric: input should be a valid dictionary"),
        ("- 1", "a mapping of sections is needed, not list"),
        ("metric: [", "mine.yaml: not valid YAML"),
        ("a: 1\n\ta: 2", "mine.yaml: not valid YAML"),
        (b"\xff\xfe\x00\x81", "mine.yaml: not a text file in UTF-8"),
        ("extends: dmeo", "no recipe or file named 'dmeo'; did you mean 'demo'"),
        ("extends: [demo]", "no recipe or file named"),
    ],
)
def test_wrong_files_say_what_is_wrong(tmp_path, text, message):
    with pytest.raises(ConfigError, match=message) as caught:
        load_config(written(tmp_path, text))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("chain", [1, 2, 3])
def test_files_that_extend_in_a_circle_are_refused(tmp_path, chain):
    paths = [str(tmp_path / f"{i}.yaml") for i in range(chain)]
    for i, path in enumerate(paths):
        Path(path).write_text(f"extends: {paths[(i + 1) % chain]}\n")
    with pytest.raises(ConfigError, match="a circle"):
        load_config(paths[0])


@pytest.mark.parametrize(
    ("source", "hint"), [("dmeo", "; did you mean 'demo'"), ("nothing", ""), ("recipes", "")]
)
def test_unknown_recipes_are_listed_with_the_nearest(source, hint):
    with pytest.raises(ConfigError, match=rf"named '{source}'{re.escape(hint)}.*recipes: demo, "):
        load_config(source)


# --- no dead key --------------------------------------------------------------------------------


def test_a_milestone_beyond_the_end_is_refused_and_the_default_follows_the_epochs():
    with pytest.raises(ConfigError, match="epoch 30 never comes, as there are 30: leave mileston"):
        load_config("market1501", ["metric.epochs=30", "metric.milestones=[20,30]"])
    assert load_config("market1501", ["metric.epochs=30"]).metric.milestones is None


def test_every_key_is_read_by_the_product():
    """A key that nothing reads is a promise not kept. Looks for `.leaf` outside `config/`."""
    files = [*ROOT.glob("dpmpp_core/**/*.py"), *ROOT.glob("pipelines/**/*.py")]
    sources = "\n".join(f.read_text() for f in files if f.parent.name != "config")
    dead = [key for key in KEYS if not re.search(rf"\.{key.rsplit('.')[-1]}\b", sources)]
    assert not dead


@pytest.mark.parametrize(
    ("given", "value"),
    [
        ("CC BY-NC #4.0", "CC BY-NC #4.0"),
        ("research: only here", "research: only here"),
        ("'quoted: #1'", "quoted: #1"),
        ("2026", "2026"),
        ("null", None),
    ],
)
def test_the_value_of_a_text_key_is_what_stands_behind_the_equals_sign(
    given: str, value: str | None
) -> None:
    config = load_config("demo", [f"tracking.data_licence={given}"])
    assert config.tracking.data_licence == value


def test_a_warm_up_as_long_as_its_training_is_said() -> None:
    assert not find_long_warmups(load_config("demo"), ("prompts", "metric"))
    short = load_config("demo", ["metric.epochs=3", "metric.warmup_epochs=3"])
    (said,) = find_long_warmups(short, ("prompts", "metric"))
    assert said.startswith("metric.warmup_epochs is 3 of metric.epochs 3")
