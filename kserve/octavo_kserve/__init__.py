"""The KServe host: a custom predictor over the shared engine, with the protocols of KServe, OpenAI and Triton."""
