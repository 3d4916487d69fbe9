"""Every op's definition in the place of its production path: slow, and right by construction.

A model that runs on this set computes what the ops are defined as, kernel by kernel; where it differs from the
same model on its production path, a production path is to blame.
"""
