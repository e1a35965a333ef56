"""The KServe host: a custom predictor over the shared engine. Not built yet; README says what is."""
