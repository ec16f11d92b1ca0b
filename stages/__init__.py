"""One file a stage of dvc.yaml."""
