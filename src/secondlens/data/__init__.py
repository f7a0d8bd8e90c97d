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
"""
