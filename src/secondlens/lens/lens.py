"""The fitted object: what a set of images shows about every neuron of some layers."""

import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float
from torch import Tensor

from ..arguments import checked
from ..devices import check_device, undisturbed
from ..effects.projections import Projector, Projectors
from ..effects.total_effects import TotalProjector
from ..errors import SecondLensError
from ..models.resizing import interpolated
from ..models.view import Clip
from ..storage import remote
from ..storage.locks import locked
from .folder import Contents, read, state, write
from .layer import Coordinates, LayerLens, both_stages, layer_lens
from .names import Name, Names

_ORIGINS: "WeakKeyDictionary[Lens, tuple[Path, str | None]]" = WeakKeyDictionary()
"""The folder that a lens was read from or written to, and the manifest there at that time."""


PATHS = ("value", "all")
"""Whose effects a lens may tell of: second-order ones, or total ones over all paths."""


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Lens(Contents):
    """A fitted lens; `lens[layer]` is its `LayerLens`."""

    all_paths: "Lens | None" = None

    def __repr__(self) -> str:
        described = f", described with {', '.join(self.codes)}" if self.codes else ""
        over = f", over all paths along {len(self.axes.rows)} axes" if self.axes else ""
        return (
            f"Lens({self.model['name']!r}, layers {', '.join(map(str, self.layers))}, "
            f"{len(self.image_ids)} images{over}{described})"
        )

    def __len__(self) -> int:
        return len(self.by_layer)

    def __iter__(self) -> Iterator[int]:
        """Over the fitted layers, in order."""
        return iter(self.layers)

    def __contains__(self, layer: object) -> bool:
        return layer in self.by_layer

    def __getitem__(self, layer: int) -> LayerLens:
        if layer not in self.by_layer:
            fitted = ", ".join(map(str, self.layers))
            raise SecondLensError(f"layer {layer} is not in this lens: it has {fitted}")
        return self.by_layer[layer]

    def path_count(self, layer: int) -> int:
        """Return how many heads carry values of a layer's neurons to the output (K)."""
        pool: int | None = self.model.get("pool_heads")
        later: int = self.model["heads"] * (self.model["layers"] - 1 - layer)
        return later if pool is None else pool

    @property
    def paths(self) -> Literal["value", "all"]:
        """Whose effects it tells of: second-order ones, or total ones over all paths."""
        return "value" if self.axes is None else "all"

    def over(self, paths: str) -> "Lens":
        """The lens of the effects over some paths; what is put into it is saved with this one.

        Parameters
        ----------
        paths
            "value" for second-order effects, or "all" for total ones, of a lens that was fitted
            with `paths="all"`.

        Raises
        ------
        SecondLensError
            No such paths, or this lens was not fitted over them.
        """
        if paths not in PATHS:
            raise SecondLensError(f"no paths {paths!r}: choose {' or '.join(PATHS)}")
        if paths == self.paths:
            return self
        if self.all_paths is None or paths == "value":
            raise SecondLensError(
                "this lens has no effects over all paths: run secondlens fit --paths all"
                if paths == "all"
                else "this part of a lens is over all paths: take the lens that holds it"
            )
        return self.all_paths

    def check_value(self, what: str) -> None:
        """Raise `SecondLensError` if effects are over all paths, where only those of the value path
        will do; `what` needs them."""
        if self.paths == "all":
            raise SecondLensError(
                f"{what} needs effects of the value path, and these are over all paths: give the "
                "lens itself"
            )

    @property
    def first_names(self) -> Names | None:
        """The names that pages and tables show, if the lens has some."""
        return next(iter(self.names.values()), None)

    @property
    def picture_ids(self) -> tuple[str, ...]:
        """The ids of `image_ids`, then those of the pictures of `first_names`: pages count so."""
        names = self.first_names
        return (*self.image_ids, *(names.image_ids if names else ()))

    def fires_on(self, layer: int, neuron: int) -> list[Name]:
        """The names of a neuron by `first_names`; none where its layer was not named."""
        names = self.first_names
        return [] if names is None or layer not in names.texts else names.of(layer, neuron)

    def title(self, layer: int, neuron: int) -> str:
        """What a neuron fires on, in one line, by `first_names`.

        It is `secondlens.lens.names.NO_NAME` where no text passed its test, and an empty text where
        the layer was not named. What a neuron pushes towards is no title: see its code.
        """
        names = self.first_names
        return "" if names is None or layer not in names.texts else names.title(layer, neuron)

    def to(self, device: str | torch.device) -> "Lens":
        """Return this lens with its layers and descriptions on a device.

        Functions move what they need by themselves: this is for a lens that is to stay there.
        Coordinates, names, scores and comparisons of halves stay where they are, and nothing is
        copied that is there already.

        Raises
        ------
        SecondLensError
            There is no such device.
        """
        place = check_device(device)
        by_layer = {layer: each.to(place) for layer, each in self.by_layer.items()}
        codes = {name: each.to(place) for name, each in self.codes.items()}
        all_paths = None if self.all_paths is None else self.all_paths.to(place)
        return replace(self, by_layer=by_layer, codes=codes, all_paths=all_paths)

    def late_layers(self, clip: Clip, quarters: int = 1) -> list[int]:
        """The last fitted layers, as many as a quarter of the model's depth or several: the paper
        reads three of twelve."""
        return self.layers[-quarters * max(1, round(clip.layers / 4)) :]

    def token_means(
        self, clip: Clip, layers: Iterable[int]
    ) -> dict[int, Float[Tensor, "tokens neurons"]]:
        """Mean activations at the tokens of a model, by layer: those of the fit, interpolated
        between patches if the model sees pictures of another size, see `resized`."""
        grid, found = tuple(self.model["grid"]), {}
        for layer in layers:
            means = self[layer].activation_mean.to(clip.device, clip.compute_dtype)
            found[layer] = interpolated(means, grid, clip.grid, clip.prefix)
        return found

    def check_model(self, clip: Clip) -> None:
        """Raise `SecondLensError` if this lens was fitted on another model."""
        if clip.weights_hash != self.model["weights"]:
            raise SecondLensError(
                f"this lens was fitted on {self.model['name']} with other weights than "
                f"{clip.name} has: load that model, or fit again"
            )

    def check_exact(self) -> None:
        """Raise `SecondLensError` if effects are "official": they are no parts of embeddings."""
        if self.convention != "exact":
            raise SecondLensError(
                "official effects share a part that belongs to no neuron: fit a lens in the "
                "convention exact"
            )

    @undisturbed
    def merge(self, other: "Lens") -> "Lens":
        """The lens of both sets of images, as one fit over all of them would give it.

        Descriptions and names are dropped, for directions change; and effects over all paths.

        Raises
        ------
        SecondLensError
            Either lens has no coordinates (fit with `keep_coordinates=True`), or they differ in
            model, layers or convention, or share an image.
        """
        if self.coordinates is None or other.coordinates is None:
            raise SecondLensError(
                "merging needs the coordinates of both lenses: fit with keep_coordinates=True"
            )
        for what in ("model", "convention", "layers"):
            if getattr(self, what) != getattr(other, what):
                raise SecondLensError(f"lenses that differ in their {what} cannot be merged")
        if twice := set(self.image_ids) & set(other.image_ids):
            raise SecondLensError(
                f"both lenses have seen image {min(twice)}: merge lenses of different images, and "
                "name those in memory, which are numbered else: InMemory(pictures, ids=...)"
            )
        z = {
            layer: torch.cat([self.coordinates.z[layer], other.coordinates.z[layer]])
            for layer in self.layers
        }
        count = len(self.image_ids) + len(other.image_ids)
        mine = len(self.image_ids) / count
        top = min(count, self.top + other.top)
        by_layer = {
            layer: layer_lens(
                *both_stages(z[layer], top),
                self.coordinates.basis[layer],
                self[layer].activation_mean.lerp(other[layer].activation_mean, 1 - mine),
            )
            for layer in self.layers
        }
        return replace(
            self,
            top=top,
            image_ids=(*self.image_ids, *other.image_ids),
            digests=both if len(both := (*self.digests, *other.digests)) == count else (),
            skipped={**self.skipped, **other.skipped},
            by_layer=by_layer,
            codes={},
            scores={},
            stability={},
            names={},
            all_paths=None,
            coordinates=Coordinates(z=z, basis=self.coordinates.basis),
        )

    @checked
    def save(self, path: str | Path) -> None:
        """Write the lens into a folder, here or in a store such as "s3://bucket/lens".

        Stopped at any moment, it leaves the lens that was there, or none if there was none; in a
        store, where files are sent one by one, `lens.json` comes last.

        Raises
        ------
        SecondLensError
            The folder cannot be written to, is being written by another process, or holds another
            lens than was read from it; or the store cannot be reached.
        """
        with locked(path):
            self.save_held(path)

    def save_held(self, path: str | Path) -> None:
        """Write as `save` does, into a place that is `locked` already."""
        self.check_value("a folder")
        if remote.is_remote(path):
            with tempfile.TemporaryDirectory(prefix="secondlens-") as copy:
                write(self, Path(copy))
                remote.upload(Path(copy), str(path), last="lens.json")
            return
        place = Path(path).resolve()
        origin, read_as = _ORIGINS.get(self, (place, None))
        if origin == place and read_as not in (None, state(place)):
            raise SecondLensError(
                f"the lens in {path} changed since it was read: load it again, then do the same"
            )
        write(self, place)
        _ORIGINS[self] = place, state(place)

    @classmethod
    @checked
    @undisturbed
    def load(cls, path: str | Path) -> "Lens":
        """The lens saved in a folder, here or in a store.

        Raises
        ------
        SecondLensError
            No lens there, one of another format version, or a damaged one.
        """
        if not remote.is_remote(path):
            place = Path(path).resolve()
            read_as = state(place)
            lens = _opened(cls, read(Path(path)))
            _ORIGINS[lens] = place, read_as
            return lens
        if "lens.json" not in remote.names(str(path)):
            raise SecondLensError(f"{path} holds no lens: there is no lens.json in it")
        with remote.fetched(str(path)) as copy:
            return _opened(cls, read(copy))

    def push_to_hub(self, repo_id: str, *, private: bool = False) -> str:
        """Send the lens to the Hugging Face hub, with its card, in one commit.

        Of names that are paths on this machine, the last part goes along. What the repository held
        of an older lens is removed. The hub's own login is used: `hf auth
        login`, or the variable HF_TOKEN.

        Parameters
        ----------
        repo_id
            Such as "user/name"; made if it does not exist.
        private
            Whether a new repository is for its owner only.

        Returns
        -------
        The address of the commit.

        Raises
        ------
        SecondLensError
            The hub cannot be reached or refuses, or no repository can have that name.
        """
        from .hub import prepared, push

        with prepared(self, repo_id) as folder:
            return push(folder, repo_id, private=private)

    @classmethod
    def from_hub(cls, repo_id: str, *, revision: str | None = None) -> "Lens":
        """The lens in a repository of the Hugging Face hub, checked like any folder.

        Parameters
        ----------
        repo_id
            Such as "user/name".
        revision
            A branch, tag or commit; by default the newest.

        Raises
        ------
        SecondLensError
            The hub cannot be reached or refuses, there is no such repository or revision, or no
            lens that `load` would take.
        """
        from .hub import pull

        with tempfile.TemporaryDirectory(prefix="secondlens-") as temporary:
            copy = Path(temporary) / repo_id.replace("/", "--")
            pull(repo_id, copy, revision=revision)
            return cls.load(copy)


def projectors(
    clip: Clip, lens: Lens, vectors: Mapping[int, Float[Tensor, "neurons vectors dim"]]
) -> Projectors:
    """What takes images to products of the effects that a lens is of with some vectors of each
    neuron, by layer."""
    if lens.axes is not None:
        axes = lens.axes.rows.to(clip.device)
        return {layer: TotalProjector(axes, each) for layer, each in vectors.items()}
    return {layer: Projector(clip, layer, each, lens.convention) for layer, each in vectors.items()}


def _opened(cls: type[Lens], found: Contents) -> Lens:
    all_paths = None if found.all_paths is None else cls(**vars(found.all_paths))
    return cls(**vars(found) | {"all_paths": all_paths})
