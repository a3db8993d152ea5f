"""SpatialData, in memory or on disk, read without the package: tables, the elements that they annotate, images.

On disk the containers 0.1 (zarr v2) and 0.2 (zarr v3) of spatialdata are followed, and in them raster elements 0.1 to
0.3 (OME-NGFF 0.4 and 0.5 with spatialdata's transformations), shapes 0.1 (ragged arrays), 0.2 and 0.3 (GeoParquet, WKB
or GeoArrow), points 0.1 and 0.2, tables 0.1 and 0.2, as ``spatialdata/_io/format.py`` of 0.7.3 defines them.
"""

from terrazzo.sdata.container import Container, Element, centers_in, choose_system
from terrazzo.sdata.opening import is_store, open_container, refuse_code
from terrazzo.sdata.transforms import System

__all__ = [
    "Container",
    "Element",
    "System",
    "centers_in",
    "choose_system",
    "is_store",
    "open_container",
    "refuse_code",
]
