"""Language models: the papers' recipes, and a run from files to its exam."""

import json
import operator
from itertools import count

import jax
import numpy as np
import pytest

pytest.importorskip("tokenizers", reason="needs peftjax[text]")

import peftjax as pj
from experiments import examine, finetune, outlook, tasks
from experiments.chat import Talk
from experiments.checks import UnfitSettings
from experiments.hparams import lines
from experiments.run import Run
from experiments.tasks.task import UnreadableData
from peftjax.evaluation import answer
from peftjax.hub import files
from peftjax.models import load, save
from peftjax.models.files import Tensor
from peftjax.models.layers import stack_layers
from peftjax.parallel import sharding
from peftjax.training.loop import Preempted
from tests.helpers.config_case import get
from tests.helpers.llm_case import FOLDER, SETTINGS, tiny_llama

pytestmark = pytest.mark.slow

TURNS = (
    "{% for m in messages %}{{ m.role[0] ~ ': ' ~ m.content ~ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}a: {% endif %}"
)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A tiny model with its tokenizer and template, and problems of addition."""
    folder = tmp_path_factory.mktemp("llm")
    save(folder / "model", *tiny_llama())
    for name, text in {
        "tokenizer.json": (FOLDER / "tokenizer.json").read_text(),
        "tokenizer_config.json": json.dumps({"eos_token": "</s>"}),
        "chat_template.jinja": TURNS,
    }.items():
        (folder / "model" / name).write_text(text)
    (folder / "gsm8k").mkdir()
    draw = np.random.default_rng(0).integers(0, 50, (170, 2))
    rows = [
        {
            "question": f"add {a} and {b}.",
            "answer": f"{a} and {b}: {a + b}\n#### {a + b}",
        }
        for a, b in draw.tolist()
    ]
    for name, part in {"train": rows[:160], "test": rows[160:]}.items():
        text = "\n".join(map(json.dumps, part))
        (folder / "gsm8k" / f"{name}.jsonl").write_text(text)
    return folder


def config(place, **changes):
    found = get("llm.smollm2_gsm8k", "method=lora")
    found.model.settings = dict(SETTINGS)
    found.paths.update(
        {"model": str(place / "model"), "data": str(place), "package": ""}
    )
    found.paths.cache = str(place / "cache")
    found.data.update({"eos": "</s>", "max_length": 64, "pack": 96, "held_out": 0.1})
    found.data.buckets = (64,)
    found.train.update({"batch": 8, "eval_batch": 8})
    found.exam.update({"examples": 4, "steps": 8, "batch": 4})
    for name, value in changes.items():
        found.data[name] = value
    return found


@pytest.fixture(scope="module")
def done(place):
    folder = place / "done"
    return folder, finetune.run(config(place), folder)


def test_a_run_reports_loss_exam_and_what_its_data_were(done):
    folder, result = done
    assert result["status"] == "finished" and result["metric"] == "exact_match"
    scores = result["scores"]
    assert scores["problems"] == 4 and 0 <= scores["exact_match"] <= 1
    assert scores["perplexity"] == pytest.approx(np.exp(scores["loss"]))
    train, held, test = result["data"]
    assert (train["split"], train["examples"], train["left_out"]) == ("train", 144, 0)
    assert held["examples"] == 16 and test["examples"] == 10
    # Several examples in a row: fewer rows than examples.
    assert result["examples"]["train"] < 72 and (folder / "adapter.json").exists()


def test_a_run_stopped_within_an_epoch_of_packed_rows_ends_with_the_same_bits(
    place, done
):
    folder, result = done
    calls = count(1)
    with pytest.raises(Preempted) as caught:
        finetune.run(config(place), place / "cut", stop=lambda: next(calls) == 3)
    assert caught.value.step == 3 < result["selected_step"]
    phases = []
    finetune.run(
        config(place),
        place / "cut",
        resume=True,
        tell=lambda phase, **_: phases.append(phase),
    )
    assert phases[-1] == "examining, 4 done"
    name = "adapter.safetensors"
    assert (place / "cut" / name).read_bytes() == (folder / name).read_bytes()
    first, second = (
        [line for line in (x / "metrics.jsonl").read_text().splitlines()][-1]
        for x in (folder, place / "cut")
    )
    assert json.loads(first)["eval"] == json.loads(second)["eval"]


def test_the_base_is_read_into_its_shards(place, monkeypatch):
    at, part, read = sharding.of_leaf, Tensor.part, []

    def counted(tensor, index):
        read.append(part(tensor, index).size)
        return part(tensor, index)

    # the model is tiny
    monkeypatch.setattr(sharding, "of_leaf", lambda leaf, mesh, _=0: at(leaf, mesh, 64))
    monkeypatch.setattr(Tensor, "part", counted)
    _, whole = load(place / "model")
    largest, once = max(read), sum(read)
    read.clear()
    one = Run(config(place))
    assert sum(read) == once and max(read) < largest
    jax.tree.map(np.testing.assert_array_equal, whole, one.base)
    split = [x for x in jax.tree.leaves(one.base) if "fsdp" in x.sharding.spec]
    assert len(split) > 5 and split[0].sharding.mesh == one.programs.mesh
    assert all(map(operator.is_, *map(jax.tree.leaves, (one.base, one.sharded))))


def test_packed_and_padded_rows_lose_the_same(place):
    packed, padded = config(place), config(place, pack=0)
    losses = []
    for one in (packed, padded):
        family = tasks.family(one)
        outline = family.outline(one)
        base = family.base(one, outline)
        arrays = family.data(one, choose=True).train
        rows = {name: column[np.arange(len(column))] for name, column in arrays.items()}

        def run(batch, outline=outline, base=base):
            def apply(*args, train=False, rngs=None, **kwargs):
                return outline.model.apply(base, *args, **kwargs)

            return outline.outputs(apply, batch)["outputs"].sum(0)

        losses.append(np.asarray(jax.jit(run)(rows)))
    assert losses[0][1] == losses[1][1]
    np.testing.assert_allclose(losses[0][0], losses[1][0], rtol=1e-5)


def test_examining_the_base_and_the_run(place, done, monkeypatch, capsys):
    folder, result = done
    source = "configs/llm/smollm2_gsm8k.py"
    monkeypatch.setattr(examine.cli.Source, "config", lambda self: config(place))
    examine.main(["--config", source, "--adapter", str(folder)])
    found = json.loads(capsys.readouterr().out)
    assert found["exact_match"] == result["scores"]["exact_match"]
    examine.main(["--config", source])
    assert json.loads(capsys.readouterr().out)["problems"] == 4
    odd = config(place, eos="<none>")
    monkeypatch.setattr(examine.cli.Source, "config", lambda self: odd)
    with pytest.raises(SystemExit, match="UnreadableData.*data.eos='<none>'"):
        examine.main(["--config", source])


def test_rows_that_cannot_be_learned_from_are_told_in_one_line(place, tmp_path):
    columns = config(place, kind="instructions", files={"train": "gsm8k/train.jsonl"})
    for odd, told in (
        (columns, "row 1: no column 'instruction'; expected"),
        (config(place, max_length=4), "none of .* token to learn within 4 tokens"),
    ):
        with pytest.raises(UnreadableData, match=f"smollm2_gsm8k, gsm8k: .*{told}"):
            finetune.run(odd, tmp_path / "run")


def scanned(place, adapter, path):
    """Save the adapters of unrolled layers as those of scanned ones."""
    rules, kept = files.read_rules(adapter), {}
    for scan in (False, True):
        model, variables = load(place / "model", head="lm", scan_layers=scan)
        ids = np.ones((1, 4), np.int32)
        peft = pj.adapt(model.apply, variables, ids, rules=rules)
        if scan:
            files.save(path, peft, stack_layers(kept, "layers"), variables)
        else:
            kept = files.load(adapter, peft, variables)
    return path


@pytest.mark.parametrize("merged", [False, True])
def test_a_talk_is_the_greedy_answer_in_pieces(place, done, merged, tmp_path):
    folder, _ = done
    adapter = examine.adapter(folder)
    if merged:  # of a run whose layers are scanned
        adapter = scanned(place, adapter, tmp_path / "scanned.safetensors")
    talk = Talk(place / "model", adapter, merged, steps=10)
    pieces = list(talk.answer("add 1 and 2."))
    prompt = "u: add 1 and 2.</s>a: "
    rest = {"steps": 10, "eos": 2, "apply": talk.apply}
    (expected,) = answer(talk.model, talk.params, talk.tokenizer, [prompt], **rest)
    assert "".join(pieces) == expected == talk.said[-1]["content"]
    assert talk.model.scan_layers == merged


@pytest.mark.parametrize(
    ("name", "method", "trainable"),
    [
        ("llama2_7b_dolly", "hydralora", 8_388_608 + 786_432),
        ("llama2_7b_dolly", "hydralora_mlp", 15_826_944 + 2_457_600),
        ("llama2_7b_dolly", "lora8", 4_194_304),
        ("llama_flan_bbh", "hydralora", 23_068_672 + 2_621_440),
        ("llama2_7b_metamath", "hra0", 8_388_608),
        ("llama2_7b_metamath", "hra_inf", 8_388_608),
    ],
)
def test_trainable_parameters_are_the_papers(name, method, trainable):
    found = outlook.prospect(get(f"llm.{name}", f"method={method}"))
    assert found.trainable == trainable


def recipe(experiment):
    rows = lines("llm_composition")
    return {row["key"]: row["value"] for row in rows if row["experiment"] == experiment}


def test_recipes_are_the_published_ones():
    told, one = recipe("HydraLoRA LLM"), get("llm.llama2_7b_dolly", "method=hydralora")
    assert one.optim.lr == float(told["learning_rate"]) and one.train.epochs == 1
    assert one.optim.warmup == float(told["warmup_ratio"])
    assert one.data.max_length == int(told["max_seq_len"])
    method = one.rules[0][1]
    assert method.alpha == float(told["lora_alpha"]) and method.heads == 3
    assert method.dropout == float(told["dropout"]) and one.seed == int(told["seed"])
    assert one.train.batch == int(told["grad_accumulation"])
    told = recipe("HRA maths")
    for method, rate in (("hra0", 1e-5), ("hra_lambda", 3e-5), ("hra_inf", 1e-3)):
        one = get("llm.llama2_7b_metamath", f"method={method}")
        assert one.optim.lr == rate and one.train.epochs == int(told["epochs"])
        assert one.optim.warmup == float(told["warmup_ratio"])
        assert one.data.max_length == int(told["max_len"])


def test_only_the_last_step_is_reported(place):
    found = config(place)
    found.selection = "best_on_validation"
    with pytest.raises(UnfitSettings, match="expected 'last'"):
        tasks.family(found).outline(found)
