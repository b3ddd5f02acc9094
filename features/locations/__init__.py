"""Where a table lies: in a file system of this machine, or in an object store (`s3://`, `gs://`).

- `table_path`: `table_path`, from what settings and commands name to a location; what differs between the two kinds.
- `object_path`: `ObjectPath`, an object or a folder of objects, with the methods of `pathlib.Path` that tables need.
- `object_stores`: connections to S3 and Google Cloud Storage, and each of their failures as one line with its remedy.
"""
