"""Small models trained on what every machine has, so that their answers have a quality to lose."""
