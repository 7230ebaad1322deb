"""The field's claims, each measured on this machine."""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from postformer.claims.ledger import Claim

SENTENCES = {
    "long_text": "A selective state space reads long text in linear time with constant memory, and about five times faster than a "
    "Transformer.",
    "selective": "Selection lets a state space remember what matters at any distance: trained on 256 tokens, it answers after a million.",
    "state_tracking": "A state that rotates keeps count where a real, positive one cannot: Mamba-3 solves parity, and the same net "
    "without rotation stays at chance.",
    "reads_better": "A model that writes to its weights while it reads predicts the rest of a long text better.",
    "neural_memory": "After ten years of diaries the name of the first year's dog still comes back from a neural memory, at constant cost.",
    "sparse_cost": "Sparse experts: 80 billion parameters in all and 10 billion active are an eighth of the cost.",
    "experts_specialise": "Experts specialise: code goes to the Python expert.",
    "experts_quality": "Experts make a model better at the same operations a token, nearly as good as a dense one of all its parameters.",
    "spacetime_patches": "A U-Net lets legs melt; a transformer over spacetime patches keeps the physics of a video continuous.",
    "patches_see": "Cut into patches, an image is a text: a Transformer sees as well as a convolutional net.",
    "latent_physics": "It predicts the next second's frame vectors, and physics can be read off them.",
    "plan_in_latent": "Plans need no pictures: a world model searches for them in latent space, and reaches what it is shown.",
    "intuitive_physics": "A world model in latent space knows what cannot be: it is surprised by the impossible.",
}
"""Each claim as the field says it, by its name: that of its file, which is not imported before it is run."""


def load_claim(name: str) -> "Claim":
    """The claim of `postformer/claims/<name>.py`, which the file calls `CLAIM`."""
    return importlib.import_module(f"postformer.claims.{name}").CLAIM
