"""Phi-3-Vision: transformers' Phi-3 decoder and CLIP tower, and the parts that connect them.

Modules are named so that parameters have the same names in memory as in the published checkpoint:
loading, saving and adapters need no renaming.
"""

from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers import CLIPVisionConfig, CLIPVisionModel, GenerationConfig, GenerationMixin
from transformers import initialization as init
from transformers.cache_utils import Cache
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, slice_logits_to_keep
from transformers.models.phi3.modeling_phi3 import (
    Phi3Attention,
    Phi3DecoderLayer,
    Phi3Model,
    Phi3PreTrainedModel,
    Phi3RotaryEmbedding,
    apply_rotary_pos_emb,
    eager_attention_forward,
)
from transformers.utils.import_utils import torch_compilable_check

from fovea.phi3v.configuration import Phi3VConfig

END_OF_ANSWER_IDS = (32007, 32000, 2)
"""`<|end|>`, `<|endoftext|>` and `</s>`: each of them ends an answer."""

IGNORED_LABEL = -100


class Phi3VRotaryEmbedding(nn.Module):
    """Rotary positions with short or long factors chosen for each sequence separately.

    transformers' Phi-3 chooses once for a batch, by its longest sequence, so that a result depends on the
    rest of the batch. This class also never waits for the device, and casts of the model do not affect the
    frequencies, which must stay float32.
    """

    def __init__(self, config: Phi3VConfig) -> None:
        super().__init__()
        rope_type = config.rope_parameters["rope_type"]
        self.boundary: int = config.original_max_position_embeddings
        with torch.device("cpu"):  # even while the model is built on the meta device
            if rope_type == "default":
                short, self.attention_scaling = Phi3RotaryEmbedding.compute_default_rope_parameters(config)
                long = short
            else:
                compute = ROPE_INIT_FUNCTIONS[rope_type]
                short, self.attention_scaling = compute(config)
                long, _ = compute(config, seq_len=self.boundary + 1)
            self.frequencies = torch.stack([short, long])

    @torch.no_grad()
    def forward(self, x: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return cosines and sines (batch, sequence, head size), in the dtype of `x`.

        Args:
            x: determines dtype and device.
            position_ids: (batch, sequence).
        """
        if self.frequencies.device != x.device:
            self.frequencies = self.frequencies.to(x.device)
        short, long = self.frequencies
        is_long = position_ids.amax(dim=-1, keepdim=True)[..., None] >= self.boundary
        angles = position_ids[..., None].float() * torch.where(is_long, long, short)
        angles = torch.cat((angles, angles), dim=-1)
        cos, sin = angles.cos() * self.attention_scaling, angles.sin() * self.attention_scaling
        return cos.to(x.dtype), sin.to(x.dtype)


class Phi3VVisionTower(CLIPVisionModel):  # type: ignore[misc]
    """CLIP up to its second-to-last layer.

    The last layer and the norm after it are kept to write a checkpoint back completely, but never run.
    """

    config: CLIPVisionConfig

    def get_input_embeddings(self) -> nn.Module:
        """Return None: checkpointing the decoder must not start a graph at the tower's pixels."""
        raise NotImplementedError

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Return the features (n, patches, hidden) of crops (n, 3, side, side), without the class token."""
        hidden: torch.Tensor = self.pre_layrnorm(self.embeddings(pixel_values))
        for layer in self.encoder.layers[:-1]:
            hidden = layer(hidden, attention_mask=None)
        return hidden[:, 1:]


class Phi3VImageEmbedding(nn.Module):
    """Converts crops to embeddings for the decoder's input."""

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
        """Return new embeddings with the image features at the placeholders.

        Args:
            embeddings: of the text, (batch, sequence, hidden).
            is_image: the placeholders, bool (batch, sequence). Their order is that of the images.
            pixel_values: (crops, 3, crop_size, crop_size), for each image its global view, then its crops
                row by row.
            image_sizes: (images, 2), padded height and width in pixels.

        Raises:
            ValueError: the numbers of placeholders, crops and sizes do not match.
        """
        grid = image_sizes.to(embeddings.device) // self.crop_size
        self._check(is_image, pixel_values, grid)
        features = self.merged_features(pixel_values)
        # Every row of the table is projected once, even if a separator is used often.
        table = torch.cat([features, self.sub_GN[0, 0], self.glb_GN[0]])
        table = self.img_projection(table).to(embeddings.dtype)
        rows = token_rows(is_image, grid, self.side, crops=len(pixel_values))
        return torch.where(is_image[..., None], functional.embedding(rows, table), embeddings)

    def merged_features(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Merge crops (n, 3, crop_size, crop_size) to 2 x 2 patches: (n * side**2, 4 * channels)."""
        features = self.img_processor["vision_model"](pixel_values)
        channels, side = features.shape[-1], self.side
        blocks: torch.Tensor = features.reshape(-1, side, 2, side, 2, channels).permute(0, 1, 3, 2, 4, 5)
        return blocks.reshape(-1, 4 * channels)

    def _check(self, is_image: torch.Tensor, pixel_values: torch.Tensor, grid: torch.Tensor) -> None:
        crops, tokens = crop_counts(grid).sum(), token_counts(grid, self.side).sum()
        torch_compilable_check(
            (is_image.sum() == tokens) & (crops == len(pixel_values)),
            lambda: (
                f"input_ids have {int(is_image.sum())} image placeholders, pixel_values {len(pixel_values)} "
                f"crops, but image_sizes need {int(tokens)} and {int(crops)}: "
                "use the processor stored with the model, and do not truncate"
            ),
        )


def crop_counts(grid: torch.Tensor) -> torch.Tensor:
    """Return the crops of each image, with its global view; `grid` (images, 2) counts down and across."""
    return 1 + grid.prod(dim=-1)


def token_counts(grid: torch.Tensor, side: int) -> torch.Tensor:
    """Return the tokens of each image; `side` is the number of a crop's tokens along one side."""
    return crop_counts(grid) * side**2 + 1 + (grid[:, 0] + 1) * side


def token_rows(is_image: torch.Tensor, grid: torch.Tensor, side: int, crops: int) -> torch.Tensor:
    """Return for every position the row of the feature table to use (arbitrary outside of images).

    The table has side**2 rows for each crop, then the end of a line, then the separator between crops and
    global view. An image consists of its crops, line by line over their whole width, the separator, and
    its global view, each line with its end. The computation uses tensors of fixed shapes, so that it
    neither waits for the device nor breaks a compiled graph.

    Args:
        is_image: bool (batch, sequence).
        grid: (images, 2), crops down and across.
        side: tokens along one side of a crop.
        crops: the number of crops in the table.

    Returns:
        long (batch, sequence).
    """
    order = (is_image.flatten().cumsum(0) - 1).clamp(min=0)
    ends = token_counts(grid, side).cumsum(0)
    image = torch.searchsorted(ends, order, right=True).clamp(max=len(grid) - 1)
    first_crop = (crop_counts(grid).cumsum(0) - crop_counts(grid))[image]
    offset = order - (ends - token_counts(grid, side))[image]
    down, across = grid[image].unbind(-1)
    mark = down * side * (across * side + 1)

    in_crops = offset < mark
    line_length = torch.where(in_crops, across * side, side) + 1
    within = torch.where(in_crops, offset, offset - mark - 1)
    line, column = within // line_length, within % line_length
    crop = first_crop + torch.where(in_crops, 1 + line // side * across + column // side, 0)
    row = crop * side**2 + line % side * side + column % side

    line_end, view_mark = crops * side**2, crops * side**2 + 1
    row = torch.where(column == line_length - 1, line_end, row)
    row = torch.where(offset == mark, view_mark, row)
    return row.clamp(0, view_mark).view(is_image.shape)


class Phi3VLastAttention(Phi3Attention):  # type: ignore[misc]
    """Attention of selected positions to all."""

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        attention_mask: torch.Tensor | None,
        past_key_values: Cache | None = None,
        positions_to_keep: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Attend as `Phi3Attention.forward`, from `positions_to_keep` only if they are given."""
        if positions_to_keep is None:
            made: tuple[torch.Tensor, torch.Tensor | None] = super().forward(
                hidden_states, position_embeddings, attention_mask, past_key_values, **kwargs
            )
            return made
        config, kind = self.config, self.config._attn_implementation
        heads = self.qkv_proj(hidden_states).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
        query, key, value = heads.split(
            [config.num_attention_heads, config.num_key_value_heads, config.num_key_value_heads], dim=1
        )
        query, key = apply_rotary_pos_emb(query, key, *position_embeddings)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)
        # Other implementations need as many queries as keys, and a compiled graph needs a fixed number:
        # compute all positions and select afterwards.
        chosen = kind in ("eager", "sdpa") and not torch.compiler.is_compiling()
        if chosen:
            query = query[:, :, positions_to_keep]
            attention_mask = _rows_of(attention_mask, positions_to_keep, hidden_states.shape[1], key.shape[2])
        attended, weights = ALL_ATTENTION_FUNCTIONS.get_interface(kind, eager_attention_forward)(
            self,
            query,
            key,
            value,
            attention_mask,
            dropout=self.attention_dropout if self.training else 0.0,
            scaling=self.scaling,
            sliding_window=config.sliding_window,
            **kwargs,
        )
        attended = attended.flatten(2)
        return self.o_proj(attended if chosen else attended[:, positions_to_keep]), weights


def _rows_of(mask: torch.Tensor | None, positions: torch.Tensor, queries: int, keys: int) -> torch.Tensor:
    """Return the selected rows of a mask (batch, 1, queries, keys); None is the causal mask."""
    if mask is not None:
        return mask[:, :, positions]
    causal = torch.arange(keys, device=positions.device) <= positions[:, None] + (keys - queries)
    return causal[None, None]


class Phi3VLastLayer(Phi3DecoderLayer):  # type: ignore[misc]
    """The decoder's last layer, which can skip unused positions; other layers need every position."""

    def __init__(self, config: Phi3VConfig, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        self.self_attn = Phi3VLastAttention(config, layer_idx)

    def forward(
        self, hidden_states: torch.Tensor, positions_to_keep: torch.Tensor | None = None, **kwargs: Any
    ) -> torch.Tensor:
        """Run as `Phi3DecoderLayer.forward`; `positions_to_keep` (kept,) gives (batch, kept, hidden)."""
        attended, _ = self.self_attn(
            hidden_states=self.input_layernorm(hidden_states), positions_to_keep=positions_to_keep, **kwargs
        )
        if positions_to_keep is not None:
            hidden_states = hidden_states[:, positions_to_keep]
        hidden_states = hidden_states + self.resid_attn_dropout(attended)
        transformed = self.mlp(self.post_attention_layernorm(hidden_states))
        made: torch.Tensor = hidden_states + self.resid_mlp_dropout(transformed)
        return made


class Phi3VPreTrainedModel(Phi3PreTrainedModel):  # type: ignore[misc]
    """The shared base for transformers' loading and saving."""

    config: Phi3VConfig
    input_modalities = ("image", "text")
    _no_split_modules = ["Phi3DecoderLayer", "Phi3VLastLayer", "CLIPEncoderLayer"]  # noqa: RUF012

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, Phi3VImageEmbedding):
            init.zeros_(module.sub_GN)
            init.zeros_(module.glb_GN)


class Phi3VModel(Phi3VPreTrainedModel, Phi3Model):  # type: ignore[misc]
    """The Phi-3 decoder, whose input can contain images."""

    def __init__(self, config: Phi3VConfig) -> None:
        super().__init__(config)
        self.layers[-1] = Phi3VLastLayer(config, config.num_hidden_layers - 1)
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
        """Run as `Phi3Model.forward`, with images as produced by `Phi3VImageProcessor`.

        With `positions_to_keep` (kept,), as a keyword, the last hidden state is (batch, kept, hidden): the
        last layer computes only these positions, and has no attention weights of others.
        """
        if pixel_values is not None and len(pixel_values):
            if input_ids is None or inputs_embeds is not None or image_sizes is None:
                raise ValueError("pixel_values need input_ids and image_sizes, and exclude inputs_embeds")
            inputs_embeds = self.vision_embed_tokens(
                self.embed_tokens(input_ids),
                input_ids == self.config.image_token_id,
                pixel_values,
                image_sizes,
            )
        elif inputs_embeds is None:
            inputs_embeds = self.embed_tokens(input_ids)
        if position_ids is None and attention_mask is not None and attention_mask.dim() == 2:
            # Left padding takes no positions, and therefore changes nothing.
            positions = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)
            position_ids = positions[:, -inputs_embeds.shape[1] :]
        return super().forward(
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )


class Phi3VForCausalLM(Phi3VPreTrainedModel, GenerationMixin):  # type: ignore[misc]
    """Phi-3-Vision with its language model head.

    Every parameter has the name of the published checkpoint. Weights are read only from safetensors.
    """

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012

    def __init__(self, config: Phi3VConfig) -> None:
        super().__init__(config)
        self.model = Phi3VModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.generation_config = GenerationConfig(
            bos_token_id=config.bos_token_id, pad_token_id=config.pad_token_id
        )
        self._end_answers()
        self.post_init()

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """Load as in transformers, but only from safetensors."""
        return super().from_pretrained(*args, **kwargs | {"use_safetensors": True})

    def adjust_generation_fn(
        self, generation_config: GenerationConfig | None, *args: Any, **kwargs: Any
    ) -> None:
        """Set the end-of-answer tokens of the training, regardless of the checkpoint."""
        super().adjust_generation_fn(generation_config, *args, **kwargs)
        if generation_config is None:
            self._end_answers()

    def _end_answers(self) -> None:
        """Stop at `END_OF_ANSWER_IDS`: published files have only the text model's end token, or none."""
        stored = self.generation_config.eos_token_id
        others = [stored] if isinstance(stored, int) else stored or []
        self.generation_config.eos_token_id = list(dict.fromkeys([*END_OF_ANSWER_IDS, *others]))

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
        """Run one forward pass. `input_ids` is not modified.

        Args:
            input_ids: (batch, sequence), with `config.image_token_id` for each image token.
            attention_mask: (batch, sequence), 0 for padding, on either side.
            position_ids: (batch, sequence); computed from the mask if not given.
            past_key_values: the cache of earlier positions.
            inputs_embeds: (batch, sequence, hidden), instead of `input_ids`; not together with images.
            pixel_values: the crops of all images of the batch, in the order of their places, as produced by
                `Phi3VImageProcessor`.
            image_sizes: (images, 2), as produced by `Phi3VImageProcessor`.
            labels: (batch, sequence), -100 for positions without supervision. Not shifted: the label at a
                position is predicted from the positions before it.
            use_cache: with labels, only if requested.
            logits_to_keep: without labels, the last n positions (0: all) or which ones, as in
                `Phi3ForCausalLM`.
            **kwargs: for the decoder; `num_items_in_batch` is for the loss.

        Returns:
            With labels: `loss`, the mean over supervised positions, or their sum divided by
            `num_items_in_batch` if the Trainer passes it; and `logits` of only those positions,
            (positions, vocabulary), in the order of the batch: the head runs only there, and the last
            layer only where any sample of the batch is supervised. Without labels: `logits` (batch, kept
            positions, vocabulary).
        """
        num_items_in_batch = kwargs.pop("num_items_in_batch", None)
        if labels is not None:
            use_cache = bool(use_cache)
            # Each position predicts the next one.
            targets = labels[:, 1:]
            supervised = targets != IGNORED_LABEL
            kept = supervised.any(0).nonzero()[:, 0]
            kwargs["positions_to_keep"] = kept
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
        hidden, loss = outputs.last_hidden_state, None
        if labels is None:
            logits = self.lm_head(slice_logits_to_keep(hidden, logits_to_keep))
        else:
            targets, supervised = targets[:, kept].to(hidden.device), supervised[:, kept].to(hidden.device)
            logits = self.lm_head(hidden[supervised])
            # In float32, for any dtype of the model.
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
        """Recompute sequences that outgrow the short rotary factors; otherwise as in transformers."""
        if self._outgrows_short_factors(input_ids, past_key_values, position_ids):
            if kwargs.get("inputs_embeds") is not None:
                raise ValueError(
                    "generation from inputs_embeds cannot cross original_max_position_embeddings"
                )
            # As in the first step: the whole sequence, with its images.
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
        """Return whether any sequence is cached with short factors and now needs the long ones."""
        boundary = self.config.original_max_position_embeddings
        cached = cache.get_seq_length() if cache is not None else 0
        # Usually the function returns here, without waiting for the device.
        if not cached or input_ids.shape[1] <= boundary:
            return False
        if position_ids is None or position_ids.shape[1] != input_ids.shape[1]:
            return bool(cached <= boundary)
        before, now = position_ids[:, cached - 1], position_ids[:, -1]
        return bool(((before < boundary) & (now >= boundary)).any())

    def _expand_inputs_for_generation(
        self,
        expand_size: int = 1,
        is_encoder_decoder: bool = False,
        input_ids: torch.Tensor | None = None,
        **model_kwargs: Any,
    ) -> tuple[torch.Tensor | None, dict[str, Any]]:
        """Repeat each sample for beams or several answers, with all of its images."""
        pixels, sizes = model_kwargs.pop("pixel_values", None), model_kwargs.pop("image_sizes", None)
        if pixels is not None and input_ids is not None and expand_size > 1:
            embedding = self.model.vision_embed_tokens
            grid = sizes.to(input_ids.device) // embedding.crop_size
            placeholders = (input_ids == self.config.image_token_id).sum(-1).cumsum(0)
            sample = torch.searchsorted(placeholders, token_counts(grid, embedding.side).cumsum(0))
            crops_of = torch.repeat_interleave(sample, crop_counts(grid))
            pixels = _repeat_samples(pixels, crops_of, len(input_ids), expand_size)
            sizes = _repeat_samples(sizes, sample, len(input_ids), expand_size)
        input_ids, model_kwargs = super()._expand_inputs_for_generation(
            expand_size=expand_size,
            is_encoder_decoder=is_encoder_decoder,
            input_ids=input_ids,
            **model_kwargs,
        )
        if pixels is not None:
            model_kwargs |= {"pixel_values": pixels, "image_sizes": sizes}
        return input_ids, model_kwargs


def _repeat_samples(rows: torch.Tensor, sample: torch.Tensor, samples: int, times: int) -> torch.Tensor:
    """Repeat the rows of each sample together; `sample` has the sample of each row, in ascending order."""
    parts = torch.split(rows, torch.bincount(sample, minlength=samples).tolist())
    return torch.cat([part for part in parts for _ in range(times)])
