"""Floating-point operations that a training step needs, and what a GPU could do."""

from fovea.phi3v import Phi3VConfig

PEAK_FLOPS = {
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "A100": 312e12,
}
"""Dense bfloat16 operations a second on tensor cores, by what the device's name holds.

From NVIDIA's data sheets, which state twice as much for sparse matrices. The first name that fits counts;
"H100" alone is the SXM module.
"""


def peak_flops(device_name: str) -> float | None:
    """Dense bfloat16 operations a second of a GPU; None where it is not known."""
    return next((peak for name, peak in PEAK_FLOPS.items() if name in device_name), None)


def training_step_flops(
    config: Phi3VConfig, *, samples: int, length: int, supervised: int, crops: int, rank: int
) -> float:
    """Operations that a LoRA training step's forward and backward need; a multiply-add counts as two.

    What the mathematics asks for, not what was run: recomputation under gradient checkpointing, padding and
    the upper triangle of causal attention are not counted. Element-wise work is left out, as usual.

    - A frozen matrix of p parameters: 2p a token forward, and 2p backward for the gradient of its input. The
      gradient of the matrix itself is not needed. (Full training would take 4p backward.)
    - A LoRA matrix: 2p forward and 4p backward, since its own gradient is needed too.
    - Causal attention of width d over n tokens: scores and mixture are 2dn² together forward, and twice that
      backward, since queries, keys and values all need gradients.
    - The last layer, beside its keys and values, and the head: at supervised positions alone. These stand at
      the end, and attend to all of the sequence.
    - Tower and projector: forward alone. The tower's last layer is not needed, and its attention sees all
      of a crop: 4dn².

    Args:
        config: of the model.
        samples: sequences in the batch, of one length.
        length: tokens of a sequence, images among them.
        supervised: tokens of the batch that the loss is computed at.
        crops: of all pictures of the batch, global views among them.
        rank: of LoRA on the four fused projections.
    """
    tokens = samples * length
    (fused, *others), layers = projection_shapes(config), config.num_hidden_layers
    # How often each shape is multiplied with a position's vector.
    everywhere = [fused] * layers + others * (layers - 1)
    products = [(shape, tokens) for shape in everywhere] + [(shape, supervised) for shape in others]
    frozen = sum(inputs * outputs * places for (inputs, outputs), places in products)
    lora = sum(rank * (inputs + outputs) * places for (inputs, outputs), places in products)
    width = config.hidden_size
    attention = 2 * width * length**2 * samples * (layers - 1) + 4 * width * length * supervised
    head = 2 * width * config.vocab_size * supervised
    decoder = 4 * frozen + 6 * lora + 3 * attention + 2 * head
    return float(decoder + crops * crop_flops(config))


def projection_shapes(config: Phi3VConfig) -> list[tuple[int, int]]:
    """Inputs and outputs of a decoder layer's four fused projections."""
    hidden, inner = config.hidden_size, config.intermediate_size
    head_size = hidden // config.num_attention_heads
    fused = (config.num_attention_heads + 2 * config.num_key_value_heads) * head_size
    return [(hidden, fused), (hidden, hidden), (hidden, 2 * inner), (inner, hidden)]


def crop_flops(config: Phi3VConfig) -> float:
    """Operations for one crop's forward pass through tower and projector."""
    tower = config.vision_config
    patches = (tower.image_size // tower.patch_size) ** 2
    width, seen = tower.hidden_size, patches + 1
    matrices = 4 * width**2 + 2 * width * tower.intermediate_size
    layer = 2 * matrices * seen + 4 * width * seen**2
    embedding = 2 * 3 * tower.patch_size**2 * width * patches
    projector = 2 * (4 * width + config.hidden_size) * config.hidden_size * config.tokens_per_side**2
    return float((tower.num_hidden_layers - 1) * layer + embedding + projector)
