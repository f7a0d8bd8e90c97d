"""Where pictures come from, and how they are read for a model.

A source (`ImageSource`) has `ids` and `load`; `as_source` makes one of whatever holds pictures:

==============  ====================================================================
`Folder`        all pictures under a folder; `ImageFolder` with a class for each subfolder
`StoredFolder`  the same in an object store, such as `s3://bucket/photos`
`Tar`           plain tar archives, as webdataset writes them
`Parquet`       tables with encoded pictures in a column
`HuggingFace`   a map-style dataset of the library `datasets`
`TorchDataset`  anything with a length whose items are pictures or (picture, label)
`InMemory`      a list of PIL images, or a tensor that is preprocessed already
`Subset`        pictures at some positions of another source
`Spooled`       a stream (`ImageStream`) that can be read only once, kept in a temporary file
==============  ====================================================================

`decode` turns encoded bytes into upright RGB for all of them. A `Reader` gives batches, and lists
what it had to skip. Every source pickles, and none keeps a file open, so that worker processes may
read it however they are started.
"""

from .choose import as_source
from .decode import SUFFIXES, Unreadable, decode, upright_rgb
from .folder import Folder, ImageFolder
from .huggingface import HuggingFace
from .parquet import Parquet
from .reader import Batch, Reader
from .source import UNREADABLE, FileSource, ImageSource, InMemory, TorchDataset, dataset_hash
from .spool import ImageStream, Spooled
from .stored import StoredFolder
from .subset import Subset
from .tar import Tar

__all__ = [
    "SUFFIXES",
    "UNREADABLE",
    "Batch",
    "FileSource",
    "Folder",
    "HuggingFace",
    "ImageFolder",
    "ImageSource",
    "ImageStream",
    "InMemory",
    "Parquet",
    "Reader",
    "Spooled",
    "StoredFolder",
    "Subset",
    "Tar",
    "TorchDataset",
    "Unreadable",
    "as_source",
    "dataset_hash",
    "decode",
    "upright_rgb",
]
