"""A plain twin of `Phi3VForCausalLM`: the same weights, with the work of the published code.

The project's model is compared with it. On every call it

- pads each picture's stack of crops with black ones to `num_crops` + 1, and encodes those too;
- runs the tower's last layer, whose output is not used, and keeps every layer's output until its end;
- projects each picture separately, with every separator as a separate row;
- uses eager attention, in the tower and in the decoder;
- computes float32 logits at every position, and the loss from them.

The results equal those of the project's model.
"""

import copy
from typing import Any, Self

import torch
from torch.nn import functional
from transformers.modeling_outputs import CausalLMOutputWithPast

from fovea.phi3v import Phi3VConfig, Phi3VForCausalLM
from fovea.phi3v.modeling import IGNORED_LABEL, Phi3VImageEmbedding


class PlainImageEmbedding(Phi3VImageEmbedding):
    """Converts padded stacks of crops to embeddings for the decoder's input, picture by picture."""

    num_crops: int

    def forward(
        self,
        embeddings: torch.Tensor,
        is_image: torch.Tensor,
        pixel_values: torch.Tensor,
        image_sizes: torch.Tensor,
    ) -> torch.Tensor:
        """Override `Phi3VImageEmbedding.forward`: pad `pixel_values`, which has only real crops."""
        grids: list[tuple[int, int]] = [
            (height // self.crop_size, width // self.crop_size) for height, width in image_sizes.tolist()
        ]
        stacks = torch.split(pixel_values, [1 + rows * columns for rows, columns in grids])
        padded = torch.stack([self._padded(stack) for stack in stacks])
        features = self.merged_features(padded.flatten(0, 1))
        features = features.view(*padded.shape[:2], self.side**2, -1)
        tokens = [self._tokens(crops, *grid) for crops, grid in zip(features, grids, strict=True)]
        filled = embeddings.clone()
        filled[is_image] = torch.cat(tokens).to(embeddings.dtype)
        return filled

    def _padded(self, stack: torch.Tensor) -> torch.Tensor:
        missing = 1 + self.num_crops - len(stack)
        if missing < 0:
            raise ValueError(f"a picture has {len(stack) - 1} crops, more than num_crops, {self.num_crops}")
        return functional.pad(stack, (0, 0, 0, 0, 0, 0, 0, missing))

    def encode(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Return the second-to-last layer's features of crops (n, 3, side, side), running every layer."""
        tower: Any = self.img_processor["vision_model"]
        hidden_states = [tower.pre_layrnorm(tower.embeddings(pixel_values))]
        for layer in tower.encoder.layers:
            hidden_states.append(layer(hidden_states[-1], attention_mask=None))
        patches: torch.Tensor = hidden_states[-2][:, 1:]
        return patches

    def merged_features(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Override `Phi3VImageEmbedding.merged_features`, with every layer of the tower."""
        features, side = self.encode(pixel_values), self.side
        channels = features.shape[-1]
        blocks = features.view(-1, side, 2, side, 2, channels).transpose(2, 3)
        return blocks.reshape(-1, 4 * channels)

    def _tokens(self, crops: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
        """Convert one picture's features (1 + num_crops, side**2, channels) to its tokens, in order."""
        view, tiles = crops[:1], crops[1 : 1 + rows * columns]
        laid_out = [self._lines(tiles, rows, columns), self.glb_GN[0], self._lines(view, 1, 1)]
        projected: torch.Tensor = self.img_projection(torch.cat(laid_out))
        return projected

    def _lines(self, tiles: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
        """Return tiles (rows * columns, side**2, channels) line by line over their width, with line ends."""
        side, channels = self.side, tiles.shape[-1]
        lines = tiles.reshape(rows, columns, side, side, channels).transpose(1, 2)
        lines = lines.reshape(rows * side, columns * side, channels)
        ends = self.sub_GN[0].expand(rows * side, 1, channels)
        return torch.cat([lines, ends], dim=1).flatten(0, 1)


class PlainPhi3VForCausalLM(Phi3VForCausalLM):
    """Phi-3-Vision as in the published code; loads, saves and trains like `Phi3VForCausalLM`.

    Args:
        config: of the model; copied, and its attention set to eager.
        num_crops: the size to which each picture's stack of crops is padded, besides its global view.
    """

    def __init__(self, config: Phi3VConfig, num_crops: int = 16) -> None:
        config = copy.deepcopy(config)
        config._attn_implementation = "eager"
        super().__init__(config)
        # The parameters and names are the same, and share memory: only the computation differs.
        self.model.vision_embed_tokens.__class__ = PlainImageEmbedding
        self.num_crops = num_crops

    @classmethod
    def sharing(cls, model: Phi3VForCausalLM, num_crops: int = 16) -> Self:
        """Return a twin that shares the parameters of `model`.

        Add adapters only afterwards.
        """
        with torch.device("meta"):
            twin = cls(model.config, num_crops)
        twin.load_state_dict(model.state_dict(keep_vars=True), assign=True)
        for path, buffer in model.named_buffers():
            owner, _, name = path.rpartition(".")
            setattr(twin.get_submodule(owner), name, buffer)
        twin.train(model.training)
        return twin

    @property
    def num_crops(self) -> int:
        """The size to which each picture's stack of crops is padded, besides its global view."""
        return int(self._image_embedding.num_crops)

    @num_crops.setter
    def num_crops(self, number: int) -> None:
        self._image_embedding.num_crops = number

    @property
    def _image_embedding(self) -> Any:
        return self.model.vision_embed_tokens

    def forward(  # type: ignore[override]  # positions may be given by name alone
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        image_sizes: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Override `Phi3VForCausalLM.forward`: `logits` are always float32 (batch, sequence, vocabulary)."""
        num_items_in_batch = kwargs.pop("num_items_in_batch", None)
        if labels is not None and use_cache is None:
            use_cache = False
        outputs = super().forward(
            input_ids=input_ids,
            attention_mask=attention_mask,
            pixel_values=pixel_values,
            image_sizes=image_sizes,
            use_cache=use_cache,
            **kwargs,
        )
        outputs.logits = outputs.logits.float()
        if labels is not None:
            shifted = outputs.logits[:, :-1].contiguous().flatten(0, 1)
            targets = labels[:, 1:].contiguous().flatten()
            reduction = "mean" if num_items_in_batch is None else "sum"
            loss = functional.cross_entropy(shifted, targets, ignore_index=IGNORED_LABEL, reduction=reduction)
            outputs.loss = loss if num_items_in_batch is None else loss / num_items_in_batch
        return outputs
