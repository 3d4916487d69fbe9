"""From what a user gives (a picture, a sound, a text) to tensors, and from tensors to an answer: a file a model."""
