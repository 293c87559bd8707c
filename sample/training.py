"""Train the sample model from scratch, within minutes on two CPU cores.

There are two stages, because a tower learns faster from labels than through an untrained decoder.
First the tower and the projector are trained with a linear classifier on top; then the rest learns to answer.

`make sample-model` writes the weights that ship with the project.
"""

import json
import math
import random
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from torch.utils.data import DataLoader, Dataset

from fovea.memory import reuse_freed_memory
from fovea.phi3v import Phi3VConfig, Phi3VForCausalLM, Phi3VImageProcessor, Phi3VProcessor
from sample import general
from sample.drawing import COLOURS, KINDS, PATTERNS, SIZES, ProductLook, random_look, render
from sample.model import RECIPE_KEY, VOCABULARY_SIZE, WEIGHTS_FILE, remove_unused_tokens, small_ids
from sample.muon import Muon
from sample.tokenizer import count_learned, make_tokenizer

NUM_CROPS = 1
CROP_SIZE = 96
PATCH_SIZE = 16
_SIDE = CROP_SIZE // PATCH_SIZE // 2
_IGNORED = -100

ProgressCallback = Callable[[str, int, int], None]
"""Called with the name of the stage, the amount done, and the total."""


@dataclass(frozen=True)
class Recipe:
    """The training recipe of the sample model; the defaults take about six minutes on two cores."""

    seed: int = 0
    pictures: int = 12_000
    tower_steps: int = 800
    tower_batch: int = 64
    steps: int = 450
    batch: int = 44
    writing: int = 12
    """The number of examples per batch that dictate words and numbers, without a picture."""
    adam_rate: float = 2e-3
    muon_rate: float = 0.03


def write_sample_model(
    folder: Path, recipe: Recipe | None = None, progress: ProgressCallback | None = None
) -> None:
    """Train the sample model and write it in the shipped form: small vocabulary, bfloat16, under 6 MB.

    Args:
        folder: The folder to write, created if it does not exist. Files of an earlier model are replaced.
        recipe: The training recipe.
        progress: Called with the progress.
    """
    recipe = recipe or Recipe()
    small, processor = train(recipe, progress or (lambda what, done, total: None))
    folder.mkdir(parents=True, exist_ok=True)
    config = make_config(VOCABULARY_SIZE, processor.image_token_id)
    config.dtype = torch.bfloat16
    config.save_pretrained(folder)
    processor.save_pretrained(folder)
    remove_unused_tokens(folder)
    tensors = {name: tensor.bfloat16().contiguous() for name, tensor in small.state_dict().items()}
    save_file(tensors, folder / WEIGHTS_FILE, {RECIPE_KEY: json.dumps(asdict(recipe))})


def make_config(vocabulary_size: int, image_token_id: int) -> Phi3VConfig:
    """Return the small model's configuration."""
    hidden, heads = 160, 4
    return Phi3VConfig(
        architectures=["Phi3VForCausalLM"],
        vocab_size=vocabulary_size,
        image_token_id=image_token_id,
        hidden_size=hidden,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=131072,
        original_max_position_embeddings=4096,
        rope_scaling={
            "type": "su",
            "short_factor": [1.0] * (hidden // heads // 2),
            "long_factor": [32.0] * (hidden // heads // 2),
        },
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        tie_word_embeddings=False,
        vision_config={
            "hidden_size": 128,
            "intermediate_size": 384,
            # The last layer is stored but never run, as in the published tower.
            "num_hidden_layers": 5,
            "num_attention_heads": 4,
            "image_size": CROP_SIZE,
            "patch_size": PATCH_SIZE,
            "projection_dim": 128,
        },
    )


def train(recipe: Recipe, progress: ProgressCallback) -> tuple[Phi3VForCausalLM, Phi3VProcessor]:
    """Train the model; the same recipe gives the same model on the same machine.

    Returns:
        The model with the small vocabulary, and the processor of the published one.
    """
    # Otherwise, mapping memory for activations takes longer than the computation.
    reuse_freed_memory(keep=1 << 30)
    torch.manual_seed(recipe.seed)
    tokenizer = make_tokenizer(general.texts(5000, recipe.seed))
    processor = Phi3VProcessor(
        Phi3VImageProcessor(num_crops=NUM_CROPS, crop_size=CROP_SIZE, num_img_tokens=_SIDE**2), tokenizer
    )
    vocabulary = _Vocabulary(count_learned(tokenizer))
    small = Phi3VForCausalLM(make_config(vocabulary.size, int(vocabulary.small_of[processor.image_token_id])))
    _initialise(small)
    pictures = _draw_pictures(recipe, processor.image_processor, progress)
    _train_tower(small, pictures, recipe, progress)
    _train_to_answer(small, processor, vocabulary, pictures, recipe, progress)
    return small, processor


class _Vocabulary:
    """The ids that occur in training, numbered without gaps; the last one represents all unused ids."""

    def __init__(self, learned: int) -> None:
        self.small_of = torch.tensor(small_ids(learned))
        self.size = int(self.small_of.max()) + 1
        unused = int((self.small_of == self.size - 1).sum())
        # The row counts once for each id it represents, so that the loss is the full vocabulary's.
        self.logit_bias = torch.zeros(self.size)
        self.logit_bias[-1] = math.log(unused)


def _initialise(model: Phi3VForCausalLM) -> None:
    """Initialise positions, which CLIP's default would drown in noise, and words that are far apart."""
    vision = model.model.vision_embed_tokens
    embeddings: Any = vision.img_processor["vision_model"].embeddings
    with torch.no_grad():
        waves = _waves(CROP_SIZE // PATCH_SIZE, embeddings.embed_dim)
        embeddings.position_embedding.weight[1:] = 0.3 * waves
        vision.sub_GN.normal_(0, 0.02)
        vision.glb_GN.normal_(0, 0.02)
        # Input and output rows are equal: an adapter could not separate similar rows of the head later.
        words = torch.randn_like(model.lm_head.weight) / model.config.hidden_size**0.5
        model.model.embed_tokens.weight.copy_(words)
        model.lm_head.weight.copy_(words)


def _waves(side: int, width: int) -> torch.Tensor:
    """Return sines and cosines of a grid's coordinates: (side * side, width)."""
    frequencies = 20 ** (-torch.arange(width // 4) / (width / 4))
    down, across = torch.meshgrid(torch.arange(side).float(), torch.arange(side).float(), indexing="ij")
    angles = [axis.flatten()[:, None] * frequencies for axis in (down, across)]
    return torch.cat([wave(angle) for angle in angles for wave in (torch.sin, torch.cos)], dim=1)


@dataclass(frozen=True)
class _Pictures:
    """Random pictures, and their features.

    ``pixels`` are half floats, (n, 2, 3, side, side): a picture's global view and its one crop, which are
    identical.
    """

    pixels: torch.Tensor
    looks: Sequence[ProductLook]

    def shown(self) -> torch.Tensor:
        """Return kind, colour, pattern and size of each picture as numbers: (n, 4)."""
        names = (KINDS, tuple(COLOURS), tuple(PATTERNS), SIZES)
        return torch.tensor(
            [
                [
                    options.index(value)
                    for options, value in zip(names, (x.kind, x.colour, x.pattern, x.size), strict=True)
                ]
                for x in self.looks
            ]
        )


class _Drawer(Dataset[torch.Tensor]):
    """Draws the pictures, each from its own seed, so that the result does not depend on the process."""

    def __init__(self, recipe: Recipe, processor: Phi3VImageProcessor) -> None:
        self._recipe = recipe
        self._processor = processor

    def __len__(self) -> int:
        return self._recipe.pictures

    def look(self, index: int) -> tuple[ProductLook, random.Random]:
        rng = random.Random(f"{self._recipe.seed}/{index}")  # noqa: S311
        return random_look(rng), rng

    def __getitem__(self, index: int) -> torch.Tensor:
        look, rng = self.look(index)
        long = round(1.25 * CROP_SIZE)
        short = round(long * rng.uniform(0.7, 1.0))
        width, height = rng.choice([(long, short), (short, long), (long, long)])
        pixels: torch.Tensor = self._processor(render(look, width, height, rng))["pixel_values"]
        return pixels.half()


def _draw_pictures(recipe: Recipe, processor: Phi3VImageProcessor, progress: ProgressCallback) -> _Pictures:
    drawer = _Drawer(recipe, processor)
    batches = []
    # A few pictures are drawn faster than processes start.
    for batch in DataLoader(drawer, batch_size=100, num_workers=2 if len(drawer) > 1000 else 0):
        batches.append(batch)
        progress("drawing pictures", min(100 * len(batches), recipe.pictures), recipe.pictures)
    return _Pictures(torch.cat(batches), [drawer.look(index)[0] for index in range(recipe.pictures)])


class _Optimiser:
    """Muon for the inner matrices, AdamW for the rest; both with one schedule, a warm-up and half a cosine.

    Muon (Jordan et al., 2024) takes about half as many steps as AdamW here.
    """

    def __init__(self, module: nn.Module, recipe: Recipe, steps: int) -> None:
        outside = ("embedding", "embed_tokens", "lm_head", "readers")
        trained = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
        inside = [p for name, p in trained if p.ndim == 2 and not any(part in name for part in outside)]
        taken = {id(p) for p in inside}
        rest = [p for _, p in trained if id(p) not in taken]
        muon = Muon(inside, lr=recipe.muon_rate)
        adam = torch.optim.AdamW(rest, lr=recipe.adam_rate, betas=(0.9, 0.98), weight_decay=0.01)

        def rate(step: int) -> float:
            return min(1.0, (step + 1) / 50) * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * step / steps)))

        self._parameters = [p for _, p in trained]
        self._optimisers: list[torch.optim.Optimizer] = [muon, adam]
        self._schedules = [torch.optim.lr_scheduler.LambdaLR(each, rate) for each in self._optimisers]

    def step(self, loss: torch.Tensor) -> None:
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self._parameters, 1.0)
        for optimiser in self._optimisers:
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        for schedule in self._schedules:
            schedule.step()


class _TowerReader(nn.Module):
    """The tower and the projector, with linear classifiers on their output for one crop."""

    def __init__(self, model: Phi3VForCausalLM) -> None:
        super().__init__()
        self.vision: Any = model.model.vision_embed_tokens
        width = model.config.hidden_size
        self.readers = nn.ModuleList(
            nn.Linear(width, len(names)) for names in (KINDS, COLOURS, PATTERNS, SIZES)
        )

    def forward(self, crops: torch.Tensor) -> list[torch.Tensor]:
        features = self.vision.img_projection(self.vision.merged_features(crops))
        pooled = features.view(len(crops), _SIDE**2, -1).mean(dim=1)
        return [reader(pooled) for reader in self.readers]


def _train_tower(
    model: Phi3VForCausalLM, pictures: _Pictures, recipe: Recipe, progress: ProgressCallback
) -> None:
    reader = _TowerReader(model)
    optimiser = _Optimiser(reader, recipe, recipe.tower_steps)
    lot = torch.Generator().manual_seed(recipe.seed)
    shown = pictures.shown()
    for step in range(recipe.tower_steps):
        chosen = torch.randint(len(shown), (recipe.tower_batch,), generator=lot)
        readings = reader(_mirrored(pictures.pixels[chosen, 1].float(), lot))
        losses = [nn.functional.cross_entropy(made, shown[chosen, n]) for n, made in enumerate(readings)]
        optimiser.step(torch.stack(losses).sum())
        progress("learning to see", step + 1, recipe.tower_steps)


def _mirrored(pixels: torch.Tensor, lot: torch.Generator) -> torch.Tensor:
    """Mirror half of the pictures horizontally: (n, …, side, side)."""
    flip = torch.randint(2, (len(pixels),), generator=lot).bool()
    return torch.where(flip.view(-1, *[1] * (pixels.ndim - 1)), pixels.flip(-1), pixels)


def _train_to_answer(
    model: Phi3VForCausalLM,
    processor: Phi3VProcessor,
    vocabulary: _Vocabulary,
    pictures: _Pictures,
    recipe: Recipe,
    progress: ProgressCallback,
) -> None:
    model.model.vision_embed_tokens.img_processor.requires_grad_(False)
    optimiser = _Optimiser(model, recipe, recipe.steps)
    lot = torch.Generator().manual_seed(recipe.seed)
    rng = random.Random(recipe.seed)  # noqa: S311
    model.train()
    for step in range(recipe.steps):
        chosen = torch.randint(len(pictures.looks), (recipe.batch - recipe.writing,), generator=lot)
        batch = _conversations([pictures.looks[index] for index in chosen], recipe.writing, processor, rng)
        batch["pixel_values"] = _mirrored(pictures.pixels[chosen].float(), lot).flatten(0, 1)
        batch["input_ids"] = vocabulary.small_of[batch["input_ids"]]
        asked = batch["labels"] != _IGNORED
        batch["labels"] = torch.where(asked, vocabulary.small_of[batch["labels"].clamp(min=0)], _IGNORED)
        logits = model(**batch).logits
        targets = batch["labels"][:, 1:][asked[:, 1:]]
        optimiser.step(nn.functional.cross_entropy(logits + vocabulary.logit_bias, targets))
        progress("learning to answer", step + 1, recipe.steps)


def _conversations(
    looks: Sequence[ProductLook], writing: int, processor: Phi3VProcessor, rng: random.Random
) -> dict[str, torch.Tensor]:
    """Return questions and answers with and without pictures; only the answers are supervised."""
    described = [general.describe(look, rng) for look in looks]
    written = [general.write(rng) for _ in range(writing)]
    prompts = [general.prompt(question, rng, picture=True) for question, _ in described]
    prompts += [general.prompt(question, rng, picture=False) for question, _ in written]
    answers = [f"{answer}<|end|>" for _, answer in described + written]
    # All pictures take the same number of tokens, so any of the right size can replace those drawn before.
    blank = Image.new("RGB", (CROP_SIZE, CROP_SIZE))
    batch = dict(
        processor(
            text=[prompt + answer for prompt, answer in zip(prompts, answers, strict=True)],
            images=[[blank]] * len(looks) + [[]] * writing,
            return_tensors="pt",
            padding=True,
            padding_side="right",
        )
    )
    labels = torch.full_like(batch["input_ids"], _IGNORED)
    for row, answer in enumerate(answers):
        end = int(batch["attention_mask"][row].sum())
        start = end - len(processor.tokenizer(answer, add_special_tokens=False).input_ids)
        labels[row, start:end] = batch["input_ids"][row, start:end]
    return {**batch, "labels": labels}


if __name__ == "__main__":
    write_sample_model(
        Path(sys.argv[1]),
        progress=lambda what, done, total: print(f"{what}: {total}") if done == total else None,
    )
