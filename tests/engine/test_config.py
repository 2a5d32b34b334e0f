"""A user who writes a wrong configuration is told, in one line, which file, which field, and what would be right."""

from __future__ import annotations

import logging
import re
import tomllib
from pathlib import Path

import msgspec
import pytest

from engine import config_docs, config_env, config_file
from engine.choices import spread
from engine.config import Config, DeadlinesSection, NodeSection, StageSection
from ipc.errors import ConfigError

ROOT = Path(__file__).resolve().parent.parent.parent

GOOD = """
[stages.one]
kind = "simulated"
options = {accepts = "audio", emits = "text"}
[stages.two]
kind = "simulated"
options = {accepts = "text", emits = "audio", output_bytes = 1000}
[pipelines]
full = ["one", "two"]
"""


@pytest.fixture
def written(tmp_path):
    """A function that writes node.toml and loads it."""

    def load(text: str, env: dict[str, str] | None = None, env_file: Path | None = None) -> Config:
        path = tmp_path / "node.toml"
        path.write_text(text)
        return config_file.load(path, env or {}, env_file)

    return load


def refusal(load, *args, **kwargs) -> str:
    with pytest.raises(ConfigError) as caught:
        load(*args, **kwargs)
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_a_good_file_is_read(written):
    config = written(GOOD + "[node]\nwindow = 8\n[deadlines]\ngap_s = 1\n")
    assert (config.node.window, config.deadlines.gap_s) == (8, 1.0)
    assert config.pipelines == {"full": ("one", "two")}
    assert config.stages["two"].options["output_bytes"] == 1000


SEVERAL = (
    GOOD
    + """
[stages.two.models.de]
model = "./voices/de"
languages = ["de"]
keep_alive_s = 60
[stages.two.models.fr-fr]
options = {output_bytes = 500}
pinned = true
"""
)


def test_further_models_are_as_their_stage_in_what_they_leave_out(written, tmp_path):
    config = written(SEVERAL)
    assert config.stages["two"].models["de"].model == str(tmp_path / "voices/de"), "from the file's folder"
    found = spread(config).stages
    assert list(found) == ["one", "two", "two.de", "two.fr-fr"]
    german, french = found["two.de"], found["two.fr-fr"]
    assert (german.kind, german.languages, german.keep_alive_s, german.pinned) == ("simulated", ("de",), 60.0, False)
    assert (french.model, french.keep_alive_s, french.pinned) == ("", -1.0, True)
    assert french.options == {"accepts": "text", "emits": "audio", "output_bytes": 500}
    assert spread(spread(config)) == spread(config)
    assert config.pipelines == spread(config).pipelines


def test_further_models_have_variables_too(written):
    env = {
        "DRAGOMAN_STAGES_TWO_MODELS_FR_FR_PINNED": "no",
        "DRAGOMAN_STAGES_TWO_MODELS_DE_KEEP_ALIVE_S": "5",
        "DRAGOMAN_STAGES_TWO_MODELS_DE_OPTIONS_SEED": "7",
    }
    models = written(SEVERAL, env).stages["two"].models
    assert models["fr-fr"].pinned is False
    assert (models["de"].keep_alive_s, models["de"].options) == (5.0, {"seed": 7})
    line = refusal(written, SEVERAL, {"DRAGOMAN_STAGES_TWO_MODELS_IT_PINNED": "no"})
    assert "stage two" in line and "there are de, fr-fr" in line


WRONG = {
    # what stands in the file: what the line must say
    '[stages.two.models.DE]\nmodel = "x"': ("stages.two.models.DE", "a small letter"),
    '[stages.two.models.default]\nmodel = "x"': ("stages.two.models.default", "choose another name"),
    '[stages.two.models.de]\nlanguages = ["de"]': ("stages.two.models.de", "give it a model"),
    '[stages.two.models.de]\nmodl = "x"': ("stages.two.models.de.modl", "did you mean model?"),
    '[stages.two.models.de]\nmodel = "x"\nkeep_alive_s = -2': ("stages.two.models.de.keep_alive_s", "lowest is -1"),
    '[stages.two.models.de]\nmodel = "x"\npinned = "yes"': ("stages.two.models.de.pinned", "true or false"),
    '[stages.two.models.de]\noptions = {emits = "text"}': ("stages.two.models.de.options", "another stage than two"),
    '[node]\nmode = "serail"': ("node.mode", "'serail'", "did you mean serial?"),
    "[node]\nmode = 3": ("node.mode", "must be a text"),
    "[node]\nwindw = 3": ("node.windw", "unknown", "did you mean window?"),
    '[node]\nwindow = "many"': ("node.window", "'many'", "a whole number"),
    "[node]\nwindow = 0": ("node.window", "is 0", "lowest is 1"),
    "[node]\nwindow = true": ("node.window", "a whole number"),
    "[node]\nmax_utterance_s = 601": ("node.max_utterance_s", "601", "highest is 600 s"),
    "[node]\nmax_utterance_s = nan": ("node.max_utterance_s", "nan"),
    '[node]\nendpoints = ["tcp://0.0.0.0:5999"]': ("node.endpoints", "other machines", "tcp://127.0.0.1:5999"),
    '[node]\nendpoints = ["tcp://*:5999"]': ("node.endpoints", "other machines"),
    '[node]\nendpoints = ["tcp://192.168.1.2:5999"]': ("node.endpoints", "other machines"),
    '[node]\nendpoints = ["tcp://[::]:5999"]': ("node.endpoints", "other machines"),
    '[node]\nendpoints = ["tcp://127.0.0.1:99999"]': ("node.endpoints", "from 1 to 65535"),
    '[node]\nendpoints = ["tcp://127.0.0.1:0"]': ("node.endpoints", "from 1 to 65535"),
    '[node]\nendpoints = ["tcp://127.0.0.1"]': ("node.endpoints", "ipc://PATH or tcp://127.0.0.1:PORT"),
    '[node]\nendpoints = ["udp://127.0.0.1:5"]': ("node.endpoints", "ipc://PATH or tcp://127.0.0.1:PORT"),
    "[deadlines]\ngap_s = 0.001": ("deadlines.gap_s", "0.001", "lowest is 0.01 s"),
    "[deadlines]\ngap_s = -1": ("deadlines.gap_s", "lowest is 0.01 s"),
    "[deadlines]\ngap_s = inf": ("deadlines.gap_s", "highest is 86400 s"),
    "[deadlines]\nsilent_s = 0.2": ("deadlines.silent_s", "heartbeat_s", "1 or more"),
    "[devices]\nsafety_margin = 2": ("devices.safety_margin", "highest is 0.9"),
    '[devices]\nuse = ["gpu"]': ("devices.use", "'gpu'", "cuda:0"),
    '[devices]\nuse = "auto"': ("devices.use", "a list of texts"),
    '[devices]\nmax_bytes = {gpu0 = 8000000000}': ("devices.max_bytes", "'gpu0'", "cuda:0"),
    "[stages.three]\nkind = \"simulted\"": ("stages.three.kind", "did you mean simulated?"),
    "[stages.asrr]": ("stages.asrr", "no kind of stage", "did you mean asr?"),
    "[stages.One]\nkind = \"simulated\"": ("stages.One", "small letter"),
    "[stages.three]\nkind = \"simulated\"\nmaxbatch = 2": ("stages.three.maxbatch", "did you mean max_batch?"),
    "[stages.three]\nkind = \"simulated\"\ninstances = 0": ("stages.three.instances", "lowest is 1"),
    "[stages.three]\nkind = \"simulated\"\ninstances = 3\nmax_instances = 2": (
        "stages.three.max_instances", "is 2", "less than instances; set it to 3 or more"),
    "[stages.three]\nkind = \"simulated\"\nmax_instances = 65": ("stages.three.max_instances", "highest is 64"),
    "[stages.three]\nkind = \"simulated\"\noptions = {slep_ms = 3}": (
        "stages.three.options", "slep_ms", "did you mean sleep_ms?"),
    "[stages.three]\nkind = \"simulated\"\noptions = {sleep_ms = -5}": ("sleep_ms is -5; the lowest is 0",),
    "[stages.three]\nkind = \"simulated\"\noptions = {cues = [{index = 1, action = \"kil\"}]}": ("did you mean kill?",),
    "[stages.three]\nkind = \"simulated\"\noptions = {accepts = \"video\"}": ("stages.three.options", "audio"),
    "[rings]\ngatway = 1000000": ("rings.gatway", "did you mean gateway?"),
    "[rings]\ngateway = 10": ("rings.gateway", "lowest is 131072 bytes"),
    "[pipeline]\nfull = []": ("pipeline", "did you mean pipelines?"),
    "stages = 3": ("stages", "table"),
    "languages = [\"English\"]": ("languages", "'English'", "en"),
}  # fmt: skip


@pytest.mark.parametrize("text", WRONG)
def test_a_wrong_field_is_one_line_with_file_field_and_nearest_valid_value(written, tmp_path, text):
    # a bare key must stand before the first table
    line = refusal(written, GOOD + text if text.startswith("[") else text + "\n" + GOOD.replace("[stages", "[other"))
    assert line.startswith(str(tmp_path / "node.toml"))
    for part in WRONG[text]:
        assert part in line


def test_pipelines_must_name_stages_that_exist(written):
    def say(pipeline: str) -> str:
        return refusal(written, GOOD.replace('["one", "two"]', pipeline))

    assert "did you mean two?" in say('["one", "tow"]')


def test_a_pipeline_whose_kinds_do_not_fit_says_which_two_stages(written):
    text = GOOD + '[stages.three]\nkind = "simulated"\noptions = {accepts = "audio", emits = "text"}\n'
    line = refusal(written, text.replace('full = ["one", "two"]', 'full = ["one", "three"]'))
    assert "pipelines.full" in line and "one gives text, three takes audio" in line


def test_a_stage_that_passes_its_input_on_keeps_the_kind(written):
    text = GOOD + '[stages.three]\nkind = "simulated"\noptions = {accepts = "audio", emits = "same"}\n'
    config = written(text.replace('["one", "two"]', '["three", "one", "two"]'))
    assert config.pipelines["full"] == ("three", "one", "two")


@pytest.mark.parametrize("pipeline", ['["one", "one"]', "[]"])
def test_a_pipeline_is_not_empty_and_has_no_stage_twice(written, pipeline):
    assert "pipelines.full" in refusal(written, GOOD.replace('["one", "two"]', pipeline))


def test_a_file_without_stages_or_pipelines_is_refused_with_an_example(written):
    assert "stages is empty" in refusal(written, "[node]\nwindow = 3\n")
    line = refusal(written, GOOD.partition("[pipelines]")[0])
    assert "pipelines is empty" in line and 'full = ["one", "two"]' in line


def test_a_file_that_is_not_toml_or_not_there(written, tmp_path):
    assert "line 1" in refusal(written, "[node\n")
    assert "nowhere.toml" in refusal(config_file.load, tmp_path / "nowhere.toml", {})
    (tmp_path / "latin.toml").write_bytes(b"\xff\xfe")
    assert "not TOML" in refusal(config_file.load, tmp_path / "latin.toml", {})


# ---------------------------------------------------------------- where it is looked for


def test_the_local_file_goes_before_the_users(tmp_path):
    home, here = tmp_path / "home", tmp_path / "here"
    (home / "dragoman").mkdir(parents=True)
    here.mkdir()
    env = {"XDG_CONFIG_HOME": str(home)}
    assert config_file.find(env, here) is None
    (home / "dragoman" / "node.toml").write_text(GOOD)
    assert config_file.find(env, here) == home / "dragoman" / "node.toml"
    (here / "node.toml").write_text(GOOD)
    assert config_file.find(env, here) == here / "node.toml"


def test_a_model_beside_the_file_is_meant_from_there_and_a_hub_name_stays(written, tmp_path):
    (tmp_path / "models" / "asr").mkdir(parents=True)
    more = '[stages.asr]\nmodel = "models/asr"\n[stages.nmt]\nmodel = "somebody/some-model"\n'
    config = written(GOOD + more)
    assert config.stages["asr"].model == str(tmp_path / "models" / "asr")
    assert config.stages["nmt"].model == "somebody/some-model"


def test_a_model_that_should_lie_beside_the_file_and_does_not_is_a_path_all_the_same(written, tmp_path):
    config = written(GOOD + '[stages.asr]\nmodel = "models/asr"\n[stages.tts]\nmodel = "./voices"\n')
    assert config.stages["asr"].model == str(tmp_path / "models" / "asr")
    assert config.stages["tts"].model == str(tmp_path / "voices")


# ---------------------------------------------------------------- the environment


def test_the_environment_goes_before_the_env_file_before_the_file(written, tmp_path):
    env_file = tmp_path / "env"
    lines = [
        "# comment",
        'export DRAGOMAN_NODE_WINDOW="9"',
        "DRAGOMAN_NODE_MODE=serial  # slow",
        "DRAGOMAN_LANGUAGES=  # all",
    ]
    env_file.write_text("\n".join(lines) + "\n\n")
    config = written(GOOD + "[node]\nwindow = 8\nmax_sessions = 7\n", {"DRAGOMAN_NODE_WINDOW": "10"}, env_file)
    assert (config.node.window, config.node.mode, config.node.max_sessions) == (10, "serial", 7)


def test_every_kind_of_field_can_be_set_from_the_environment(written):
    env = {
        "DRAGOMAN_NODE_MAX_UTTERANCE_S": "30",
        "DRAGOMAN_DEADLINES_SILENT_S": "4.5",
        "DRAGOMAN_DEVICES_USE": "cpu, cuda:0",
        "DRAGOMAN_DEVICES_MAX_BYTES": "cuda:0=8589934592",
        "DRAGOMAN_STAGES_ONE_MAX_BATCH": "4",
        "DRAGOMAN_STAGES_ONE_REQUIRED": "no",
        "DRAGOMAN_STAGES_ONE_OPTIONS_SLEEP_MS": "2.5",
        "DRAGOMAN_STAGES_ONE_OPTIONS_SUFFIX": "!",
        "DRAGOMAN_PIPELINES_FULL": "one",
        "DRAGOMAN_RINGS_GATEWAY": "1048576",
        "DRAGOMAN_LANGUAGES": "en,de",
        "OTHER_VARIABLE": "x",
        "DRAGOMAN_TEST_HOOKS": "a=b",
        "DRAGOMAN_NODE": "cookie",
    }
    config = written(GOOD, env)
    assert config.node.max_utterance_s == 30.0
    assert config.deadlines.silent_s == 4.5
    assert config.devices.use == ("cpu", "cuda:0")
    assert config.devices.max_bytes == {"cuda:0": 8589934592}
    assert (config.stages["one"].max_batch, config.stages["one"].required) == (4, False)
    assert config.stages["one"].options["sleep_ms"] == 2.5
    assert config.stages["one"].options["suffix"] == "!"
    assert config.pipelines == {"full": ("one",)}
    assert config.rings == {"gateway": 1048576}
    assert config.languages == ("en", "de")


@pytest.mark.parametrize(
    ("name", "value", "parts"),
    [
        ("DRAGOMAN_NODE_WINDOW", "many", ("a whole number",)),
        ("DRAGOMAN_NODE_WINDOW", "0", ("node.window", "lowest is 1")),
        ("DRAGOMAN_NODE_WINDWO", "3", ("did you mean WINDOW?",)),
        ("DRAGOMAN_NOED_WINDOW", "3", ("DRAGOMAN_NODE_",)),
        ("DRAGOMAN_STAGES_THREE_MAX_BATCH", "3", ("one, two",)),
        ("DRAGOMAN_STAGES_ONE_MAXBATCH", "3", ("did you mean MAX_BATCH?",)),
        ("DRAGOMAN_STAGES_ONE_REQUIRED", "maybe", ("true or false",)),
        ("DRAGOMAN_NODE_MODE", "fast", ("node.mode", "serial")),
        ("DRAGOMAN_NODE_PLACEMENT", "erliest", ("node.placement", "did you mean earliest?")),
        ("DRAGOMAN_DEVICES_MAX_BYTES", "cuda:0=1000000,cpu=4GiB", ("has cpu=4GiB; '4GiB' must be a whole number",)),
        ("DRAGOMAN_RINGS", "131072", ("'131072'; it must be a table of whole numbers (name=value,name=value)",)),
        ("DRAGOMAN_PIPELINES", "full=one", ("write it into the configuration file",)),
    ],
)
def test_a_wrong_variable_is_named(written, name, value, parts):
    line = refusal(written, GOOD, {name: value})
    for part in (name, *parts):
        assert part in line


@pytest.mark.parametrize(
    ("name", "value", "part"),
    [
        ("DRAGOMAN_STAGES_ONE_OPTIONS_INPUT_BITES", "2", "has no option 'input_bites'"),
        ("DRAGOMAN_STAGES_ONE_OPTIONS_EMITS", "smoke", "emits is 'smoke'"),
        ("DRAGOMAN_DEVICES_MAX_BYTES", "cpu=1", "devices.max_bytes.cpu is 1"),
        ("DRAGOMAN_RINGS", "two=1", "rings.two is 1"),
        ("DRAGOMAN_STAGES_ONE_VARIANTS", '[{compute_tipe="int8"}]', "stages.one.variants[0].compute_tipe is unknown"),
    ],
)
def test_a_variable_that_sets_an_entry_of_a_table_is_named_and_no_other_one(written, name, value, part):
    line = refusal(written, GOOD, {name: value, "DRAGOMAN_STAGES_ONE_OPTIONS_ACCEPTS": "audio"})
    assert line.startswith(f"environment variable {name}: ") and part in line


def test_what_the_file_says_is_not_put_down_to_a_variable(written):
    wrong = GOOD.replace('emits = "text"}', 'emits = "text", bites = 3}')
    line = refusal(written, wrong, {"DRAGOMAN_STAGES_ONE_OPTIONS_EMITS": "text"})
    assert "has no option 'bites'" in line and "DRAGOMAN_" not in line


def test_all_rings_can_be_set_at_once(written):
    assert written(GOOD, {"DRAGOMAN_RINGS": "gateway=1048576"}).rings == {"gateway": 1048576}


def test_a_variable_that_sets_nothing_is_warned_of_with_the_nearest_one(written, caplog):
    logging.getLogger("dragoman").propagate = True
    own = {
        "DRAGOMAN_NODE": "cookie",
        "DRAGOMAN_TEST_HOOKS": "a=b",
        "DRAGOMAN_LEASE_BYTES": "1",
        "DRAGOMAN_FOLDER": "/f",
    }
    written(GOOD, {"DRAGOMAN_WINDOW": "3", "WINDOW": "3", **own})
    assert [record.getMessage() for record in caplog.records] == [
        "environment variable DRAGOMAN_WINDOW sets nothing; the nearest name is DRAGOMAN_NODE_WINDOW"
    ]


def test_lines_of_an_env_file_that_mean_nothing_here_are_said_in_one_warning(written, tmp_path, caplog):
    logging.getLogger("dragoman").propagate = True
    env_file = tmp_path / "env"
    env_file.write_text("window=3\nDRAGOMAN_NODE_WINDOW=5\nHOME=/x\n")
    assert written(GOOD, {}, env_file).node.window == 5
    (record,) = caplog.records
    assert record.getMessage() == f"{env_file}: window, HOME: not read, names begin with DRAGOMAN_"


def test_what_is_wrong_beside_the_machine_names_the_file_or_the_variable(tmp_path):
    path, env_file = tmp_path / "node.toml", tmp_path / "env"
    env_file.write_text("DRAGOMAN_DEVICES_USE=cuda:7\n")
    error = ConfigError("devices.use names 'cuda:7'", "this machine has cpu")
    say = config_file.with_origin
    assert str(say(error, path, {})) == f"{path}: devices.use names 'cuda:7'; this machine has cpu"
    assert str(say(error, path, {"DRAGOMAN_DEVICES_USE": "x"})).startswith("environment variable DRAGOMAN_DEVICES_USE:")
    assert str(say(error, path, {}, env_file)).startswith(f"{env_file}: DRAGOMAN_DEVICES_USE:")
    assert say(error, None, {}) is error
    hooks = ConfigError("DRAGOMAN_TEST_HOOKS is 'x'")
    assert say(hooks, path, {}) is hooks


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:5999", "tcp://127.9.9.9:1", "tcp://localhost:65535", "ipc:///x"])
def test_clients_of_this_machine_may_have_more_addresses(written, address):
    assert written(GOOD + f'[node]\nendpoints = ["{address}"]\n').node.endpoints == (address,)


UNUSED = "(not used yet)"


def test_every_documented_field_is_read_somewhere_or_says_that_it_is_not():
    files = [path for folder in ("engine", "stages", "ipc") for path in (ROOT / folder).rglob("*.py")]
    code = "\n".join(path.read_text(encoding="utf-8") for path in files if not path.name.startswith("config"))
    for section, _, rows in config_docs.sections():
        for row in rows:
            is_read = re.search(rf"\.{row.name}\b", code) is not None
            assert is_read is not row.meaning.startswith(UNUSED), f"{section}.{row.name}: {row.meaning}"


def test_a_wrong_env_file_is_named(written, tmp_path):
    env_file = tmp_path / "env"
    assert str(env_file) in refusal(written, GOOD, {}, env_file)
    env_file.write_text("just words\n")
    assert "line 1" in refusal(written, GOOD, {}, env_file)
    env_file.write_text("DRAGOMAN_NODE_WINDOW=-4\n")
    line = refusal(written, GOOD, {}, env_file)
    assert str(env_file) in line and "node.window" in line


def test_the_environment_goes_over_a_base_configuration_too():
    base = Config(stages={"one": StageSection(kind="simulated")}, pipelines={"full": ("one",)})
    config = config_file.load(None, {"DRAGOMAN_STAGES_ONE_MAX_BATCH": "2"}, base=base)
    assert config.stages["one"].max_batch == 2
    assert config_file.load(None, {}, base=base) == base
    assert config_file.load(None, {}) == Config()


def test_the_defaults_pass_their_own_rules():
    assert config_file.load(None, {}, base=Config(node=NodeSection(), deadlines=DeadlinesSection())) == Config()


def test_a_dict_is_checked_like_a_file():
    assert config_file.from_dict(tomllib.loads(GOOD)).pipelines == {"full": ("one", "two")}
    assert refusal(config_file.from_dict, {"node": {"mode": "fast"}}, "Node(config=...)").startswith("Node(config=...)")


# ---------------------------------------------------------------- the papers


def test_the_generated_papers_are_up_to_date():
    for name, renderer in config_docs.FILES.items():
        there = (ROOT / name).read_text(encoding="utf-8")
        assert there == getattr(config_docs, renderer)(), f"{name} is old: run python -m engine.config_docs"


def test_the_sample_is_a_configuration_and_so_is_every_default_it_comments_out(tmp_path):
    path = tmp_path / "node.toml"
    path.write_text(config_file.render_sample())
    config = config_file.load(path, {})
    assert set(config.pipelines) == {"full", "transcribe", "translate-text", "speak"}
    before_stages = config_file.render_sample().partition("# [stages.NAME]")[0]
    loud = [line.removeprefix("# ") if " = " in line else line for line in before_stages.splitlines()]
    tree = tomllib.loads("\n".join(line for line in loud if not line.startswith("# ")))
    assert msgspec.convert(tree, Config) == Config()


def test_every_field_is_in_the_sample_the_environment_sample_and_the_reference_with_its_meaning():
    sample, env, page = config_file.render_sample(), config_file.render_env_sample(), config_file.render_reference()
    for section, _, rows in config_docs.sections():
        for row in rows:
            assert row.meaning, f"{section}.{row.name} has no comment in engine/config.py"
            assert f"# {row.name} = " in sample
            assert config_env.variable(f"{section}.{row.name}") + "=" in env
            assert f"| `{row.name}` |" in page


@pytest.mark.parametrize(
    ("variants", "says"),
    [
        ("[{}]", r"stages.asr.variants\[0\] is the stage as it is"),
        ("[{ compute_typ = 'int8' }]", r"variants\[0\].compute_typ is unknown; did you mean compute_type"),
        ("'int8'", "variants is 'int8'; it must be a list of tables"),
        ("['int8']", r"variants\[0\] is 'int8'; write it like { compute_type"),
        ("[{ compute_type = 'int9' }]", r"stages.asr.variants\[0\].compute_type is 'int9'; did you mean int8"),
        ("[]\ncompute_type = 'int9'", r"stages.asr.compute_type is 'int9'; did you mean int8"),
        ("[]\nmodels.big = { compute_type = 'int9' }", r"stages.asr.models.big.compute_type is 'int9'"),
        ("[{ options = { nonsense = 1 } }]", r"variants\[0\].options cannot be used: .*nonsense"),
    ],
)
def test_a_wrong_variant_is_named(tmp_path, variants, says):
    file = tmp_path / "node.toml"
    file.write_text(f"[stages.asr]\nmodel = 'models/asr'\nvariants = {variants}\n[pipelines]\nfull = ['asr']\n")
    with pytest.raises(ConfigError, match=says):
        config_file.load(file, {})


def test_variants_come_from_file_and_environment_and_their_paths_from_the_file_s_folder(tmp_path):
    file = tmp_path / "node.toml"
    file.write_text("[stages.asr]\nmodel = 'x'\nvariants = [{ model = 'models/s' }]\n[pipelines]\nfull = ['asr']\n")
    assert config_file.load(file, {}).stages["asr"].variants[0].model == str(tmp_path / "models/s")
    environ = {"DRAGOMAN_STAGES_ASR_VARIANTS": "[{ compute_type = 'int8' }]"}
    assert config_file.load(file, environ).stages["asr"].variants[0].compute_type == "int8"


def test_the_variables_of_the_environment_sample_are_understood(tmp_path):
    lines = [line[1:] for line in config_file.render_env_sample().splitlines() if line.startswith("#DRAGOMAN_")]
    assert len(lines) > 50
    lines = [line.replace("STAGES_NAME", "STAGES_ASR") for line in lines]
    env_file = tmp_path / "env"
    beside = ("_KIND=", "_OPTIONS=", "ASR_MODELS=")  # the last would take the further model away
    env_file.write_text("\n".join(line for line in lines if not any(name in line for name in beside)) + "\n")
    further = "[stages.asr.models.model]\noptions = {beam_size = 1}\n"
    (tmp_path / "node.toml").write_text(config_file.render_sample() + further)
    config = config_file.load(tmp_path / "node.toml", {}, env_file)
    assert (config.node, config.deadlines, config.devices) == (Config().node, Config().deadlines, Config().devices)
