"""From what a factor is estimated, and of which structure it is taken to be: exactly that of all rows, or less."""

from dataclasses import dataclass, replace

SHARINGS = ("expand", "reduce")
SPATIALS = ("exact", "sua")


@dataclass(frozen=True)
class Estimate:
    """How factors follow from a batch's rows.

    - ``samples``: only the first so many of every (micro-)batch, an unbiased estimate (None: all).
    - ``sharing``: expand, every position's own outer product (Grosse & Martens 2016), or reduce, that of the sum
      over positions, divided by P (Eschenhagen et al. 2023).
    - ``spatial``: sua takes the taps of a kernel for uncorrelated and alike, so that A is one matrix of channels,
      the mean over taps (spatially uncorrelated activations: Grosse & Martens 2016, section 5.1).
    - ``groups``: A is block-diagonal over so many groups of input channels.

    The last two concern the input factors of convolutions alone. Raises ValueError for what does not go together.
    """

    samples: int | None = None
    sharing: str = "expand"
    spatial: str = "exact"
    groups: int = 1

    def __post_init__(self) -> None:
        if self.samples is not None and self.samples < 1:
            raise ValueError(f"stat_samples must be at least 1, got {self.samples}")
        if self.sharing not in SHARINGS:
            raise ValueError(f"sharing must be one of {', '.join(SHARINGS)}, got {self.sharing!r}")
        if self.spatial not in SPATIALS:
            raise ValueError(f"spatial must be one of {', '.join(SPATIALS)}, got {self.spatial!r}")
        if self.groups < 1:
            raise ValueError(f"input_groups must be at least 1, got {self.groups}")
        structured = [f"spatial={self.spatial}"] * (self.spatial != "exact") + ["input_groups"] * (self.groups > 1)
        if len(structured) + (self.sharing != "expand") > 1:
            given = " and ".join([*structured, *(["sharing=reduce"] if self.sharing != "expand" else [])])
            raise ValueError(f"sharing=reduce, spatial=sua and input_groups exclude each other, got {given}")

    @classmethod
    def of(
        cls, stat_samples: int | None, sharing: str | None, spatial: str | None, input_groups: int | None
    ) -> "Estimate":
        """From the options of a method, None being what is usual."""
        return cls(stat_samples, sharing or "expand", spatial or "exact", 1 if input_groups is None else input_groups)

    @property
    def is_structured(self) -> bool:
        """Whether input factors of convolutions are not full matrices."""
        return self.spatial != "exact" or self.groups > 1

    @property
    def of_outputs(self) -> "Estimate":
        """What concerns output factors."""
        return replace(self, spatial="exact", groups=1)

    def count(self, samples: int) -> int:
        """How many of a batch's samples are looked at."""
        return samples if self.samples is None else min(samples, self.samples)


EXACT = Estimate()
