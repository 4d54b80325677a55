"""A learned detector of digits beside the rules of pipeline.photos: its pages, its network, its reading.

    python -m benchmarks.detector.teach 230 15 600000 128 OUT 3000
    python -m benchmarks.detector.read OUT/S.pt DIR...

Both need PyTorch, which the project does not install. ``teach`` draws pages with training digits in 15 processes and
trains for 230 seconds, with batches of 128 of at most 600,000 crops: S, of 96,832 parameters, and M, of 602,584; and C,
the network of S, for 3,000 steps of 16. ``read`` reads labelled pictures (labels.csv as in benchmarks.photos).
"""
