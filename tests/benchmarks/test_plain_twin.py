"""The plain twin computes what the model computes, so that only the work differs."""

import pytest
import torch
from peft import LoraConfig, get_peft_model

from benchmarks.plain_twin import PlainPhi3VForCausalLM
from benchmarks.synthetic import configuration, random_model, training_batch

LORA = {
    "r": 4,
    "target_modules": ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"],
    "init_lora_weights": False,
    "task_type": "CAUSAL_LM",
}


@pytest.fixture
def model():
    return random_model(configuration("tiny"), torch.float32, "cpu").eval()


@pytest.fixture(params=["1:1", "2:3"])
def batch(model, request):
    return training_batch(
        model.config, num_crops=16, shape=request.param, pictures=2, device="cpu", dtype=torch.float32
    )


def test_shares_every_weight(model):
    twin = PlainPhi3VForCausalLM.sharing(model)
    ours, its = dict(model.named_parameters()), dict(twin.named_parameters())
    assert ours.keys() == its.keys()
    assert all(its[name] is weight for name, weight in ours.items())
    assert twin.config._attn_implementation == "eager"
    assert twin.config.vision_config._attn_implementation == "eager"
    assert model.config._attn_implementation == "sdpa"


def test_same_logits_and_loss(model, batch):
    twin = PlainPhi3VForCausalLM.sharing(model)
    with torch.no_grad():
        ours, its = model(**batch), twin(**batch)
        summed = [net(**batch, num_items_in_batch=torch.tensor(40)).loss for net in (model, twin)]
    supervised = batch["labels"][:, 1:] != -100
    assert its.logits.shape == (*batch["input_ids"].shape, model.config.vocab_size)
    torch.testing.assert_close(its.logits[:, :-1][supervised], ours.logits, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(its.loss, ours.loss, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(summed[1], summed[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_same_gradients(model, batch, checkpointing):
    gradients = []
    for net in (model, PlainPhi3VForCausalLM.sharing(model)):
        torch.manual_seed(0)
        tuned = get_peft_model(net, LoraConfig(**LORA)).train()
        if checkpointing:
            tuned.enable_input_require_grads()
            tuned.activation_checkpointing_enable({"use_reentrant": False})
        tuned(**batch).loss.backward()
        gradients.append({name: p.grad for name, p in tuned.named_parameters() if p.requires_grad})
    assert gradients[0]
    for name, gradient in gradients[0].items():
        assert gradient.abs().max() > 0, name
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-3, atol=1e-6)


def test_does_the_published_work(model, batch):
    """Padding crops are encoded, by every layer of the tower, and the head runs at every position."""
    twin = PlainPhi3VForCausalLM.sharing(model)
    tower = model.model.vision_embed_tokens.img_processor["vision_model"]
    its_tower = twin.model.vision_embed_tokens.img_processor["vision_model"]
    seen = {}
    for name, module in {
        "ours": tower.encoder.layers[0],
        "our last layer": tower.encoder.layers[-1],
        "its": its_tower.encoder.layers[0],
        "its last layer": its_tower.encoder.layers[-1],
        "its head": twin.lm_head,
    }.items():
        module.register_forward_hook(
            lambda module, inputs, output, name=name: seen.update({name: inputs[0].shape[0:2]})
        )
    with torch.no_grad():
        model(**batch)
        twin(**batch)
    assert seen["ours"][0] == len(batch["pixel_values"])
    assert "our last layer" not in seen
    assert seen["its"][0] == seen["its last layer"][0] == 2 * (16 + 1)
    assert seen["its head"] == batch["input_ids"].shape


def test_more_crops_than_it_pads_to(model, batch):
    twin = PlainPhi3VForCausalLM.sharing(model, num_crops=4)
    with pytest.raises(ValueError, match="more than num_crops, 4"):
        twin(**batch)


def test_loads_a_checkpoint_by_itself(model, batch, tmp_path):
    model.save_pretrained(tmp_path)
    twin = PlainPhi3VForCausalLM.from_pretrained(tmp_path, num_crops=17).eval()
    assert twin.num_crops == 17
    assert twin.config._attn_implementation == "eager"
    with torch.no_grad():
        torch.testing.assert_close(twin(**batch).loss, model(**batch).loss, rtol=1e-5, atol=1e-5)
