"""What comes from users: pictures, labels, masks and texts.

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

`decoding` turns encoded bytes into upright RGB for all of them. A `Reader` gives batches, and lists
what it had to skip. Every source pickles, and none keeps a file open, so that worker processes may
read it however they are started. `labelled` and `masked` are pictures of which more is known;
`vocabularies` are texts, and `embedding` makes them vectors.

What has a name of its own is registered here: vocabularies, sets with labels, sets with masks.
"""

from typing import TYPE_CHECKING

from ..registry import Registry

if TYPE_CHECKING:
    from .labelled import Labelled
    from .masked import MaskedSet
    from .vocabularies import Vocabulary

named_vocabularies: Registry["Vocabulary"] = Registry("vocabulary", "vocabularies")
"""Factories without arguments."""

labelled_sets: Registry["Labelled | None"] = Registry("labelled set", "labelled-sets")
"""Factories of `(root, *, classes, all_classes)`, see `labelled`, which give None for a folder that
is laid out in another way. The last one registered is asked first."""

masked_sets: Registry["MaskedSet"] = Registry("masked set", "masked-sets")
"""Factories of `(path, *, names, ignore)`; those without a meaning for a set are ignored by it."""

for _registry, _module, _members in (
    (
        named_vocabularies,
        "vocabularies",
        (
            ("english-10k", "english_10k", "the 10,000 most common English words"),
            ("english-30k", "english_30k", "the 30,000 most common English words"),
            ("imagenet", "imagenet", "the 1,000 classes of ImageNet, each in OpenAI's 80 prompts"),
            ("world", "world_vocabulary", "objects, colours and places of the embedded world"),
        ),
    ),
    (
        labelled_sets,
        "labelled",
        (
            ("class-folders", "class_folders", "one folder for each class, or wordnet id"),
            ("imagenet", "imagenet", "ImageNet as it was downloaded, with train and val in it"),
            ("cifar-10", "cifar_10", "CIFAR-10 as torchvision keeps it"),
        ),
    ),
    (
        masked_sets,
        "masked",
        (
            ("imagenet-segmentation", "imagenet_segmentation", "gtsegs_ijcv.mat: an object each"),
            ("voc", "voc", "Pascal VOC: 20 classes, several in an image"),
            ("imagenet-s", "imagenet_s", "ImageNet-S: the class of the folder in each image"),
            ("folder", "mask_folder", "pictures under images, masks of the same name under masks"),
        ),
    ),
):
    for _name, _function, _help in _members:
        _registry.register(_name, f"{__name__}.{_module}:{_function}", help=_help)
