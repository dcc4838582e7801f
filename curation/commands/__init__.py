"""The commands of `python -m curation`, one module each.

A module has `add`, which describes the command to argparse and imports nothing heavy, and `main`, which does it and
gives the exit status. Errors of the project that it does not answer itself are told by `curation.__main__`.
"""
