"""Studies: a list of variants over one configuration, each trained from several seeds.

``python -m qkformer.studies run FILE --output DIR`` and ``... table DIR``; the files are in
``configs/studies``.
"""
