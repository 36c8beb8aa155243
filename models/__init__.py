"""Keras layers, the autoencoder and the detector; no file formats, no Airflow, no MLflow."""
