from contextlib import nullcontext, suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fovea.errors import UserError
from pipelines.settings import (
    NAMES,
    SAMPLE_SETTINGS,
    RunSettings,
    default_settings,
    name_for,
    read_overrides,
    read_settings,
    validate_settings,
)
from sample.model import MADE_FILE

NEEDED = {
    "artifact_root": "s3://bucket/prefix",
    "base_model": "s3://bucket/index/import_model/1.json",
    "source": "https://example.org/products.csv",
}


def test_defaults_are_filled_in() -> None:
    settings = validate_settings(NEEDED)
    assert settings.num_crops == 4
    assert settings.source == NEEDED["source"]


def test_text_from_the_command_line_becomes_values() -> None:
    given_ = read_overrides(
        ["learning_rate=0", "lora_r = 8", "gradient_checkpointing=false", "lora_r=4", "num_train_epochs=1e1"]
    )
    settings = validate_settings({**NEEDED, **given_})
    assert (settings.learning_rate, settings.lora_r, settings.gradient_checkpointing) == (0.0, 4, False)
    assert settings.num_train_epochs == 10.0


def test_a_value_may_hold_an_equals_sign() -> None:
    assert read_overrides(["source=https://example.org/?a=b"]) == {"source": "https://example.org/?a=b"}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("lerning_rate=0", "'lerning_rate'; did you mean learning_rate"),
        ("lora_r", "write it as --set name=value"),
        ("=3", "there is no setting ''"),
        ("zzz=3", "there are answered_samples, artifact_root"),
    ],
)
def test_an_override_that_is_none_is_told_which(override: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        read_overrides([override])
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_crops", "0"),
        ("num_crops", "17"),
        ("lora_r", "x"),
        ("learning_rate", "-1"),
        ("learning_rate", "nan"),
        ("min_parse_rate", "1.1"),
        ("test_fraction", "1"),
        ("precision", "float8"),
        ("registered_model_name", "My Model"),
        ("artifact_root", "/x"),
        ("base_model", "microsoft/Phi-3-vision"),
    ],
)
def test_a_wrong_value_is_named_with_its_setting(name: str, value: str) -> None:
    with pytest.raises(UserError) as error:
        validate_settings({**NEEDED, name: value})
    assert f"{name} = {value!r}" in str(error.value)
    assert "\n" not in str(error.value)


def test_every_wrong_setting_is_named_at_once() -> None:
    with pytest.raises(UserError, match=r"seed = .*lora_r = "):
        validate_settings({**NEEDED, "lora_r": "x", "seed": "y"})


def test_what_is_missing_is_named() -> None:
    with pytest.raises(UserError, match="source is missing; give it with --set source="):
        validate_settings({name: value for name, value in NEEDED.items() if name != "source"})


def test_settings_that_do_not_fit_together() -> None:
    with pytest.raises(UserError, match="must add up to less than 1"):
        validate_settings({**NEEDED, "test_fraction": 0.6, "validation_fraction": 0.5})
    with pytest.raises(UserError, match="test_fraction must be above 0"):
        validate_settings({**NEEDED, "test_fraction": 0})


def test_a_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("lora_r: 8\nlearning_rate: 1e-3\n# a comment\n")
    assert validate_settings({**NEEDED, **read_settings(path)}).learning_rate == 0.001


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("lora_rs: 8\n", "did you mean lora_r"),
        ("rank: 8\n", "rank is now called lora_r"),
        ("- lora_r\n", "must hold lines of 'name: value'"),
        ("lora_r: [\n", "is not YAML"),
        ("just text", "must hold lines"),
    ],
)
def test_a_file_that_is_wrong_is_told_why(content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(content)
    with pytest.raises(UserError) as error:
        read_settings(path)
    assert message in str(error.value)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_an_empty_file_sets_nothing(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("")
    assert read_settings(path) == {}


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"mine\.yaml: cannot be read \(No such file"):
        read_settings(tmp_path / "mine.yaml")


def test_the_sample_model_has_defaults_of_its_own(tmp_path: Path) -> None:
    assert default_settings({}) == read_settings(SAMPLE_SETTINGS)
    assert default_settings({"base_model": str(tmp_path)}) == {}
    (tmp_path / MADE_FILE).write_text("{}")
    assert default_settings({"base_model": str(tmp_path)}) == read_settings(SAMPLE_SETTINGS)


def test_a_table_of_ones_own_has_names_of_its_own(tmp_path: Path) -> None:
    names = {"experiment": "products", "registered_model_name": "products", "service_name": "products"}
    assert default_settings({"source": "data/products.csv"}) == {**read_settings(SAMPLE_SETTINGS), **names}
    assert default_settings({"source": "data/products.csv", "base_model": str(tmp_path)}) == names
    assert default_settings({"source": ""}) == read_settings(SAMPLE_SETTINGS)


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("products.csv", "products"),
        ("feeds/Shoes 2026.csv", "shoes-2026"),
        ("feeds/", "feeds"),
        ("feeds/2026-*.csv", "feeds"),
        ("../products.parquet", "products"),
        ("s3://feeds/today/", "today"),
        ("s3://feeds/*/part-?.csv", "feeds"),
        ("https://shop.example/feeds/Winter%20coats.jsonl?signature=a/b.csv", "winter-coats"),
        ("https://shop.example/", "catalogue"),
        ("hf://acme/shoes-1.2@main/default:train", "shoes-1-2"),
        ("fovea.csv", "catalogue-fovea"),
        ("2026.csv", "catalogue-2026"),
        ("商品.csv", "catalogue"),
        (f"{'x' * 39}-y.csv", "x" * 39),
    ],
)
def test_a_table_gives_the_name(source: str, name: str) -> None:
    assert name_for(source) == name


def test_a_working_directory_gives_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "winter" / "deep").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "winter")
    assert [name_for(source) for source in (".", "*.csv")] == ["winter", "winter"]
    monkeypatch.chdir(tmp_path / "winter" / "deep")
    assert name_for("..") == "winter"


@given(st.text(max_size=80))
def test_any_source_gives_a_name_that_is_allowed_and_not_the_samples(source: str) -> None:
    names = dict.fromkeys(NAMES, name_for(source))
    assert validate_settings({**NEEDED, **names}).service_name != validate_settings(NEEDED).service_name


def test_the_samples_settings_are_settings() -> None:
    validate_settings({**NEEDED, **read_settings(SAMPLE_SETTINGS)})


@given(st.dictionaries(st.sampled_from(sorted(RunSettings.model_fields)), st.text(max_size=20)))
def test_any_text_is_a_setting_or_a_users_error(values: dict[str, str]) -> None:
    with suppress(UserError) if values else nullcontext():
        validate_settings({**NEEDED, **values})
