"""Floating-point operations of a training step, and the peak of a GPU."""

from fovea.phi3v import Phi3VConfig

PEAK_FLOPS = {
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "A100": 312e12,
}
"""Dense bfloat16 operations per second on tensor cores, by a part of the device's name.

From NVIDIA's data sheets, which state twice as much for sparse matrices. The first match counts;
"H100" without a suffix is the SXM module.
"""


def peak_flops(device_name: str) -> float | None:
    """Return a GPU's dense bfloat16 operations per second; None if unknown."""
    return next((peak for name, peak in PEAK_FLOPS.items() if name in device_name), None)


def training_step_flops(
    config: Phi3VConfig, *, samples: int, length: int, supervised: int, crops: int, rank: int
) -> float:
    """Return the operations of a LoRA training step's forward and backward; a multiply-add counts as two.

    The count is what the mathematics requires, not what is executed: recomputation under gradient
    checkpointing, padding and the upper triangle of causal attention are not counted. Element-wise work is
    omitted, as usual.

    - A frozen matrix of p parameters: 2p per token forward, and 2p backward for the gradient of its input.
      The gradient of the matrix is not needed. (Full training would take 4p backward.)
    - A LoRA matrix: 2p forward and 4p backward, because its gradient is needed too.
    - Causal attention of width d over n tokens: scores and weighted sum together take 2dn² forward, and twice
      that backward, because queries, keys and values all need gradients.
    - The head, and the last layer except its keys and values: only at supervised positions. These are at
      the end, and attend to the whole sequence.
    - Tower and projector: only forward. The tower's last layer is not needed, and its attention covers the
      whole crop: 4dn².

    Args:
        config: of the model.
        samples: sequences in the batch, of the same length.
        length: tokens of a sequence, including images.
        supervised: tokens of the batch with a loss.
        crops: of all pictures of the batch, including global views.
        rank: of LoRA on the four fused projections.
    """
    tokens = samples * length
    (fused, *others), layers = projection_shapes(config), config.num_hidden_layers
    # How often each shape is multiplied by a position's vector.
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
    """Return inputs and outputs of a decoder layer's four fused projections."""
    hidden, inner = config.hidden_size, config.intermediate_size
    head_size = hidden // config.num_attention_heads
    fused = (config.num_attention_heads + 2 * config.num_key_value_heads) * head_size
    return [(hidden, fused), (hidden, hidden), (hidden, 2 * inner), (inner, hidden)]


def crop_flops(config: Phi3VConfig) -> float:
    """Return the operations of one crop's forward pass through tower and projector."""
    tower = config.vision_config
    patches = (tower.image_size // tower.patch_size) ** 2
    width, seen = tower.hidden_size, patches + 1
    matrices = 4 * width**2 + 2 * width * tower.intermediate_size
    layer = 2 * matrices * seen + 4 * width * seen**2
    embedding = 2 * 3 * tower.patch_size**2 * width * patches
    projector = 2 * (4 * width + config.hidden_size) * config.hidden_size * config.tokens_per_side**2
    return float((tower.num_hidden_layers - 1) * layer + embedding + projector)
