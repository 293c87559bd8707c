"""Phi-3-Vision: transformers' own Phi-3 decoder and CLIP tower, and only what joins them.

Modules are named so that the names of the parameters in memory are those of the published checkpoint: loading, saving
and adapters need no renaming.
"""

from typing import Any

import torch
from torch import nn
from transformers import CLIPVisionConfig, CLIPVisionModel, GenerationMixin
from transformers import initialization as init
from transformers.cache_utils import Cache
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.modeling_utils import slice_logits_to_keep
from transformers.models.phi3.modeling_phi3 import Phi3Model, Phi3PreTrainedModel, Phi3RotaryEmbedding
from transformers.utils.import_utils import torch_compilable_check

from fovea.phi3v.configuration import Phi3VConfig

END_OF_ANSWER_IDS = [32007, 32000, 2]
"""`<|end|>`, `<|endoftext|>` and `</s>`: any of them ends an answer."""


class Phi3VRotaryEmbedding(Phi3RotaryEmbedding):  # type: ignore[misc]
    """Rotary positions whose long or short factors are chosen for each sequence by itself.

    transformers chooses once for the batch, by its longest member. Then a sequence's result would depend on what else is
    in its batch. Nothing here waits for the device or changes state.
    """

    def __init__(self, config: Phi3VConfig) -> None:
        super().__init__(config)
        self.long_inv_freq = nn.Buffer(self.inv_freq.clone(), persistent=False)
        self.boundary = config.original_max_position_embeddings
        self.set_long_factors()

    def set_long_factors(self) -> None:
        """Fill the buffer that `from_pretrained` leaves empty."""
        if self.rope_type != "default":
            long, _ = ROPE_INIT_FUNCTIONS[self.rope_type](self.config, seq_len=self.boundary + 1)
            init.copy_(self.long_inv_freq, long)

    @torch.no_grad()
    def forward(self, x: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and sines, (batch, sequence, head size), in the type of `x`; `position_ids` (batch, sequence)."""
        positions = position_ids[..., None].float()
        long = position_ids.amax(dim=-1, keepdim=True)[..., None] >= self.boundary
        angles = positions * torch.where(long, self.long_inv_freq.float(), self.original_inv_freq.float())
        angles = torch.cat((angles, angles), dim=-1)
        cos, sin = angles.cos() * self.attention_scaling, angles.sin() * self.attention_scaling
        return cos.to(x.dtype), sin.to(x.dtype)


class Phi3VVisionTower(CLIPVisionModel):  # type: ignore[misc]
    """CLIP up to its second-to-last layer.

    The last layer and the norm after it are stored, so that a checkpoint is written back whole, but never run or trained.
    """

    config: CLIPVisionConfig

    def __init__(self, config: CLIPVisionConfig) -> None:
        super().__init__(config)
        self.encoder.layers[-1].requires_grad_(False)
        self.post_layernorm.requires_grad_(False)

    def get_input_embeddings(self) -> nn.Module:
        """None on purpose: gradient checkpointing of the decoder must not start a graph at the tower's pixels."""
        raise NotImplementedError

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Crops (n, 3, side, side) to the features of their patches (n, patches, hidden), without the class token."""
        hidden = self.pre_layrnorm(self.embeddings(pixel_values))
        for layer in self.encoder.layers[:-1]:
            hidden = layer(hidden, attention_mask=None)
        return hidden[:, 1:]


class Phi3VImageEmbedding(nn.Module):
    """From crops to what stands in the decoder's input."""

    def __init__(self, config: Phi3VConfig) -> None:
        super().__init__()
        tower = config.vision_config
        merged = 4 * tower.hidden_size
        self.crop_size: int = tower.image_size
        self.side: int = config.tokens_per_side
        self.img_processor = nn.ModuleDict({"vision_model": Phi3VVisionTower(tower)})
        self.sub_GN = nn.Parameter(torch.zeros(1, 1, 1, merged))
        self.glb_GN = nn.Parameter(torch.zeros(1, 1, merged))
        self.img_projection = nn.Sequential(
            nn.Linear(merged, config.hidden_size),
            nn.GELU(),
            nn.Linear(config.hidden_size, config.hidden_size),
        )

    def forward(
        self,
        embeddings: torch.Tensor,
        is_image: torch.Tensor,
        pixel_values: torch.Tensor,
        image_sizes: torch.Tensor,
    ) -> torch.Tensor:
        """Put image features at the placeholders.

        Args:
            embeddings: of the text, (batch, sequence, hidden).
            is_image: the placeholders, bool (batch, sequence). Their order is that of the images.
            pixel_values: (crops, 3, crop_size, crop_size), for each image its global view, then its crops row by row.
            image_sizes: (images, 2), padded height and width in pixels.

        Returns:
            New embeddings; the given ones are not changed.
        """
        grid = image_sizes.to(embeddings.device) // self.crop_size
        self._check(is_image, pixel_values, grid)
        features = self.img_processor["vision_model"](pixel_values)
        # Every row of the table is projected once, however often a separator is used.
        table = torch.cat([self._merge(features), self.sub_GN[0, 0], self.glb_GN[0]])
        table = self.img_projection(table).to(embeddings.dtype)
        rows = token_rows(is_image, grid, self.side, crops=len(pixel_values))
        return torch.where(is_image[..., None], table[rows], embeddings)

    def _merge(self, features: torch.Tensor) -> torch.Tensor:
        """Patches (crops, 4 * side * side, channels) to blocks of 2 x 2 (crops * side * side, 4 * channels)."""
        channels, side = features.shape[-1], self.side
        blocks = features.view(-1, side, 2, side, 2, channels).permute(0, 1, 3, 2, 4, 5)
        return blocks.reshape(-1, 4 * channels)

    def _check(self, is_image: torch.Tensor, pixel_values: torch.Tensor, grid: torch.Tensor) -> None:
        crops = 1 + grid.prod(dim=-1)
        tokens = crops * self.side**2 + 1 + (grid[:, 0] + 1) * self.side
        torch_compilable_check(
            (is_image.sum() == tokens.sum()) & (crops.sum() == len(pixel_values)),
            lambda: (
                f"input_ids hold {int(is_image.sum())} image placeholders and pixel_values {len(pixel_values)} crops, "
                f"but image_sizes ask for {int(tokens.sum())} and {int(crops.sum())}: use the processor that was "
                "stored with the model, and do not truncate"
            ),
        )


def token_rows(is_image: torch.Tensor, grid: torch.Tensor, side: int, crops: int) -> torch.Tensor:
    """For every position, the row of the table that stands there (any row where there is no image).

    The table holds `side * side` rows for each crop, then the end of a row of the layout, then the mark between the crops
    and the global view. An image is laid out as its crops, row by row over their whole width, then that mark, then its
    global view, each line with its end. All is arithmetic on tensors of fixed shapes, so that it neither waits for the
    device nor breaks a compiled graph.

    Args:
        is_image: bool (batch, sequence). grid: (images, 2), crops down and across. side: tokens along a side of a crop.

    Returns:
        long (batch, sequence).
    """
    down, across = grid.unbind(-1)
    crop_tokens = down * side * (across * side + 1)
    ends = (crop_tokens + 1 + side * (side + 1)).cumsum(0)
    crop_ends = (1 + down * across).cumsum(0)
    order = (is_image.flatten().cumsum(0) - 1).clamp(min=0)
    image = torch.searchsorted(ends, order, right=True).clamp(max=len(grid) - 1)
    # From here on, one value for each position.
    down, across, crop_tokens = down[image], across[image], crop_tokens[image]
    offset = order - ends[image] + crop_tokens + 1 + side * (side + 1)
    first_crop = crop_ends[image] - 1 - down * across
    in_crops = offset < crop_tokens
    line_length = torch.where(in_crops, across * side + 1, side + 1)
    within = torch.where(in_crops, offset, offset - crop_tokens - 1)
    line, column = within // line_length, within % line_length
    crop = first_crop + torch.where(in_crops, 1 + line // side * across + column // side, 0)
    row = crop * side**2 + line % side * side + column % side
    row = torch.where(column == line_length - 1, crops * side**2, row)
    row = torch.where(offset == crop_tokens, crops * side**2 + 1, row)
    return row.clamp(0, crops * side**2 + 1).view(is_image.shape)


class Phi3VPreTrainedModel(Phi3PreTrainedModel):  # type: ignore[misc]
    """What the model and its parts share with transformers' loading and saving."""

    config: Phi3VConfig
    input_modalities = ("image", "text")
    _no_split_modules = ["Phi3DecoderLayer", "CLIPEncoderLayer"]  # noqa: RUF012

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, Phi3VImageEmbedding):
            init.zeros_(module.sub_GN)
            init.zeros_(module.glb_GN)
        elif isinstance(module, Phi3VRotaryEmbedding):
            module.set_long_factors()


class Phi3VModel(Phi3VPreTrainedModel, Phi3Model):  # type: ignore[misc]
    """The Phi-3 decoder, whose input may hold images."""

    def __init__(self, config: Phi3VConfig) -> None:
        super().__init__(config)
        self.rotary_emb = Phi3VRotaryEmbedding(config)
        self.vision_embed_tokens = Phi3VImageEmbedding(config)
        self.post_init()

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        image_sizes: torch.Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """As `Phi3Model.forward`, with `pixel_values` and `image_sizes` as `Phi3VImageProcessor` makes them."""
        if pixel_values is not None and len(pixel_values):
            if input_ids is None or inputs_embeds is not None or image_sizes is None:
                raise ValueError(
                    "pixel_values need input_ids, to find their places, and image_sizes, and no inputs_embeds"
                )
            inputs_embeds = self.vision_embed_tokens(
                self.embed_tokens(input_ids),
                input_ids == self.config.image_token_id,
                pixel_values,
                image_sizes,
            )
            input_ids = None
        if position_ids is None and attention_mask is not None and attention_mask.dim() == 2:
            # Padding on the left takes no positions, so that it changes nothing.
            length = (inputs_embeds if input_ids is None else input_ids).shape[1]  # type: ignore[union-attr]
            position_ids = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)[:, -length:]
        return super().forward(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )


class Phi3VForCausalLM(Phi3VPreTrainedModel, GenerationMixin):  # type: ignore[misc]
    """Phi-3-Vision with its language model head.

    Every name of a parameter is the published checkpoint's. Safetensors only.
    """

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012

    def __init__(self, config: Phi3VConfig) -> None:
        super().__init__(config)
        self.model = Phi3VModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        # For checkpoints without a generation_config.json: config.json alone names only the text model's end.
        self.generation_config.eos_token_id = list(END_OF_ANSWER_IDS)
        self.generation_config.pad_token_id = config.pad_token_id
        self.post_init()

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> "Phi3VForCausalLM":
        """As in transformers, but safetensors only."""
        kwargs["use_safetensors"] = True
        model: Phi3VForCausalLM = super().from_pretrained(*args, **kwargs)
        return model

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        image_sizes: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """One pass. `input_ids` is never written to.

        Args:
            input_ids: (batch, sequence), with `config.image_token_id` where image tokens stand.
            pixel_values, image_sizes: all images of the batch, in the order of their places, as the processor makes them.
            labels: (batch, sequence), -100 where nothing is asked. Not shifted: position i is predicted from those
                before it. With labels there is no cache unless asked for.
            logits_to_keep: without labels, as in `Phi3ForCausalLM`: the last n positions (0: all), or the positions.

        Returns:
            With labels: `loss`, a mean, or the sum divided by `num_items_in_batch` where the Trainer gives that; and
            `logits` of the supervised positions alone, (positions, vocabulary), in the order of the batch. The head is
            run nowhere else. Without labels: `logits` (batch, kept positions, vocabulary).
        """
        num_items_in_batch = kwargs.pop("num_items_in_batch", None)
        if labels is not None and use_cache is None:
            use_cache = False
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            pixel_values=pixel_values,
            image_sizes=image_sizes,
            use_cache=use_cache,
            **kwargs,
        )
        hidden = outputs.last_hidden_state
        loss = None
        if labels is None:
            logits = self.lm_head(slice_logits_to_keep(hidden, logits_to_keep))
        else:
            targets = labels[:, 1:].to(hidden.device)
            supervised = targets != -100
            logits = self.lm_head(hidden[:, :-1][supervised])
            loss = self.loss_function(
                logits=logits,
                labels=None,
                shift_labels=targets[supervised],
                vocab_size=self.config.vocab_size,
                num_items_in_batch=num_items_in_batch,
            )
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def prepare_inputs_for_generation(
        self,
        input_ids: torch.Tensor,
        past_key_values: Cache | None = None,
        position_ids: torch.Tensor | None = None,
        is_first_iteration: bool | None = False,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """As in transformers; where a sequence outgrows the short rotary factors, begin again with the long ones."""
        if self._outgrows_short_factors(input_ids, past_key_values, position_ids):
            if kwargs.get("inputs_embeds") is not None:
                raise ValueError(
                    "generation from inputs_embeds cannot cross original_max_position_embeddings"
                )
            # As on the first step: the whole sequence, with its images.
            past_key_values, is_first_iteration, kwargs["next_sequence_length"] = None, True, None
        inputs: dict[str, Any] = super().prepare_inputs_for_generation(
            input_ids,
            past_key_values=past_key_values,
            position_ids=position_ids,
            is_first_iteration=is_first_iteration,
            **kwargs,
        )
        return inputs

    def _outgrows_short_factors(
        self, input_ids: torch.Tensor, cache: Cache | None, position_ids: torch.Tensor | None
    ) -> bool:
        boundary = self.config.original_max_position_embeddings
        cached = cache.get_seq_length() if cache is not None else 0
        if (
            not cached
            or input_ids.shape[1] <= boundary
            or self.config.rope_parameters["rope_type"] == "default"
        ):
            return False
        if position_ids is None:
            return bool(cached <= boundary)
        return bool(((position_ids[:, -1] >= boundary) & (position_ids[:, cached - 1] < boundary)).any())
