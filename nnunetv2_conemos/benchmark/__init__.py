"""Compare partial-label methods and stock nnU-Net on one dataset: the same plans, steps and test cases for every arm.

    recipe -> workspace (datasets, plans) -> arms (train, predict) -> ledger (runs.csv, cases.csv) -> report

An arm is one way to get a segmentation of all labels from the partially labelled cases. A run is one arm with one
seed, fold and number of epochs.
"""
