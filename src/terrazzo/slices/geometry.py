"""Where the cells are: checked coordinates, array lattices, and how native units become micrometers."""

from __future__ import annotations

import dataclasses
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy.spatial import cKDTree

from terrazzo import keys
from terrazzo.errors import ConfigError, InputError, TerrazzoWarning
from terrazzo.slices.places import check_places, obsm_keys, read_numbers

if TYPE_CHECKING:
    from terrazzo.images import TissueImage

__all__ = [
    "UM_WORDS",
    "Geometry",
    "find_geometry",
    "find_image",
    "image_in_units",
    "library_of",
    "nearest_distance",
    "positive_number",
    "read_coords",
]

_UNITS = ("um", "pixel", "array", "unknown")
_VISIUM_PITCH = 100.0  # um, center to center, hexagonal
_ST_PITCH = 200.0  # um, square array of about 1,000 spots
_ST_DENSE_PITCH = (
    150.0  # um, between diagonal neighbors of the staggered array of about 2,000 spots
)
_SPOT_DIAMETER = 65.0  # um that Space Ranger's spot_diameter_fullres spans (the printed spot is 55)
_ST_EXTENT = 80  # rows or columns; a larger square lattice is not an ST array but a binned platform
_HEX_RATIO = (
    1.17  # (0, 2) over (1, 1) spot distance: 1.00 on Visium, 1.34 on the staggered ST array
)
_MIN_VISIUM_SPACING = (
    80.0  # um; spots closer than this: spot_diameter_fullres is not a Visium value
)

UM_WORDS = (
    "um",
    "\u00b5m",
    "\u03bcm",
    "micron",
    "microns",
    "micrometer",
    "micrometers",
    "micrometre",
    "micrometres",
)
_PLATFORM_UM = {  # micrometers per native unit
    "xenium": 1.0,
    "merfish": 1.0,
    "merscope": 1.0,
    "vizgen": 1.0,
    "cosmx": 0.12028,
    "stereoseq": 0.5,
    "slideseq": 0.65,
}
_TECHNOLOGY_OF_LATTICE = {"visium": "Visium", "st": "ST"}
_ST_NAMES = ("st", "st1k", "st2k", "legacyst", "spatialtranscriptomics")
_HD_NAME = re.compile(r"s_(\d{3})um_\d+_\d+")
_PAIRS = (
    ("x", "y"),
    ("X", "Y"),
    ("x_centroid", "y_centroid"),
    ("CenterX_global_px", "CenterY_global_px"),
    ("center_x", "center_y"),
    ("imagecol", "imagerow"),
    ("pxl_col_in_fullres", "pxl_row_in_fullres"),
)
_VISIUM_STEPS = ((0, 2), (1, 1), (1, -1))
_DIAGONAL_STEPS = ((1, 1), (1, -1))
_SQUARE_STEPS = ((0, 1), (1, 0))


@dataclass(frozen=True)
class Geometry:
    """Positions of one slice: ``coords = native * scale``, in ``unit``; lattice where the platform has one."""

    coords: np.ndarray
    unit: str
    scale: float
    lattice: np.ndarray | None
    lattice_kind: str | None
    technology: str


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
        names = ", ".join(str(adata.obs_names[i]) for i in bad[:3])
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
    libraries = {str(name): entry for name, entry in spatial.items() if isinstance(entry, Mapping)}
    names = list(libraries)
    if len(names) > 1 and keys.LIBRARY in adata.obs.columns:
        used = adata.obs[keys.LIBRARY].dropna().unique()
        names = list({str(name) for name in used}.intersection(libraries))
    return libraries[names[0]] if len(names) == 1 else {}


def positive_number(mapping: Any, key: str) -> float | None:
    """Return ``mapping[key]`` as a positive finite float, None where it is anything else (user data: never raises)."""
    value = mapping.get(key) if isinstance(mapping, Mapping) else None
    try:
        number = float(np.asarray(value).item()) if value is not None else 0.0
    except (TypeError, ValueError, OverflowError):
        return None
    return number if np.isfinite(number) and number > 0 else None


def find_geometry(
    adata: AnnData,
    native: np.ndarray,
    unit: str | None,
    microns_per_unit: float | None,
    technology: str | None,
) -> Geometry:
    """Decide the unit of the coordinates and convert them to micrometers where that is possible.

    In this order: ``unit`` / ``microns_per_unit``; the platform named by ``technology`` (where it counts in pixels,
    ``microns_per_pixel`` in ``uns["spatial"]`` goes first); the lattice in ``obs["array_row"]``, ``obs["array_col"]``;
    Space Ranger's scale factors in ``uns["spatial"]``; the spot distance, if ``technology`` is Visium or ST. Else the
    coordinates stay native.

    Parameters
    ----------
    adata
        Source of ``obs``, ``uns`` and the cell names.
    native
        float64 (n, 2).
    unit, microns_per_unit, technology
        What the caller states; None where unknown.

    Raises
    ------
    ConfigError
        An unknown unit or an impossible ``microns_per_unit``.
    """
    scale_factors = library_of(adata).get("scalefactors")
    if technology is None:
        technology = _technology(adata.uns)
    tag = re.sub(r"[^a-z0-9]", "", technology.lower()) if technology else ""
    lattice = _lattice(adata.obs)
    bin_um = None
    if tag in ("", "unknown") or "visium" in tag:
        bin_um = _hd_bin(adata.obs_names, scale_factors)
    is_hd = bin_um is not None or "visiumhd" in tag
    kind = None
    if lattice is not None and not is_hd:
        kind = _lattice_kind(lattice, native, tag)
    if technology is None:
        technology = "Visium HD" if is_hd else _TECHNOLOGY_OF_LATTICE.get(kind or "", "unknown")
    if unit is not None or microns_per_unit is not None:
        unit, scale = _stated_unit(unit, microns_per_unit)
    else:
        hd_bin = bin_um if is_hd else 0.0
        unit, scale = _derived_unit(
            native, lattice, kind, tag, scale_factors=scale_factors, hd_bin=hd_bin
        )
        if unit == "unknown" and library_of(adata):
            unit = "pixel"
    with np.errstate(over="ignore"):  # which is refused by whoever reads the coordinates
        coords = native * scale
    return Geometry(coords, unit, scale, lattice, kind, technology)


def _technology(uns: Mapping[str, Any]) -> str | None:
    """Return the platform that a slice names; Stereopy names its own by the kind of its bins."""
    stated = uns.get(keys.TECHNOLOGY)
    if isinstance(stated, str | np.str_):
        return str(stated)
    is_stereopy = str(uns.get("bin_type")) in ("bins", "cell_bins") and "resolution" in uns
    return "Stereo-seq" if is_stereopy else None


def _stated_unit(unit: str | None, microns_per_unit: float | None) -> tuple[str, float]:
    name = "um" if unit is None else unit.strip().lower()
    if name in UM_WORDS:
        name = "um"
    if name not in _UNITS:
        raise ConfigError(
            f"unit {unit!r} is not known; use one of {', '.join(_UNITS)}, or microns_per_unit="
        )
    if microns_per_unit is None:
        return name, 1.0
    is_length = np.isfinite(microns_per_unit) and microns_per_unit > 0
    if not is_length:
        raise ConfigError(f"microns_per_unit must be a positive number, not {microns_per_unit!r}")
    return "um", float(microns_per_unit)


def _derived_unit(
    native: np.ndarray,
    lattice: np.ndarray | None,
    kind: str | None,
    tag: str,
    *,
    scale_factors: Any,
    hd_bin: float | None,
) -> tuple[str, float]:
    """Return unit and micrometers per native unit; ``hd_bin`` is 0 off Visium HD, None on it with an unknown bin."""
    per_pixel = positive_number(scale_factors, "microns_per_pixel")
    for platform, factor in _PLATFORM_UM.items():
        if platform in tag:
            if factor != 1.0 and per_pixel is not None:  # pixels differ between instruments
                factor = per_pixel
            return "um", factor
    if lattice is not None:
        if kind == "visium" and _is_lattice_itself(native, lattice):
            return "array", 1.0
        step = _lattice_step(lattice, native, kind, hd_bin)
        if step is not None:
            return "um", step
    if per_pixel is not None:
        return "um", per_pixel
    diameter = positive_number(scale_factors, "spot_diameter_fullres")
    if diameter is not None and hd_bin == 0.0:
        scale = _SPOT_DIAMETER / diameter
        if len(native) == 1 or nearest_distance(native) * scale > _MIN_VISIUM_SPACING:
            return "um", scale
    if "visium" in tag and "hd" not in tag:
        pitch = _VISIUM_PITCH
        distance = _lattice_distance(native, 6)
    elif tag in _ST_NAMES:
        pitch = _ST_DENSE_PITCH if tag == "st2k" else _ST_PITCH
        distance = _lattice_distance(native, 4)
    else:
        return "unknown", 1.0
    if distance is None:
        return "unknown", 1.0
    return "um", pitch / distance


def _lattice(obs: pd.DataFrame) -> np.ndarray | None:
    """Return (row, col), int64 (n, 2), None where the columns are not there or not whole numbers."""
    if keys.ARRAY_ROW not in obs.columns or keys.ARRAY_COL not in obs.columns:
        return None
    columns = []
    for name in (keys.ARRAY_ROW, keys.ARRAY_COL):
        stated = [np.nan if value is np.ma.masked else value for value in obs[name]]
        column = pd.to_numeric(pd.Series(stated, dtype=object), errors="coerce")
        try:
            columns.append(column.to_numpy(dtype=np.float64, na_value=np.nan))
        except (
            TypeError,
            ValueError,
            OverflowError,
        ):  # pandas gives up on numbers of hundreds of digits
            return None
    values = np.stack(columns, axis=1)
    is_usable = np.isfinite(values) & (np.abs(values) < 2**31) & (values == np.rint(values))
    return values.astype(np.int64) if is_usable.all() else None


def _hd_bin(names: Sequence[str] | pd.Index, scale_factors: Any) -> float | None:
    """Bin side of Visium HD in um, from the cell names (``s_008um_00301_00321-1``) or the scale factors."""
    match = _HD_NAME.match(str(names[0])) if len(names) else None
    if match is None:
        return positive_number(scale_factors, "bin_size_um")
    return float(match.group(1))


def _lattice_kind(lattice: np.ndarray, native: np.ndarray, tag: str) -> str | None:
    """Return "visium", "st" or None: by the platform's name, else by which positions of the lattice are used."""
    rows, columns = lattice.T
    parities = np.unique((rows + columns) & 1)
    is_staggered = len(parities) == 1
    if tag in _ST_NAMES:
        return "st"
    if "visium" in tag:
        return "visium" if is_staggered else None
    if tag not in ("", "unknown") or len(lattice) < 2:
        return None
    if not is_staggered:
        extent = np.ptp(lattice, axis=0) + 1
        return "st" if int(extent.max()) <= _ST_EXTENT else None
    if _is_lattice_itself(native, lattice):
        return "visium"
    diagonal = _step_distance(lattice, native, _DIAGONAL_STEPS)
    straight = [_step_distance(lattice, native, (step,)) for step in ((0, 2), (2, 0))]
    ratios = [distance / diagonal for distance in straight if distance is not None and diagonal]
    return "st" if len(ratios) == 2 and min(ratios) > _HEX_RATIO else "visium"


def _lattice_step(
    lattice: np.ndarray, native: np.ndarray, kind: str | None, hd_bin: float | None
) -> float | None:
    """Micrometers per native unit from the distance of spots that are lattice neighbors."""
    if hd_bin:
        pitch = hd_bin
        distance = _step_distance(lattice, native, _SQUARE_STEPS)
    elif kind == "visium":
        pitch = _VISIUM_PITCH
        distance = _step_distance(lattice, native, _VISIUM_STEPS)
    elif kind == "st":
        pitch = _ST_PITCH
        distance = _step_distance(lattice, native, _SQUARE_STEPS)
        if distance is None:
            pitch = _ST_DENSE_PITCH
            distance = _step_distance(lattice, native, _DIAGONAL_STEPS)
    else:
        return None
    return pitch / distance if distance else None


def _step_distance(
    lattice: np.ndarray, xy: np.ndarray, steps: Sequence[tuple[int, int]]
) -> float | None:
    """Return the median distance of the spots that are one of ``steps`` (row, col) apart; None if there are none."""
    rows, columns = (lattice - lattice.min(axis=0)).T
    width = int(columns.max()) + 5  # wide enough that a step never wraps into the next row
    codes = (rows + 2) * width + columns + 2
    codes, spots = np.unique(codes, return_index=True)
    places = xy[spots]
    last = len(codes) - 1
    distances = []
    for row_step, column_step in steps:
        wanted = codes + row_step * width + column_step
        position = np.searchsorted(codes, wanted)
        position = np.minimum(position, last)
        has_neighbor = codes[position] == wanted
        neighbors = position[has_neighbor]
        apart = places[has_neighbor] - places[neighbors]
        distances.append(np.linalg.norm(apart, axis=1))
    every = np.concatenate(distances)
    median = float(np.median(every)) if len(every) else 0.0
    return median if median > 0 else None


def _is_lattice_itself(native: np.ndarray, lattice: np.ndarray) -> bool:
    """Say whether the coordinates are the numbers of the lattice."""
    xy = np.abs(native)
    rows_columns = np.abs(lattice)
    columns_rows = rows_columns[:, ::-1]
    return np.array_equal(xy, rows_columns) or np.array_equal(xy, columns_rows)


def nearest_distance(coords: np.ndarray) -> float:
    """Return the median distance to the nearest cell at another position; 1.0 where all cells share one position.

    Parameters
    ----------
    coords
        float64 (n, 2), finite.
    """
    places = np.unique(coords, axis=0)
    if len(places) < 2:
        return 1.0
    distance, _ = cKDTree(places).query(places, k=2)
    nearest = distance[:, 1]
    apart = nearest[nearest > 0]  # the square of a tiny distance is 0
    return float(np.median(apart)) if len(apart) else 1.0


def _lattice_distance(coords: np.ndarray, n_neighbors: int) -> float | None:
    """Return the pitch of coordinates on a lattice with so many nearest neighbors; None where they are on none."""
    places = np.unique(coords, axis=0)
    if len(places) < 2:
        return None
    n_queried = min(n_neighbors + 1, len(places))
    distance, _ = cKDTree(places).query(places, k=n_queried)
    distance = distance[:, 1:]  # without the place itself
    nearest = distance[:, 0]
    typical = float(np.median(nearest))
    is_on_lattice = np.abs(nearest - typical) < 0.3 * typical
    if is_on_lattice.mean() < 0.8:
        return None
    neighbors = distance[distance < 1.25 * typical]
    return float(np.median(neighbors))


def find_image(adata: AnnData, geometry: Geometry) -> TissueImage | None:
    """Return the image in ``uns["spatial"]`` (hires, else lowres), None where there is none that can be used."""
    library = library_of(adata)
    images = library.get("images")
    factors = library.get("scalefactors")
    if not isinstance(images, Mapping):
        return None
    from terrazzo.images import TissueImage

    for resolution in ("hires", "lowres"):
        scale = positive_number(factors, f"tissue_{resolution}_scalef")
        array = images.get(resolution)
        if scale is None or array is None:
            continue
        # terrazzo's own key, where pixels are not squares
        scale_y = positive_number(factors, f"tissue_{resolution}_scalef_y")
        is_lazy = not isinstance(array, np.ndarray)  # zarr, dask
        read = TissueImage.from_lazy if is_lazy else TissueImage.from_array
        try:
            if np.ndim(array) not in (2, 3):
                continue
            image = read(array, scale=scale, scale_y=scale_y)
            return image_in_units(image, geometry)
        except (InputError, TypeError, ValueError) as error:
            message = f"the {resolution} image in uns['spatial'] is not used: {error}"
            warnings.warn(message, TerrazzoWarning, stacklevel=4)
    return None


def image_in_units(image: TissueImage, geometry: Geometry) -> TissueImage:
    """Fill in the micrometers per pixel where the slice knows them and the image does not."""
    if geometry.unit != "um" or image.microns_per_pixel is not None:
        return image
    return dataclasses.replace(image, microns_per_pixel=geometry.scale / image.scale)
