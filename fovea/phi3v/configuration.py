"""The configuration of Phi-3-Vision: transformers' Phi-3 decoder with a CLIP tower beside it."""

from typing import Any

from transformers import CLIPVisionConfig, Phi3Config
from transformers.configuration_utils import SubConfigSpec

IMAGE_TOKEN_ID = 32044
"""`<|image|>` in the published vocabulary: the placeholder of one image token in `input_ids`."""

# CLIP ViT-L/14 at 336 pixels, the tower of every published checkpoint, whose config.json does not spell it out.
PUBLISHED_TOWER: dict[str, Any] = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
    "projection_dim": 768,
}


class Phi3VConfig(Phi3Config):  # type: ignore[misc]
    """Reads the published `config.json` as it is and writes the same form back.

    Everything is as in `Phi3Config`, and:

    Args:
        vision_config: fields of `CLIPVisionConfig` for another tower than the published one. `num_hidden_layers`
            counts as published: the last layer is stored but nothing reads its output. `image_size` is the side of a
            crop in pixels; the number of patches along it must be even, since 2 x 2 of them become one token.
        image_token_id: the id that stands in `input_ids` for one image token.
        embd_layer, img_processor: kept as published; only the published arrangement ("sub_glb" with learnable
            separators) exists.
    """

    model_type = "phi3_v"
    sub_configs_defaults = {"vision_config": SubConfigSpec(CLIPVisionConfig, init_kwargs=PUBLISHED_TOWER)}  # noqa: RUF012

    vision_config: dict[str, Any] | CLIPVisionConfig | None = None
    image_token_id: int = IMAGE_TOKEN_ID
    embd_layer: dict[str, Any] | str | None = None
    img_processor: dict[str, Any] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        # Neither names remote code nor chooses the attention kernel for whoever loads the checkpoint.
        kwargs.pop("auto_map", None)
        kwargs.pop("_attn_implementation", None)
        super().__post_init__(**kwargs)
        patches, rest = divmod(self.vision_config.image_size, self.vision_config.patch_size)
        if rest or patches % 2:
            raise ValueError(
                f"vision_config: image_size {self.vision_config.image_size} must be an even number of patches "
                f"of {self.vision_config.patch_size}"
            )

    def convert_rope_params_to_dict(self, **kwargs: Any) -> dict[str, Any]:
        """Turn the published `rope_scaling` and `rope_theta` into transformers' `rope_parameters`."""
        for name in ("rope_scaling", "rope_parameters"):
            given = kwargs.pop(name, None) or (self.rope_parameters if name == "rope_parameters" else None)
            if given is not None:
                parameters = dict(given)
                kind = parameters.pop("type", "default")
                parameters.setdefault("rope_type", kind)
                if parameters["rope_type"] in ("su", "longrope"):
                    parameters["rope_type"] = "longrope"
                    # What transformers would infer too, but not without a warning.
                    parameters.setdefault(
                        "factor", self.max_position_embeddings / self.original_max_position_embeddings
                    )
                self.rope_parameters = parameters
                break
        remaining: dict[str, Any] = super().convert_rope_params_to_dict(**kwargs)
        return remaining

    @property
    def tokens_per_side(self) -> int:
        """Image tokens along one side of a crop: 12 for the published tower."""
        side: int = self.vision_config.image_size // self.vision_config.patch_size // 2
        return side

    def to_dict(self) -> dict[str, Any]:
        """Everything, in the published form: `rope_scaling` of type "su", and no tower where it is the published one."""
        output: dict[str, Any] = super().to_dict()
        rope = output.pop("rope_parameters", None) or {}
        output["rope_theta"] = rope.get("rope_theta", 10000.0)
        output["rope_scaling"] = None
        if rope.get("rope_type") == "longrope":
            output["rope_scaling"] = {
                "long_factor": rope["long_factor"],
                "short_factor": rope["short_factor"],
                "type": "su",
            }
        if self.image_token_id == IMAGE_TOKEN_ID:
            output.pop("image_token_id", None)
        if all(getattr(self.vision_config, name) == value for name, value in PUBLISHED_TOWER.items()):
            output.pop("vision_config", None)
        return output
