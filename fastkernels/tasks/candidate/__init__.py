"""The user's implementations.

Put L<level>/<file>.py here, with the baseline's file and class names; `fastkernels stubs` writes them to fill in.
FASTKERNELS_CANDIDATE_DIR names another folder instead.
"""
