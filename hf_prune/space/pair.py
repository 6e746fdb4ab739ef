"""What the Space speaks of: a visitor, and a pruned model beside the one that it was made from."""

from dataclasses import dataclass, field
from typing import Any, Literal

from transformers import PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from hf_prune.output import Finished

DEMO = "demo"
"""What the embedded pair is called, where others have a Hub id."""


@dataclass(frozen=True)
class Visitor:
    """Somebody in front of the page.

    Attributes:
        token: what the Hub is asked with in this visitor's name; False for nobody's. Never the Space's own.
        name: of the account; None where nobody is signed in.
    """

    token: str | Literal[False] = field(default=False, repr=False)
    name: str | None = None


@dataclass(frozen=True)
class Half:
    """One model of a pair, pinned; nothing of it is loaded.

    Attributes:
        name: Hub id, or what the embedded model is called; untrusted text.
        commit: Hub commit; None for the embedded one.
        layers: blocks.
        parameters: tied ones once.
        bytes: of the weights once loaded.
        dtype: of the weights once loaded, as torch calls it.
        layer_parameters: parameters of each block; None where they are not known.
    """

    name: str
    commit: str | None
    layers: int
    parameters: int
    bytes: int
    dtype: str = "float32"
    layer_parameters: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Pair:
    """A pruned model, the one it was made from, and the records that say how.

    Attributes:
        name: what a visitor types: `DEMO`, or the Hub id of the pruned model.
        original: the model before.
        pruned: the model after, healed where it was healed.
        records: of the pruned repo; untrusted.
    """

    name: str
    original: Half
    pruned: Half
    records: Finished

    @property
    def label(self) -> Literal["pruned", "healed"]:
        """What the second model is called in tables and pictures."""
        return "pruned" if self.records.healing is None else "healed"


@dataclass(frozen=True)
class Loaded:
    """A pair in memory. Other visitors use the same objects: nothing may change them.

    Attributes:
        original: the model before.
        pruned: the model after.
        tokenizer: of the original.
        pruned_tokenizer: of the pruned model; nearly always the same.
    """

    original: PreTrainedModel
    pruned: PreTrainedModel | Any
    tokenizer: Tokenizer
    pruned_tokenizer: Tokenizer
