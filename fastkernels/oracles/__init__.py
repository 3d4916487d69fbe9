"""The libraries of record, a file an architecture: their model beside ours, with the same weights and requests."""
