"""A trained model on disk: verified by digests, optionally signed.

- `bundle`: `ModelBundle`, weights, schema and featurizer in one folder; `manifest`: what its manifest says;
  `validation_users`: which users its training held out; `continuation`: what a training that continues it needs.
- `sealed_folder`: folders whose manifest names each file with its digest; `sealed_file`: one such file;
  `private_copies`: copies that no other program can write to.
- `signature`: Ed25519 signatures; `trust`: what the operator allows a bundle.
"""
