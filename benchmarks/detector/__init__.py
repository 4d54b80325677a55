"""A learned detector of digits beside the rules of pipeline.photos: its pages, its network, its reading."""
