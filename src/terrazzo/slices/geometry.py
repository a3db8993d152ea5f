"""Where the cells are: checked coordinates, array lattices, and how native units become micrometers."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from anndata import AnnData

from terrazzo import keys
from terrazzo.errors import InputError, TerrazzoWarning, shortened
from terrazzo.slices.clues import Clues
from terrazzo.slices.lattices import read_lattice
from terrazzo.slices.places import check_places, obsm_keys, read_numbers
from terrazzo.slices.units import weigh

if TYPE_CHECKING:
    from terrazzo.images import TissueImage

__all__ = [
    "Geometry",
    "find_geometry",
    "find_image",
    "image_in_units",
    "library_of",
    "read_coords",
]

_PAIRS = (
    ("x", "y"),
    ("X", "Y"),
    ("x_centroid", "y_centroid"),
    ("CenterX_global_px", "CenterY_global_px"),
    ("center_x", "center_y"),
    ("imagecol", "imagerow"),
    ("pxl_col_in_fullres", "pxl_row_in_fullres"),
)


@dataclass(frozen=True)
class Geometry:
    """Positions of one slice: ``coords = native * scale``, in ``unit``; lattice where the platform has one.

    ``evidence`` says how sure the unit is, and why.
    """

    coords: np.ndarray
    unit: str
    scale: float
    lattice: np.ndarray | None
    lattice_kind: str | None
    technology: str
    evidence: str = ""


def read_coords(adata: AnnData, spatial_key: str) -> np.ndarray:
    """Return the native coordinates, float64 (n, 2).

    Raises
    ------
    InputError
        No such ``obsm`` entry; wrong number of rows; fewer than two columns; not numbers; NaN or infinite values.
    """
    if spatial_key not in obsm_keys(adata):
        raise InputError(_no_coords_message(adata, spatial_key))
    where = f"obsm[{spatial_key!r}]"
    coords = read_numbers(adata, spatial_key, where)
    if coords.ndim != 2 or coords.shape[0] != adata.n_obs or coords.shape[1] < 2:
        raise InputError(
            f"{where} has shape {coords.shape}; it must have one row a cell ({adata.n_obs}) and two columns, x and y"
        )
    if coords.shape[1] > 2:
        warnings.warn(
            f"{where} has {coords.shape[1]} columns; the first two are used as x and y",
            TerrazzoWarning,
            stacklevel=4,
        )
    coords = np.ascontiguousarray(coords[:, :2])
    is_finite = np.isfinite(coords).all(axis=1)
    bad = np.flatnonzero(~is_finite)
    if len(bad):
        names = ", ".join(shortened(adata.obs_names[i], quoted=False) for i in bad[:3])
        raise InputError(
            f"{where} is NaN or infinite for {len(bad)} of {len(coords)} cells (first: {names}). "
            "Remove these cells (adata = adata[np.isfinite(adata.obsm[...]).all(1)]) or fix their coordinates."
        )
    check_places(coords, where)
    return coords


def _no_coords_message(adata: AnnData, spatial_key: str) -> str:
    names = list(adata.obsm)
    fix = "pass spatial_key= (one of them)" if names else "add them"
    text = f"no spatial coordinates: obsm[{spatial_key!r}] is not there (obsm has: {names or 'nothing'}); {fix}"
    for x, y in _PAIRS:
        if x in adata.obs.columns and y in adata.obs.columns:
            return f'{text}, e.g. adata.obsm["spatial"] = adata.obs[["{x}", "{y}"]].to_numpy()'
    return f'{text}, e.g. adata.obsm["spatial"] = an array of shape (n_cells, 2) with x and y'


def library_of(adata: AnnData) -> Mapping[str, Any]:
    """Return the entry of ``uns["spatial"]`` of this slice, {} if there is none or if which one is unclear."""
    spatial = adata.uns.get(keys.SPATIAL)
    if not isinstance(spatial, Mapping):
        return {}
    if _is_library(spatial):
        return spatial
    libraries = {str(name): entry for name, entry in spatial.items() if isinstance(entry, Mapping)}
    names = list(libraries)
    if len(names) > 1 and keys.LIBRARY in adata.obs.columns:
        used = adata.obs[keys.LIBRARY].dropna().unique()
        names = list({str(name) for name in used}.intersection(libraries))
    return libraries[names[0]] if len(names) == 1 else {}


def _is_library(spatial: Mapping[str, Any]) -> bool:
    """Say whether ``uns["spatial"]`` is a library itself, without a name."""
    for part in ("images", "scalefactors"):
        content = spatial.get(part)
        if isinstance(content, Mapping) and not {"images", "scalefactors"} & set(content):
            return True
    return False


def find_geometry(
    adata: AnnData,
    native: np.ndarray,
    unit: str | None,
    microns_per_unit: float | None,
    technology: str | None,
    *,
    check: bool = True,
) -> Geometry:
    """Decide the unit of the coordinates and convert them to micrometers where that is possible.

    The evidence is weighed by :func:`terrazzo.slices.units.weigh`. Where nothing tells micrometers the coordinates stay
    native.

    Parameters
    ----------
    adata
        Source of ``obs``, ``uns`` and the cell names.
    native
        float64 (n, 2).
    unit, microns_per_unit, technology
        What the caller states; None where unknown.
    check
        Refuse what cannot be, and warn of what is not likely; False where that was done before.

    Raises
    ------
    ConfigError
        An unknown unit or an impossible ``microns_per_unit``.
    InputError
        Micrometers that the platform cannot have.

    Warns
    -----
    TerrazzoWarning
        Micrometers that are not likely, and an array of unknown pitch.
    """
    library = library_of(adata)
    clues = Clues(
        native=native,
        lattice=read_lattice(adata.obs),
        names=adata.obs_names,
        uns=adata.uns,
        scale_factors=library.get("scalefactors"),
        has_library=bool(library),
        technology=_technology(adata.uns) if technology is None else technology,
    )
    judgment = weigh(clues, unit, microns_per_unit)
    if check and judgment.refusal:
        raise InputError(judgment.refusal)
    if check and judgment.question:
        warnings.warn(judgment.question, TerrazzoWarning, stacklevel=3)
    with np.errstate(over="ignore"):  # which is refused by whoever reads the coordinates
        coords = native * judgment.scale
    return Geometry(
        coords=coords,
        unit=judgment.unit,
        scale=judgment.scale,
        lattice=clues.lattice,
        lattice_kind=judgment.lattice_kind,
        technology=judgment.technology,
        evidence=judgment.evidence,
    )


def _technology(uns: Mapping[str, Any]) -> str | None:
    """Return the platform that a slice names; Stereopy names its own by the kind of its bins."""
    stated = uns.get(keys.TECHNOLOGY)
    if isinstance(stated, str | np.str_):
        return str(stated)
    is_stereopy = str(uns.get("bin_type")) in ("bins", "cell_bins") and "resolution" in uns
    return "Stereo-seq" if is_stereopy else None


def find_image(adata: AnnData, geometry: Geometry) -> TissueImage | None:
    """Return the image in ``uns["spatial"]`` (hires, else lowres, else another with a scale), None where there is none.

    Warns
    -----
    TerrazzoWarning
        There is an image that cannot be used.
    """
    from terrazzo.slices.histology import describe_images, library_image

    library = library_of(adata)
    image, problem = library_image(library.get("images"), library.get("scalefactors"))
    spatial = adata.uns.get(keys.SPATIAL)
    if not library and isinstance(spatial, Mapping):
        names = describe_images(spatial)
        if names:
            problem = (
                f"images in uns['spatial'] are not used ({names}): nothing tells which library is this slice's; "
                f"write its name into obs[{keys.LIBRARY!r}], or pass image= (--image FILE --image-scale)"
            )
    if problem:
        warnings.warn(problem, TerrazzoWarning, stacklevel=4)
    return None if image is None else image_in_units(image, geometry)


def image_in_units(image: TissueImage, geometry: Geometry) -> TissueImage:
    """Fill in the micrometers per pixel where the slice knows them and the image does not."""
    if geometry.unit != "um" or image.microns_per_pixel is not None:
        return image
    return dataclasses.replace(image, microns_per_pixel=geometry.scale / image.scale)
