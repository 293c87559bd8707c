"""The configuration of Phi-3-Vision: transformers' Phi-3 decoder with a CLIP tower."""

from typing import Any

from transformers import CLIPVisionConfig, Phi3Config
from transformers.configuration_utils import SubConfigSpec

IMAGE_TOKEN_ID = 32044
"""`<|image|>` in the published vocabulary: the placeholder of one image token in `input_ids`."""

# CLIP ViT-L/14 at 336 pixels: the tower of every published checkpoint, whose config.json only names it.
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
    """Reads the published `config.json` unchanged and writes the same format.

    Like `Phi3Config`, with these additional fields:

    Args:
        vision_config: fields of `CLIPVisionConfig` for a tower other than the published one.
            `num_hidden_layers` counts as published: the last layer is stored, but its output is not used.
            `image_size` is the side of a crop in pixels; the number of patches along it must be even, because
            2 x 2 of them become one token.
        image_token_id: the id of an image token in `input_ids`.
        embd_layer, img_processor: kept as published; only the published arrangement ("sub_glb" with learnable
            separators) is supported.

    Raises:
        ValueError: the tower's crop is not an even number of patches.
    """

    model_type = "phi3_v"
    sub_configs_defaults = {  # noqa: RUF012
        "vision_config": SubConfigSpec(CLIPVisionConfig, init_kwargs=PUBLISHED_TOWER)
    }

    vision_config: Any = None
    image_token_id: int = IMAGE_TOKEN_ID
    embd_layer: dict[str, Any] | str | None = None
    img_processor: dict[str, Any] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        # The checkpoint must neither name remote code nor choose the attention kernel.
        kwargs.pop("auto_map", None)
        kwargs.pop("_attn_implementation", None)
        super().__post_init__(**kwargs)
        tower = self.vision_config
        if tower.image_size % (2 * tower.patch_size):
            raise ValueError(
                f"vision_config: image_size {tower.image_size} must be an even number of patches "
                f"of {tower.patch_size} pixels"
            )

    def convert_rope_params_to_dict(self, **kwargs: Any) -> dict[str, Any]:
        """Convert the published `rope_scaling` and `rope_theta` to transformers' `rope_parameters`."""
        parameters: dict[str, Any] = dict(kwargs.pop("rope_scaling", None) or self.rope_parameters or {})
        kind = parameters.pop("type", "default")
        parameters.setdefault("rope_type", "longrope" if kind == "su" else kind)
        if parameters["rope_type"] == "longrope":
            # transformers would infer this too, but with a warning.
            factor = self.max_position_embeddings / self.original_max_position_embeddings
            parameters.setdefault("factor", factor)
        self.rope_parameters: dict[str, Any] = parameters
        remaining: dict[str, Any] = super().convert_rope_params_to_dict(**kwargs)
        return remaining

    @property
    def tokens_per_side(self) -> int:
        """Image tokens along one side of a crop: 12 for the published tower."""
        side: int = self.vision_config.image_size // self.vision_config.patch_size // 2
        return side

    def to_dict(self) -> dict[str, Any]:
        """Return all fields in the published format; the tower only if it differs from the published one."""
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
        for name, default in (
            ("image_token_id", IMAGE_TOKEN_ID),
            ("embd_layer", None),
            ("img_processor", None),
        ):
            if output[name] == default:
                del output[name]
        if _differences(self.vision_config) == _differences(CLIPVisionConfig(**PUBLISHED_TOWER)):
            output.pop("vision_config", None)
        return output


def _differences(tower: CLIPVisionConfig) -> dict[str, Any]:
    fields: dict[str, Any] = tower.to_diff_dict()
    return {name: value for name, value in fields.items() if name not in ("dtype", "transformers_version")}
