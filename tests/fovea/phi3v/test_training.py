"""Training: the loss, gradients, adapters, the Trainer and compilation."""

import copy

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch.nn.functional import cross_entropy
from transformers import Trainer, TrainingArguments

from fovea.phi3v import Phi3VForCausalLM

PROMPT = "<|user|>\n<|image_1|>What is it?<|end|><|assistant|>\n"
LORA = {
    "r": 4,
    "target_modules": ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"],
    "init_lora_weights": False,
    "task_type": "CAUSAL_LM",
}


@pytest.fixture(scope="module")
def batch_of(processor, picture):
    """Samples of different length, of which the answers alone are asked."""

    def make(count=2, padding_side="right"):
        texts = [f"{PROMPT}{answer}<|end|>" for answer in ("Product: Bag", "A pair of blue shoes")[:count]]
        pictures = [picture(1), picture(2, 30, 90)][:count]
        made = processor(texts, pictures, padding=True, padding_side=padding_side, return_tensors="pt")
        labels = made["input_ids"].masked_fill(made["attention_mask"] == 0, -100)
        for row, mask, shown in zip(labels, made["attention_mask"], pictures, strict=True):
            start = int(mask.argmax())
            row[start : start + len(processor(PROMPT, shown)["input_ids"][0])] = -100
        return {**made, "labels": labels}

    return make


@pytest.fixture(scope="module")
def batch(batch_of):
    """Two, padded on the right."""
    return batch_of()


def reference_loss(model, batch, reduction="mean"):
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    logits = model(**inputs).logits[:, :-1].flatten(0, 1).float()
    return cross_entropy(logits, batch["labels"][:, 1:].flatten(), reduction=reduction)


def own_loss(model, batch):
    return model(**batch).loss


def lora(model, **changes):
    torch.manual_seed(0)
    return get_peft_model(copy.deepcopy(model), LoraConfig(**LORA | changes))


def test_loss_of_the_answers_alone(model, batch):
    rows = []
    handle = model.lm_head.register_forward_pre_hook(lambda module, inputs: rows.append(inputs[0].shape[0]))
    try:
        with torch.no_grad():
            made = model(**batch)
    finally:
        handle.remove()
    supervised = int((batch["labels"][:, 1:] != -100).sum())
    assert rows == [supervised]
    assert made.logits.shape == (supervised, model.config.vocab_size)
    assert made.past_key_values is None
    torch.testing.assert_close(made.loss, reference_loss(model, batch), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize(("count", "padding_side"), [(1, "right"), (2, "right"), (2, "left")])
def test_the_last_layer_computes_answers_alone(
    rebuilt, batch_of, attention, count, padding_side, checkpointing
):
    """Loss and gradients are those of a pass that computes all positions in every layer."""
    batch = batch_of(count, padding_side)
    tuned = lora(rebuilt(attn_implementation=attention)).train()
    if checkpointing:
        tuned.get_base_model().activation_checkpointing_enable({"use_reentrant": False})
    lengths = []
    last = tuned.get_base_model().model.layers[-1]
    for module in (last.self_attn.o_proj, last.mlp):
        module.register_forward_pre_hook(lambda module, inputs: lengths.append(inputs[0].shape[1]))
    made, asked = [], (batch["labels"][:, 1:] != -100).any(0).sum()
    for loss_of, expected in ((reference_loss, len(batch["labels"][0])), (own_loss, asked)):
        tuned.zero_grad()
        loss = loss_of(tuned, batch)
        loss.backward()
        assert set(lengths) == {int(expected)}
        lengths.clear()
        made.append(
            (loss.detach(), {n: w.grad.clone() for n, w in tuned.named_parameters() if w.grad is not None})
        )
    (loss, gradients), (ours, its) = made
    torch.testing.assert_close(ours, loss, rtol=1e-5, atol=1e-6)
    assert gradients.keys() == its.keys() != set()
    for name, gradient in gradients.items():
        torch.testing.assert_close(
            its[name], gradient, rtol=1e-4, atol=1e-6, msg=lambda text, n=name: f"{n}: {text}"
        )


def test_loss_as_the_trainer_accumulates_it(model, batch):
    with torch.no_grad():
        total = reference_loss(model, batch, "sum")
        made = model(**batch, num_items_in_batch=torch.tensor(40))
    torch.testing.assert_close(made.loss, total / 40, rtol=1e-5, atol=1e-6)


def test_loss_in_float32(tiny, batch):
    half = Phi3VForCausalLM.from_pretrained(tiny, dtype=torch.bfloat16)
    with torch.no_grad():
        assert half(**batch).loss.dtype == torch.float32


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_changes_nothing(model, batch, reentrant):
    gradients = []
    for checkpointing in (False, True):
        tuned = lora(model).train()
        if checkpointing:
            tuned.enable_input_require_grads()
            tuned.activation_checkpointing_enable({"use_reentrant": reentrant})
        tuned(**batch).loss.backward()
        gradients.append(
            {name: weight.grad for name, weight in tuned.named_parameters() if weight.requires_grad}
        )
    assert gradients[0]
    for name, gradient in gradients[0].items():
        assert gradient.abs().max() > 0, name
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-4, atol=1e-7)


def test_full_gradients_with_checkpointing(model, batch):
    """Tower and projector learn too, except what nothing reads."""
    gradients = []
    for checkpointing in (False, True):
        whole = copy.deepcopy(model).train()
        if checkpointing:
            whole.activation_checkpointing_enable({"use_reentrant": False})
        whole(**batch).loss.backward()
        gradients.append({name: weight.grad for name, weight in whole.named_parameters()})
    for name, gradient in gradients[0].items():
        unread = "vision_model.encoder.layers.1." in name or "post_layernorm" in name
        assert (gradient is None) == unread, name
        if not unread:
            torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_no_graph_through_what_is_frozen(model, batch, checkpointing):
    tuned = lora(model).train()
    if checkpointing:
        tuned.enable_input_require_grads()
        tuned.activation_checkpointing_enable({"use_reentrant": False})
    embedding = tuned.get_base_model().model.vision_embed_tokens
    tracked = []
    for module in (embedding.img_processor["vision_model"], embedding.img_projection):
        module.register_forward_hook(lambda module, inputs, output: tracked.append(output.requires_grad))
    tuned(**batch)
    assert tracked == [False, False]


def test_adapters_touch_the_decoder_alone(model):
    adapted = [name for name, weight in lora(model).named_parameters() if weight.requires_grad]
    assert len(adapted) == 2 * 4 * model.config.num_hidden_layers
    assert all(name.startswith("base_model.model.model.layers.") for name in adapted)


def test_adapter_saves_loads_and_merges(model, batch, tiny, tmp_path):
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    tuned = lora(Phi3VForCausalLM.from_pretrained(tiny)).eval()
    with torch.no_grad():
        expected = tuned(**inputs).logits
        assert not torch.allclose(expected, model(**inputs).logits, atol=1e-3)
        tuned.save_pretrained(tmp_path / "adapter")
        loaded = PeftModel.from_pretrained(
            Phi3VForCausalLM.from_pretrained(tiny), tmp_path / "adapter"
        ).eval()
        torch.testing.assert_close(loaded(**inputs).logits, expected, rtol=0, atol=0)
        merged = loaded.merge_and_unload()
        torch.testing.assert_close(merged(**inputs).logits, expected, rtol=1e-4, atol=1e-4)
        merged.save_pretrained(tmp_path / "merged")
        again = Phi3VForCausalLM.from_pretrained(tmp_path / "merged").eval()
        torch.testing.assert_close(again(**inputs).logits, merged(**inputs).logits, rtol=0, atol=0)
    assert loaded.peft_config["default"].base_model_name_or_path == str(tiny)


@pytest.mark.parametrize("wrap", [copy.deepcopy, lora], ids=["plain", "lora"])
def test_the_trainer_smooths_the_right_labels(model, batch, tmp_path, wrap):
    tuned = wrap(model)
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        label_smoothing_factor=0.1,
        remove_unused_columns=False,
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
    )
    collate = lambda samples: {name: value.clone() for name, value in batch.items()}  # noqa: E731
    trainer = Trainer(tuned, arguments, eval_dataset=[{}], data_collator=collate)
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    logits = tuned.eval()(**inputs).logits[:, :-1].flatten(0, 1).float()
    expected = cross_entropy(logits, batch["labels"][:, 1:].flatten(), label_smoothing=0.1).item()
    torch.testing.assert_close(trainer.evaluate()["eval_loss"], expected, rtol=1e-4, atol=1e-4)


def test_the_trainer_takes_it_unchanged(model, batch, tmp_path):
    tuned = lora(model)
    before = {name: weight.clone() for name, weight in tuned.named_parameters()}

    def collate(samples):
        return {name: value.clone() for name, value in batch.items()}

    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=2,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        gradient_checkpointing=True,
        gradient_checkpointing_kwargs={"use_reentrant": False},
        learning_rate=1e-3,
        remove_unused_columns=False,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
    )
    trainer = Trainer(tuned, arguments, train_dataset=[{}] * 8, eval_dataset=[{}] * 2, data_collator=collate)
    assert trainer.model_accepts_loss_kwargs
    start = trainer.evaluate()["eval_loss"]
    trainer.train()
    torch.testing.assert_close(start, reference_loss(lora(model), batch).item(), rtol=1e-4, atol=1e-4)
    assert trainer.evaluate()["eval_loss"] < start
    for name, weight in tuned.named_parameters():
        assert weight.requires_grad != torch.equal(weight, before[name]), name


def test_a_training_step_compiles_to_one_graph(model, batch):
    tuned = lora(model).train()
    expected = tuned(**batch).loss
    compiled = torch.compile(tuned, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(**batch).loss, expected, rtol=1e-5, atol=1e-6)
