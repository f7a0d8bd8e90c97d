"""What comes from users: pictures, labels, masks and texts.

A source (`ImageSource`) has `ids` and `load`; `as_source` makes one of whatever holds pictures:

==============  ====================================================================
`Folder`        all pictures under a folder; `ImageFolder` with a class for each subfolder
`StoredFolder`  the same in an object store, such as `s3://bucket/photos`
`PictureFiles`  pictures that are named one by one
`Tar`           tar archives, as webdataset writes them
`Parquet`       tables with encoded pictures in a column
`HuggingFace`   a map-style dataset of the library `datasets`
`TorchDataset`  anything with a length whose items are pictures or (picture, label)
`InMemory`      a list of PIL images, or a tensor that is preprocessed already
`Subset`        pictures at some positions of another source
`Spooled`       a stream (`ImageStream`) that can be read only once, kept in a temporary file
==============  ====================================================================

`decoding` turns encoded bytes into upright RGB for all of them. A `Reader` gives batches, and lists
what it had to skip. Every source pickles, and none keeps a file open, so that worker processes may
read it however they are started. `labelled` and `masked` are pictures of which more is known, in
the layouts of `class_folders`, `archived_sets`, `cifar`, `metadata` and `coco`; `vocabularies` are
texts, and `embedding` makes them vectors.

What has a name of its own is registered here: vocabularies, sets with labels, sets with masks.
"""

from typing import TYPE_CHECKING

from ..registry import Registry

if TYPE_CHECKING:
    from .label_maps import LabelledImages
    from .labelled import LabelledSet
    from .masked import MaskedSet
    from .vocabularies import Vocabulary

named_vocabularies: Registry["Vocabulary"] = Registry("vocabulary", "vocabularies")
"""Factories without arguments."""

labelled_sets: Registry["LabelledSet | None"] = Registry("labelled set", "labelled-sets")
"""Factories of `(path)`, which is absolute, that give None where the layout is another one. The
last one registered is asked first."""

masked_sets: Registry["MaskedSet | None"] = Registry("masked set", "masked-sets")
"""Factories of `(path, *, names, ignore)`, see `masked`, that give None where the layout is another
one and refuse an option that means nothing for theirs. The last one registered is asked first."""

label_sets: Registry["LabelledImages | None"] = Registry("label set", "label-sets")
"""Factories of `(path)`, which is absolute, that give None where the layout is another one."""

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
        "class_folders",
        (("class-folders", "class_folders", "one folder for each class, or wordnet id"),),
    ),
    (
        labelled_sets,
        "archived_sets",
        (
            ("webdataset", "webdataset", "tar shards with .cls, or label in .json, by split"),
            ("parquet", "parquet", "Parquet files with a column label, by split: hub data sets"),
        ),
    ),
    (
        labelled_sets,
        "class_folders",
        (
            ("splits", "splits", "class folders in train, val or test: ImageNet, Imagenette"),
            (
                "imagenet",
                "imagenet",
                "ImageNet's val as it comes, labels by Kaggle or devkit",
            ),
        ),
    ),
    (
        labelled_sets,
        "archived_sets",
        (
            (
                "imagenet-archives",
                "imagenet_archives",
                "ILSVRC2012_img_train.tar and _val.tar, labels by Kaggle or devkit",
            ),
        ),
    ),
    (
        labelled_sets,
        "metadata",
        (("metadata", "metadata_table", "metadata.csv of WILDS: file, class, part, attributes"),),
    ),
    (
        labelled_sets,
        "cifar",
        (("cifar-10", "cifar_10", "the pickles of cifar-10-python.tar.gz, unpacked"),),
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
    (
        masked_sets,
        "coco",
        (
            ("coco-panoptic", "coco_panoptic", "COCO panoptic: its .json, and a PNG a picture"),
            ("coco", "coco", "COCO instances: annotations/instances_*.json and its pictures"),
        ),
    ),
    (
        label_sets,
        "label_maps",
        (
            ("voc20", "voc20", "Pascal VOC: SegmentationClass, background ignored"),
            ("voc21", "voc21", "Pascal VOC: background is a class"),
            ("context59", "context59", "Pascal Context: SegmentationClassContext in VOC2010"),
            ("context60", "context60", "Pascal Context: background is a class"),
            ("ade20k", "ade20k", "ADEChallengeData2016: images and annotations, validation"),
            ("cityscapes", "cityscapes", "leftImg8bit/val and gtFine/val, ids of either kind"),
            ("coco-object", "coco_object", "COCO: *_instanceTrainIds.png, background first"),
            ("coco-stuff", "coco_stuff", "COCO-Stuff: PNGs as handed out, or *_labelTrainIds"),
        ),
    ),
):
    for _name, _function, _help in _members:
        _registry.register(_name, f"{__name__}.{_module}:{_function}", help=_help)
