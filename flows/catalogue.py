"""The catalogue of claims, `configs/claims.yaml`: which rows of which recipes each compares."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from bico.errors import ConfigError, nearest
from bico.reporting.claims import Kind
from bico.reporting.names import label_of
from bico.reporting.rows import Row
from flows.config import CONFIGS, MethodSpec
from flows.recipes import list_recipes, read_recipe
from flows.validation import read_yaml, validated

Rows = Mapping[str, Mapping[str, Sequence[Row]]]
"""By recipe and transfer."""


class Side(BaseModel):
    """Some rows of a recipe."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    recipe: str
    method: MethodSpec
    transfer: str | None = None
    """Its title; not needed for a recipe of one."""
    samples: int | Literal["largest"] = "largest"

    def of(self, rows: Rows) -> list[Row]:
        """Returns the rows.

        Raises:
            ConfigError: If there are none.
        """
        transfers = rows[self.recipe]
        title = self.transfer or next(iter(transfers))
        if title not in transfers or (self.transfer is None and len(transfers) > 1):
            raise ConfigError(f"{self.recipe}: which transfer? {nearest(str(self.transfer), transfers)}")
        mine = [row for row in transfers[title] if row.method == self.method]
        counts = {row.budget.asked for row in mine}
        wanted = max(counts, default=0) if self.samples == "largest" else self.samples
        if wanted not in counts:
            made = ", ".join(dict.fromkeys(f"{row.method} at {row.budget.asked}" for row in transfers[title]))
            raise ConfigError(f"{self.recipe}, {title}: no rows of {self.method} at N={wanted}; there are {made}.")
        return [row for row in mine if row.budget.asked == wanted]

    def __str__(self) -> str:
        counted = "" if self.samples == "largest" else f", N={self.samples}"
        return label_of(self.method) + counted + (f", {self.transfer}" if self.transfer else "")


class Claim(BaseModel):
    """One comparison."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    id: str
    group: str | None = None
    """The heading that it and those after it go under."""
    says: str | None = None
    """In words; made from the sides unless given."""
    left: Side
    right: Side
    kind: Kind = Kind.MORE
    margin: float = 0.0
    """Points: see `bico.reporting.claims.evaluate`."""

    @property
    def words(self) -> str:
        pair = self.left.recipe if self.left.recipe == self.right.recipe else f"{self.left.recipe}, {self.right.recipe}"
        if self.kind is Kind.ALIKE:
            relation = f"within {self.margin:g} points of"
        else:
            relation = "above" if self.margin == 0 else f"more than {self.margin:g} points above"
        return f"{self.says or f'{self.left} {relation} {self.right}'} ({pair})"


class Norms(BaseModel):
    """That the transferred task vector is as long as the source's, on a pair of one architecture."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    id: str
    group: str | None = None
    says: str
    recipe: str
    margin: Annotated[float, Field(gt=0)]
    """Percent of the source's norm."""

    @property
    def words(self) -> str:
        return f"{self.says} ({self.recipe})"


class Catalogue(BaseModel):
    """All claims."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    claims: Annotated[list[Claim], Field(min_length=1)]
    norms: list[Norms] = []

    @property
    def all(self) -> list[Claim | Norms]:
        return [*self.claims, *self.norms]

    @model_validator(mode="after")
    def _whole(self) -> Self:
        names = [claim.id for claim in self.all]
        if twice := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"two claims are called {twice.pop()!r}")
        if strange := set(self.recipes) - set(list_recipes()):
            raise ValueError(f"no recipe {min(strange)!r}; {nearest(min(strange), list_recipes())}")
        return self

    def at_hand(self, mini: bool, data: Sequence[Path]) -> "tuple[Catalogue, list[str]]":
        """Returns the claims on recipes that have tasks at hand, and the ids of the others.

        Raises:
            ConfigError: If there are none.
        """
        bare = {name for name in self.recipes if not read_recipe(name).tasks(mini, data)}
        without = [c.id for c in self.claims if {c.left.recipe, c.right.recipe} & bare]
        without += [c.id for c in self.norms if c.recipe in bare]
        kept = {kind: [c for c in getattr(self, kind) if c.id not in without] for kind in ("claims", "norms")}
        return validated(Catalogue, kept, "claims that have tasks at hand"), without

    @property
    def recipes(self) -> list[str]:
        sides = [side.recipe for claim in self.claims for side in (claim.left, claim.right)]
        return sorted({*sides, *(claim.recipe for claim in self.norms)})


def read_catalogue(path: Path = CONFIGS / "claims.yaml") -> Catalogue:
    """Reads the claims.

    Raises:
        ConfigError: If a key is not known, two claims share an id, or one names a recipe that is not there.
    """
    return validated(Catalogue, read_yaml(path), path.name)
