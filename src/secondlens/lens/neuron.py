"""Which neuron something is about."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class NeuronId:
    """A neuron of an MLP layer."""

    layer: int
    neuron: int

    @property
    def name(self) -> str:
        """Such as "L5 #120"."""
        return f"L{self.layer} #{self.neuron}"
